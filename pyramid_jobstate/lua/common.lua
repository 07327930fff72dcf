-- Put before each of the other scripts. Time is the server's, in milliseconds.

local key = KEYS[1]

local function time()
  local t = redis.call("TIME")
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- "%d" and not tostring(): that writes a large number as 1.7e+12.
local function int(number)
  return string.format("%d", number)
end

-- Set the hash's fields to the arguments from a place on: any number of them, though
-- unpack() has its limit.
local function set(from)
  for i = from, #ARGV, 1000 do
    redis.call("HSET", key, unpack(ARGV, i, math.min(i + 999, #ARGV)))
  end
end

-- Prepended to all other scripts. Times are the server's, in milliseconds.

local key = KEYS[1]

local function micros()
  local t = redis.call("TIME")
  return t[1] * 1000000 + t[2]
end

local function time()
  return math.floor(micros() / 1000)
end

-- Not tostring(), which formats large numbers as 1.7e+12.
local function int(number)
  return string.format("%d", number)
end

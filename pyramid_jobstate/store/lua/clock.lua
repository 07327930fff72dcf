-- The clock of the server. Times are in milliseconds unless they say otherwise.

local key, clock = KEYS[1]

-- The time in microseconds.
local function micros()
  if not clock then
    local t = redis.call("TIME")
    clock = t[1] * 1000000 + t[2]
  end
  return clock
end

local function time()
  return math.floor(micros() / 1000)
end

-- Not tostring(), which formats large numbers as 1.7e+12.
local function int(number)
  return string.format("%d", number)
end

-- Put before each of the other scripts. Time is the server's, in milliseconds.

local key = KEYS[1]

local function micros()
  local t = redis.call("TIME")
  return t[1] * 1000000 + t[2]
end

local function time()
  return math.floor(micros() / 1000)
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

-- Write a job that is not yet queued. ARGV: ttl, delay, status, then the fields.
local function create()
  local now, delay = time(), tonumber(ARGV[2])
  redis.call("HSET", key, "status", ARGV[3], "queued", int(now), "updated", int(now))
  set(4)
  if delay > 0 then
    redis.call("HSET", key, "due", int(now + delay))
  end
  redis.call("PEXPIRE", key, int(ARGV[1] + delay))
end

-- The tokens of a record's earlier runs, its last one's first. What those say comes late.
local function earlier(run, past)
  return string.sub((run or "") .. " " .. (past or ""), 1, 51)
end

-- The replies to a run: it owns the record; it does, and a cancel was asked; a newer
-- run does; there is no record; the job was cancelled before it began.
local OK, CANCELLING, FENCED, MISSING, CANCELLED = 1, 2, -1, 0, -2

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

-- Have the record live for at least so many milliseconds from now.
local function lengthen(ttl)
  redis.call("PEXPIRE", key, int(math.max(ttl, redis.call("PTTL", key))))
end

-- Write a job that is not yet queued. ARGV: ttl, delay, status, sender, then the fields.
local function create()
  local now, delay = time(), tonumber(ARGV[2])
  redis.call("HSET", key, "status", ARGV[3], "queued", int(now), "updated", int(now))
  if ARGV[4] ~= "" then
    redis.call("HSET", key, "sender", ARGV[4])
  end
  set(5)
  -- Nobody knows when the turn of a step comes that waits for it.
  if delay > 0 and ARGV[3] ~= "waiting" then
    redis.call("HSET", key, "due", int(now + delay))
  end
  redis.call("PEXPIRE", key, int(ARGV[1] + delay))
end

-- Whether the record was made for a sender, "" for those that say nothing of themselves.
local function is_of(sender)
  return (redis.call("HGET", key, "sender") or "") == sender
end

local function is_running(status)
  return status == "working" or status == "cancelling"
end

local function is_waiting(status)
  return status == "waiting" or status == "sending" or status == "queued" or status == "retrying"
end

local function is_unfinished(status)
  return is_running(status) or is_waiting(status)
end

-- Whether somebody cancelled the job, who has left a word in "asked": such a job never
-- runs. One that ended otherwise, or was dropped, may run again.
local function was_cancelled(status, asked)
  return status == "cancelled" and asked
end

-- Whether a run that was last heard of at a time is taken for dead.
local function is_silent(seen, now, silence)
  return now - (tonumber(seen) or 0) > tonumber(silence)
end

-- The tokens of a record's earlier runs, its last one's first. What those say comes late.
local function earlier(run, past)
  return string.sub((run or "") .. " " .. (past or ""), 1, 51)
end

-- Whether a run has ever owned the record, of which these are the last and the earlier
-- ones. If not, the record is older than the run: the store has lost what came between.
local function knows(token, run, past)
  return run == token or string.find(" " .. (past or "") .. " ", " " .. token .. " ", 1, true)
end

-- The replies to a run: it owns the record; it does, and a cancel was requested; a newer
-- run does; the record is missing, or older than what the run builds on; the job was
-- cancelled and stays so, whatever the run does.
local OK, CANCELLING, FENCED, MISSING, CANCELLED = 1, 2, -1, 0, -2

-- Read the record for a run. Returns its status, run, past, seq and before, and the reply
-- if the run may not write: it does not own the record, or builds on an update, `base`,
-- that the record lacks.
local function open(token, base)
  local old = redis.call("HMGET", key, "status", "run", "past", "seq", "before")
  if not old[1] then
    return old, MISSING
  end
  if old[2] ~= token then
    return old, (old[2] or knows(token, old[2], old[3])) and FENCED or MISSING
  end
  if (tonumber(old[4]) or 0) < tonumber(base) then
    return old, MISSING
  end
  return old
end

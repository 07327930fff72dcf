-- A run has ended: write its end and its last reports.
-- KEYS: the record, what is kept of its failures. ARGV: token, seq, the seq that it builds
-- on, ttl of an ended job, ttl of an unfinished job, status, milliseconds until the message
-- is delivered again ("" if it is not), the error of a cancelled job, "0" if the actor's
-- function was not called, "1" if it failed (then follow the message from which it may run
-- again or "", why it may not or "", the traceback, the error, and milliseconds since the
-- run began), then the fields, if any.

local token, status = ARGV[1], ARGV[6]
local delay, now = tonumber(ARGV[7]), time()

-- Keep the failure of this run among the last ten tries, once, in the place of the oldest: its
-- start, its end, its error and its token. Readers put them in the order of their starts.
-- Another program may have written there: that must not stop the script half way.
local function keep_try(started)
  local place, oldest = 0, started or now
  for number = 0, 9 do
    local try = tostring(redis.pcall("HGET", KEYS[2], "try:" .. number))
    if string.find(try, ',"' .. token .. '"]', 1, true) then
      return
    end
    local since = tonumber(string.match(try, "^%[null,(%d+)") or string.match(try, "^%[(%d+)")) or 0
    if since < oldest then
      place, oldest = number, since
    end
  end
  local try = { started and int(started) or "null", int(now), ARGV[14], '"' .. token .. '"' }
  if oldest < (started or now) then
    redis.pcall("HSET", KEYS[2], "try:" .. place, "[" .. table.concat(try, ",") .. "]")
  end
end

local old, refusal = read_for(token, ARGV[3])
if refusal == FENCED and ARGV[10] == "1" then
  -- This run has failed all the same, and began before the one that owns the record.
  local newer = tonumber(redis.call("HGET", key, "started")) or now
  keep_try(math.min(now - ARGV[15], newer - 1))
  redis.call("PEXPIRE", KEYS[2], int(math.max(ARGV[4], redis.call("PTTL", key))))
end
if refusal then
  return refusal
end
if old[1] == "cancelled" then
  -- Cancelled while the run was silent, or by this call if it is repeated. A requeued
  -- message must find the record.
  if delay then
    lengthen(ARGV[5] + delay)
  end
  return status == "success" and CANCELLED or stopped(status)
end
if not is_running(old[1]) then
  return OK
end
local stop
if old[1] == "cancelling" and status ~= "success" then
  status = "cancelled"
elseif status == "retrying" then
  -- The message that this run has put back may have been stopped already: see drop.lua.
  stop = redis.call("HGET", key, "stop")
end
local reason = status ~= ARGV[6] and ARGV[8]
if stop then
  status, delay, reason = unpack(cjson.decode(stop))
end
redis.call("HSET", key, "status", status, "seq", ARGV[2], "updated", int(now))
set(ARGV[10] == "1" and 16 or 11)
if ARGV[9] == "0" then
  -- Restore the attempt and the start of the previous run, or 0 and no start.
  local attempt, started = string.match(redis.call("HGET", key, "before") or "", "(%d+) (%d*)")
  redis.call("HSET", key, "attempt", attempt or "0", "started", started or "")
end
if reason then
  redis.call("HSET", key, "error", reason)
elseif stop then
  redis.call("HDEL", key, "error")
end
if ARGV[10] == "1" and (stop or status ~= "cancelled") then
  keep_try(tonumber(redis.call("HGET", key, "started")))
  redis.pcall("HSET", KEYS[2], "traceback", ARGV[13])
  if status == "error" and not stop then
    redis.pcall("HDEL", KEYS[2], "former", "message", "refusal")
    local name = ARGV[11] ~= "" and 11 or 12
    redis.pcall("HSET", KEYS[2], name == 11 and "message" or "refusal", ARGV[name])
  end
end
if status ~= "retrying" and status ~= "error" then
  redis.pcall("HDEL", KEYS[2], "former", "message", "refusal")
end
-- A requeued message must find the record, even that of a cancelled job.
local ttl = int(delay and ARGV[5] + delay or ARGV[4])
redis.call("PEXPIRE", key, ttl)
redis.call("PEXPIRE", KEYS[2], ttl)
if status == "retrying" then
  redis.call("HSET", key, "due", int(now + delay))
else
  redis.call("HSET", key, "finished", int(now))
end
if stop then
  -- The later message has listed the job.
  redis.call("HDEL", key, "run", "stop")
  redis.call("HSET", key, "past", earlier(token, old[3]))
  return FENCED
end
return status == "cancelled" and stopped(ARGV[6]) or OK

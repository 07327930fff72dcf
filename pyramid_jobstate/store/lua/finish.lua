-- A run has ended: write its end and its last reports.
-- KEYS: the record, what is kept of its failures. ARGV: token, seq, the seq that it builds
-- on, status, milliseconds until the message is delivered again ("" if it is not), the error of
-- a cancelled job, "1" if it failed (then follow the message from which it may run again or "",
-- why it may not or "", the traceback, the error, and milliseconds since the run began), then the
-- fields, if any.

local token, status = ARGV[1], ARGV[4]
local delay, now = tonumber(ARGV[5]), time()
local has_failed = ARGV[7] == "1"

-- Keep the failure of this run among the last ten tries, once, in the place of the oldest: its
-- start, its end, its error and its token. Readers put them in the order of their starts.
local function keep_try(started)
  local place, oldest = 0, started or now
  for number = 0, 9 do
    local text = tostring(redis.pcall("HGET", KEYS[2], "try:" .. number))
    if string.find(text, ',"' .. token .. '"]', 1, true) then
      return
    end
    local since = tonumber(string.match(text, "^%[null,(%d+)") or string.match(text, "^%[(%d+)")) or 0
    if since < oldest then
      place, oldest = number, since
    end
  end
  local kept = { started and int(started) or "null", int(now), ARGV[11], '"' .. token .. '"' }
  if oldest < (started or now) then
    redis.pcall("HSET", KEYS[2], "try:" .. place, "[" .. table.concat(kept, ",") .. "]")
  end
end

local old, refusal = read_for(token, ARGV[3], "log_level")
local was = old[1]
if refusal == FENCED and has_failed then
  -- This run has failed all the same, and began before the one that owns the record.
  local newer = tonumber(redis.call("HGET", key, "started")) or now
  keep_try(math.min(now - ARGV[12], newer - 1))
  renew(nil, true, is_running(was) and ACTIVE_TTL / 2)
end
if refusal then
  return refusal
end
if was == "cancelled" then
  -- Cancelled while the run was silent, or by this call if it is repeated. A requeued
  -- message must find the record.
  if delay then
    lengthen(ACTIVE_TTL + delay)
    renew_all()
  end
  return status == "success" and CANCELLED or stopped(status)
end
if not is_running(was) then
  return OK
end
local stop
if was == "cancelling" and status ~= "success" then
  status = "cancelled"
elseif status == "retrying" then
  -- The message that this run has put back may have been stopped already: see drop.lua.
  stop = redis.call("HGET", key, "stop")
end
local reason = status ~= ARGV[4] and ARGV[6]
if stop then
  status, delay, reason = unpack(cjson.decode(stop))
end
local untold = untold_in(old[9], old[5], status)
local words = { "status", status, "seq", ARGV[2], "updated", int(now) }
add_all(words, ARGV, has_failed and 13 or 8)
if reason then
  add(words, "error", reason)
end
if status == "retrying" then
  add(words, "due", int(now + delay))
else
  add(words, "finished", int(now))
end
if untold then
  add(words, "untold", "1")
end
write(words)
-- A requeued message must find the record, even that of a cancelled job.
local ttl = int(delay and ACTIVE_TTL + delay or life_after(untold))
redis.call("PEXPIRE", key, ttl)
renew(old[10])
if stop and not reason then
  redis.call("HDEL", key, "error")
end
if has_failed and (stop or status ~= "cancelled") then
  keep_try(tonumber(redis.call("HGET", key, "started")))
  redis.pcall("HSET", KEYS[2], "traceback", ARGV[10])
  if status == "error" and not stop then
    keep_message(ARGV[8], ARGV[9])
  end
end
-- A first run that does not fail leaves nothing there.
local has_failures = (has_failed or old[3]) and redis.call("PEXPIRE", KEYS[2], ttl) == 1
if has_failures and status ~= "retrying" and status ~= "error" then
  redis.pcall("HDEL", KEYS[2], "message", "refusal")
end
place(key, was, status, due_in(status == "retrying" and delay or 0), { unpack(old, 5) })
if untold then
  enter(key, untold, micros())
end
if stop then
  redis.call("HDEL", key, "run", "stop")
  redis.call("HSET", key, "past", earlier(token, old[3]))
  return FENCED
end
return status == "cancelled" and stopped(ARGV[4]) or OK

-- A worker has started a run, which takes the record over from all earlier runs.
-- ARGV: token, milliseconds since the run began, "1" if this call may be late, "1" if the
-- run already knows of a requested cancellation, ttl, the word of the last request to run
-- the job again that the message knows of ("" for none), the deadline of a unique job, the
-- error of a cancelled job if its batch was cancelled (else ""), then the fields. After the
-- deadline, a job that has ended, or whose record is lost, does not run.

local token, late, told = ARGV[1], ARGV[3] == "1", ARGV[4] == "1"
local now = time()
local started = now - ARGV[2]
local old = redis.call("HMGET", key, "status", "run", "started", "queued", "owner", "past", "asked", "attempt", "rerun")
local status = old[1]
if status == "deleted" or status == "alias" then
  return CANCELLED
end
if old[9] and old[9] ~= ARGV[6] then
  return STALE
end
if old[2] ~= token and knows(token, old[2], old[6]) then
  return FENCED
end
if old[2] ~= token and late and old[2] and started < (tonumber(old[3]) or 0) then
  return FENCED
end
if was_cancelled(status, old[7]) then
  return CANCELLED
end
if old[2] == token then
  return status == "cancelling" and CANCELLING or OK
end
if ARGV[8] ~= "" then
  -- What becomes of a job whose record is gone is known to its batch alone.
  if status and not is_finished(status) then
    redis.call("HSET", key, "status", "cancelled", "error", ARGV[8], "updated", int(now), "finished", int(now))
  end
  return CANCELLED
end
if (not status or is_finished(status)) and is_late(ARGV[7], now) then
  return UNCLAIMED
end
-- If cancellation of an earlier run was requested and that run died, cancel this one.
local was_ended = is_finished(status)
status = (told or status == "cancelling") and "cancelling" or "working"
redis.call("DEL", key)
redis.call(
  "HSET", key, "status", status, "run", token, "seq", "0",
  "queued", old[4] or int(started), "started", int(started),
  "updated", int(started), "seen", int(now)
)
set(9)
if old[9] == "" then
  -- A message that the broker has refused may still come: see restore.lua.
  redis.call("HSET", key, "rerun", "")
end
if old[2] or old[6] then
  redis.call("HSET", key, "past", earlier(old[2], old[6]))
end
if old[5] then
  redis.call("HSET", key, "owner", old[5])
end
if old[3] then
  redis.call("HSET", key, "before", (old[8] or "0") .. " " .. old[3])
end
if status == "cancelling" then
  redis.call("HSET", key, "asked", old[7] or "")
end
redis.call("PEXPIRE", key, ARGV[5])
if status == "cancelling" then
  return CANCELLING
end
return was_ended and REOPENED or OK

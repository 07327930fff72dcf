-- A message is about to be sent: queue its job. An existing record is left alone.
-- ARGV: ttl, delay, status, sender, then the fields. The status is "sending", which becomes
-- "queued" when the broker has accepted the message, or "waiting" for a later step of a
-- pipeline, which becomes "sending" when its turn comes.
-- Returns 1 if the job should be listed: its turn has come, or it was created by this call
-- or by the same call before, whose reply was lost. Returns 0 for an unfinished, a
-- cancelled or a deleted job. For a job that ended in another way, returns the token of its last run.

local old = redis.call("HMGET", key, "status", "run", "asked")
local status = old[1]
if not status then
  create()
  return 1
end
if status == "waiting" and ARGV[3] == "sending" then
  local now, delay = time(), tonumber(ARGV[2])
  redis.call("HSET", key, "status", "sending", "updated", int(now))
  if delay > 0 then
    redis.call("HSET", key, "due", int(now + delay))
  end
  redis.call("PEXPIRE", key, int(ARGV[1] + delay))
  return 1
end
if status == "waiting" or status == "sending" then
  -- Another sender lists its own record.
  return is_of(ARGV[4]) and 1 or 0
end
if was_cancelled(status, old[3]) or status == "deleted" then
  -- The message is delivered anyway and must find the record.
  lengthen(ARGV[1] + ARGV[2])
  return 0
end
if is_unfinished(status) then
  return 0
end
return old[2] or ""

-- A message is about to be sent: its job is queued. A record that exists is left alone.
-- ARGV: ttl, delay, status, sender, then the fields. The status is "sending", which becomes
-- "queued" when the broker has taken the message, or "waiting" for a later step of a
-- pipeline, which becomes "sending" when its turn has come.
-- Returns 1 if it is to be listed: it was created, by this call or by the same one before,
-- whose reply was lost, or its turn has come. Returns 0 for a job that is under way or
-- that somebody cancelled, and for one that has ended otherwise the token of its last run.

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
  -- Another sender has it listed.
  return is_of(ARGV[4]) and 1 or 0
end
if was_cancelled(status, old[3]) then
  -- The message comes all the same, and must find the record.
  lengthen(ARGV[1] + ARGV[2])
  return 0
end
if is_unfinished(status) then
  return 0
end
return old[2] or ""

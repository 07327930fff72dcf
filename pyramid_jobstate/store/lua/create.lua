-- A message is about to be sent: queue its job. An existing record is left alone.
-- ARGV: delay, status, sender, then the fields. The status is "sending", which becomes
-- "queued" when the broker has accepted the message, or "waiting" for a later step of a
-- pipeline, which becomes "sending" when its turn comes.
-- Returns 1 if the job is queued or waits, by this call or by the same call before, whose reply
-- was lost. Returns 0 for another unfinished, a cancelled or a deleted job. For a job that ended
-- in another way, returns the token of its last run.

local old = redis.call("HMGET", key, "status", "run", "asked", "log_level", "past", "resender")
local status, delay = old[1], tonumber(ARGV[1])
if not status then
  create(ARGV)
  return 1
end
if status == "waiting" and ARGV[2] == "sending" then
  local now = time()
  local words = { "status", "sending", "updated", int(now) }
  if delay > 0 then
    add(words, "due", int(now + delay))
  end
  if old[6] then
    add(words, "resender", ARGV[3])
  end
  write(words)
  redis.call("PEXPIRE", key, int(ACTIVE_TTL + delay))
  renew(old[4], old[5])
  place(key, "waiting", "sending", due_in(delay))
  return 1
end
if status == "waiting" or status == "sending" then
  if old[6] and ARGV[2] == "sending" then
    -- Whoever was about to put its message back may have died.
    redis.call("HSET", key, "resender", ARGV[3])
  end
  return relist(ARGV[3])
end
if was_cancelled(status, old[3]) or status == "deleted" then
  -- The message is delivered anyway and must find the record.
  lengthen(ACTIVE_TTL + delay)
  renew_all()
  return 0
end
if is_unfinished(status) then
  return 0
end
return old[2] or ""

-- A message is about to be sent: its job is queued. A record that exists is left alone.
-- ARGV: ttl, delay, status, then the fields. The status is "sending", which becomes
-- "queued" when the broker has taken the message, or "waiting" for a later step of a
-- pipeline, which becomes "sending" when its turn has come.
-- Returns 1 if it was created, 2 if its turn has come, 0 if there is one, or for one that has ended, by itself
-- and not because somebody cancelled it, the token of its last run.

local old = redis.call("HMGET", key, "status", "run")
if old[1] == "success" or old[1] == "error" then
  return old[2] or ""
end
if old[1] == "waiting" and ARGV[3] == "sending" then
  local now, delay = time(), tonumber(ARGV[2])
  redis.call("HSET", key, "status", "sending", "updated", int(now))
  if delay > 0 then
    redis.call("HSET", key, "due", int(now + delay))
  end
  redis.call("PEXPIRE", key, int(ARGV[1] + delay))
  return 2
end
if old[1] then
  return 0
end
create()
return 1

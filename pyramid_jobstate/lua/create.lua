-- A message is about to be sent: its job is queued. A record that exists is left alone.
-- ARGV: ttl, delay, then the fields. The status "sending" becomes "queued" when the
-- broker has taken the message.
-- Returns 1 if it was created, 0 if there is one, or for one that has ended, by itself
-- and not because somebody cancelled it, the token of its last run.

local old = redis.call("HMGET", key, "status", "run")
if old[1] == "success" or old[1] == "error" then
  return old[2] or ""
end
if old[1] then
  return 0
end
create()
return 1

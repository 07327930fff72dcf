-- A message is about to be sent: its job is queued. A record that exists is left alone.
-- ARGV: ttl, delay, then the fields. Returns 1 if it was created, else 0.
-- The status "sending" becomes "queued" when the broker has taken the message.

if redis.call("EXISTS", key) == 1 then
  return 0
end
local now, delay = time(), tonumber(ARGV[2])
redis.call("HSET", key, "status", "sending", "queued", int(now), "updated", int(now))
set(3)
if delay > 0 then
  redis.call("HSET", key, "due", int(now + delay))
end
redis.call("PEXPIRE", key, int(ARGV[1] + delay))
return 1

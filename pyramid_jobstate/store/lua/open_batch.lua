-- A batch is about to be sent: create its record. ARGV: ttl, delay, status, sender, then the
-- fields. The status is "queued", or "success" for an empty batch, which is over at once.
-- Returns 1 if the record was created, by this call or by the same call before, whose reply
-- was lost; 0 if another one is there.

if redis.call("EXISTS", key) == 1 then
  return is_of(ARGV[4]) and 1 or 0
end
create()
local now = int(time())
redis.call("HSET", key, "listed", now)
if ARGV[3] == "success" then
  redis.call("HSET", key, "started", now, "finished", now)
end
return 1

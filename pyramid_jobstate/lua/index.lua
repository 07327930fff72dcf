-- Put a job into an index, which holds those that are not over by when they were queued
-- or are due, those that are over by when they ended; the newest last. Or take it out.
-- ARGV: uuid, ttl (0 to take it out), milliseconds from now, whether one that is there
-- keeps its place ("1").
-- What is older than the ttl has expired: it goes, and the whole index with the last.

local uuid, ttl, delay = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
if ttl == 0 then
  return redis.call("ZREM", key, uuid)
end
local now = time()
if ARGV[4] == "1" then
  redis.call("ZADD", key, "NX", int(now + delay), uuid)
else
  redis.call("ZADD", key, int(now + delay), uuid)
end
redis.call("ZREMRANGEBYSCORE", key, "-inf", "(" .. int(now - ttl))
redis.call("PEXPIRE", key, int(math.max(ttl + delay, redis.call("PTTL", key))))
return 1

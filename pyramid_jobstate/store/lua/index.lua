-- Put a job into an index, which holds those that are not over by when they were queued
-- or are due, those that are over by when they ended, in microseconds; the newest last.
-- Or take it out. ARGV: uuid, ttl (0 to take it out), delay, and "NX" if a job that is
-- there keeps its place, or "GT" if it moves to the top.
-- What is older than the ttl has expired: it goes, and the whole index with the last.

local uuid, ttl, delay = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
if ttl == 0 then
  return redis.call("ZREM", key, uuid)
end
local now = micros()
redis.call("ZADD", key, ARGV[4], int(now + delay * 1000), uuid)
redis.call("ZREMRANGEBYSCORE", key, "-inf", "(" .. int(now - ttl * 1000))
redis.call("PEXPIRE", key, int(math.max(ttl + delay, redis.call("PTTL", key))))
return 1

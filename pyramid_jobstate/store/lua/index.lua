-- Add a job to an index or remove it. An index of unfinished jobs is ordered by the time
-- when they were queued or are due, an index of ended jobs by the time of their end, in
-- microseconds, the newest last.
-- ARGV: uuid, ttl (0 to remove the job), delay, and "NX" if a listed job keeps its place,
-- or "GT" if it moves to the top.
-- Entries older than the ttl are removed. The index itself expires with the last one.

local uuid, ttl, delay = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
if ttl == 0 then
  return redis.call("ZREM", key, uuid)
end
local now = micros()
redis.call("ZADD", key, ARGV[4], int(now + delay * 1000), uuid)
redis.call("ZREMRANGEBYSCORE", key, "-inf", "(" .. int(now - ttl * 1000))
redis.call("PEXPIRE", key, int(math.max(ttl + delay, redis.call("PTTL", key))))
return 1

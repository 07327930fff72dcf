-- A worker process says that it lives. KEYS: the sorted set of all such processes, by their last
-- signs of life in microseconds, and what is known of this one.
-- ARGV: its token, milliseconds for which it is remembered without a sign of life, what it says.

local now, life = micros(), tonumber(ARGV[2])
redis.call("HSETNX", KEYS[2], "started", int(time()))
redis.call("HSET", KEYS[2], "says", ARGV[3])
redis.call("PEXPIRE", KEYS[2], int(life))
redis.call("ZADD", key, int(now), ARGV[1])
redis.call("ZREMRANGEBYSCORE", key, "-inf", "(" .. int(now - life * 1000))
redis.call("PEXPIRE", key, int(life))
return 1

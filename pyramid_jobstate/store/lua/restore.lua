-- The broker did not accept the message of a job that was to run again: put its failure back.
-- KEYS: the record, what is kept of its failure. ARGV: ttl, the word of the request.
-- Returns 1 if the failure was put back, by this call or by the same call before, whose reply
-- was lost; 0 if the job has changed since.

local old = redis.call("HMGET", key, "status", "rerun", "refused")
if old[3] == ARGV[2] then
  return 1
end
if old[1] ~= "sending" or old[2] ~= ARGV[2] then
  return 0
end
local former = redis.call("HGET", KEYS[2], "former")
if not former then
  return 0
end
local fields = cmsgpack.unpack(former)
redis.call("DEL", key)
for i = 1, #fields, 1000 do
  redis.call("HSET", key, unpack(fields, i, math.min(i + 999, #fields)))
end
-- The message of the failure may run the job. That of this request, which the broker may have
-- after all, may not: "" admits only messages without a word.
local kept = redis.call("HGET", key, "rerun")
if not kept or string.sub(kept, 1, 4) == "not " then
  -- An earlier version wrote "not", and the word of the message that was refused.
  redis.call("HSET", key, "rerun", "")
end
redis.call("HSET", key, "refused", ARGV[2])
redis.call("HDEL", KEYS[2], "former")
redis.call("PEXPIRE", key, ARGV[1])
redis.call("PEXPIRE", KEYS[2], ARGV[1])
return 1

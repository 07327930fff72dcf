-- The broker did not accept the message of a job that was to run again: put its failure back.
-- KEYS: the record, what is kept of its failure. ARGV: the word of the request.
-- Returns 1 if the failure was put back, by this call or by the same call before, whose reply
-- was lost; 0 if the job has changed since.

local old = redis.call("HMGET", key, "status", "rerun", "refused")
if old[3] == ARGV[1] then
  return 1
end
if old[1] ~= "sending" or old[2] ~= ARGV[1] then
  return 0
end
local former = redis.call("HGET", KEYS[2], "former")
if not former then
  return 0
end
local words = cmsgpack.unpack(former)
if type(words) ~= "table" or not words[1] or #words % 2 ~= 0 then
  -- Another program wrote it.
  return 0
end
redis.call("DEL", key)
write(words)
local kept = redis.call("HMGET", key, "rerun", "finished", "status", "untold", "log_level")
-- The message of the failure may run the job. That of this request, which the broker may have
-- after all, may not: "" admits only messages without a word.
redis.call("HSET", key, "rerun", kept[1] or "", "refused", ARGV[1])
if kept[4] then
  -- Its end was not told before it was to run again, and is not now.
  redis.call("HDEL", key, "untold")
  redis.call("HSET", key, "hook", "")
end
redis.call("HDEL", KEYS[2], "former")
redis.call("PEXPIRE", key, int(ENDED_TTL))
renew(kept[5], true)
place(key, "sending", kept[3], (tonumber(kept[2]) or time()) * 1000)
for _, scope in ipairs(scopes_of(key)) do
  move(scope, string.sub(key, -36), "again", nil)
end
return 1

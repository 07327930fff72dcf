-- Ask the worker of a running job where it is, once a second at most. KEYS: the record, and what is
-- known of where it is, for five minutes. Returns 1, or 0 if the job does not run.

local status, run = unpack(redis.call("HMGET", key, "status", "run"))
if not is_running(status) or not run then
  return 0
end
local now = time()
local known = redis.call("HMGET", KEYS[2], "run", "asked_at", "taken_at")
local is_asked = known[1] == run and now - (tonumber(known[2]) or 0) < 1000
if is_asked and known[3] then
  return 1
end
if not is_asked then
  redis.call("DEL", KEYS[2])
  redis.call("HSET", KEYS[2], "run", run, "asked_at", int(now))
  redis.call("PEXPIRE", KEYS[2], 300000)
end
-- Again for one that waits: on a Cluster, the reply may have been lost.
announce(key, "where:")
return 1

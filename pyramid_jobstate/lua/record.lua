-- A run reports. ARGV: token, seq, ttl, then the fields, if any.
-- Returns 1 if the run owns the record, -1 if a newer one does, 0 if there is none.

local token, seq = ARGV[1], tonumber(ARGV[2])
local old = redis.call("HMGET", key, "status", "run", "seq")
if not old[1] then
  return 0
end
if old[2] ~= token then
  return -1
end
if old[1] ~= "working" or seq <= tonumber(old[3]) then
  return 1
end
local now = int(time())
redis.call("HSET", key, "seq", int(seq), "seen", now)
if ARGV[4] then
  redis.call("HSET", key, "updated", now)
  set(4)
end
redis.call("PEXPIRE", key, ARGV[3])
return 1

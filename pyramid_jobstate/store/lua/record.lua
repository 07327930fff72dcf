-- A run reports. ARGV: token, seq, the seq that it builds on, ttl, then the fields, if any.

local token, seq = ARGV[1], tonumber(ARGV[2])
local old = redis.call("HMGET", key, "status", "run", "seq", "past")
if not old[1] then
  return MISSING
end
if old[2] ~= token then
  return (old[2] or knows(token, old[2], old[4])) and FENCED or MISSING
end
if (tonumber(old[3]) or 0) < tonumber(ARGV[3]) then
  return MISSING
end
if not is_running(old[1]) then
  return old[1] == "cancelled" and CANCELLED or OK
end
if seq > (tonumber(old[3]) or 0) then
  local now = int(time())
  redis.call("HSET", key, "seq", int(seq), "seen", now)
  if ARGV[5] then
    redis.call("HSET", key, "updated", now)
    set(5)
  end
  redis.call("PEXPIRE", key, ARGV[4])
end
return old[1] == "cancelling" and CANCELLING or OK

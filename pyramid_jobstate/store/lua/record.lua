-- Write reports of a run, or only a sign of life. ARGV: token, seq, the seq that it builds
-- on, ttl, then the fields, if any.

local token, seq = ARGV[1], tonumber(ARGV[2])
local old, refusal = read_for(token, ARGV[3])
if refusal then
  return refusal
end
if not is_running(old[1]) then
  return old[1] == "cancelled" and CANCELLED or OK
end
if seq > (tonumber(old[4]) or 0) then
  local now = int(time())
  redis.call("HSET", key, "seq", int(seq), "seen", now)
  if ARGV[5] then
    redis.call("HSET", key, "updated", now)
    set(5)
  end
  redis.call("PEXPIRE", key, ARGV[4])
end
return old[1] == "cancelling" and CANCELLING or OK

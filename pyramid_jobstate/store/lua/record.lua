-- Write reports of a run, or only a sign of life. ARGV: token, seq, the seq that it builds
-- on, "1" to renew its place in the lists and what lies beside it, then the fields, if any.

local token, seq = ARGV[1], tonumber(ARGV[2])
local renews = ARGV[4] == "1"
local old, refusal = read_for(token, ARGV[3], unpack(renews and { "log_level" } or {}))
if refusal then
  return refusal
end
if not is_running(old[1]) then
  return old[1] == "cancelled" and CANCELLED or OK
end
if seq > (tonumber(old[4]) or 0) then
  local now = int(time())
  local words = { "seq", ARGV[2], "seen", now }
  if ARGV[5] then
    add(words, "updated", now)
    add_all(words, ARGV, 5)
  end
  write(words)
  redis.call("PEXPIRE", key, int(ACTIVE_TTL))
  if renews then
    renew(old[10], old[3], ACTIVE_TTL / 2)
    place(key, old[1], old[1], micros(), { unpack(old, 5) }, nil, true)
  end
end
return old[1] == "cancelling" and CANCELLING or OK

-- A worker has started a run: it takes the record over from all earlier runs.
-- ARGV: token, milliseconds since the run began, whether that was said before ("1"),
-- ttl, then the fields.

local token, started, late = ARGV[1], time() - ARGV[2], ARGV[3] == "1"
local old = redis.call("HMGET", key, "status", "run", "started", "queued", "owner")
local status = old[1]
if old[2] == token then
  return status == "cancelling" and CANCELLING or OK
end
if late and old[2] and started < tonumber(old[3]) then
  return FENCED
end
if status == "cancelled" and not late then
  return CANCELLED
end
-- A run that began while the store was away did not hear of the cancel: it does now.
if status ~= "cancelling" then
  status = status == "cancelled" and "cancelling" or "working"
end
redis.call("DEL", key)
redis.call(
  "HSET", key, "status", status, "run", token, "seq", "0",
  "queued", old[4] or int(started), "started", int(started),
  "updated", int(started), "seen", int(started)
)
set(5)
if old[5] then
  redis.call("HSET", key, "owner", old[5])
end
redis.call("PEXPIRE", key, ARGV[4])
return status == "cancelling" and CANCELLING or OK

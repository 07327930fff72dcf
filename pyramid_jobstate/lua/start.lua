-- A worker has started a run: it takes the record over from all earlier runs.
-- ARGV: token, seconds since the run began as milliseconds, whether that was said
-- before ("1"), ttl, then the fields.
-- Returns 1 if the run owns the record, -1 if a newer one does.

local token, started = ARGV[1], time() - ARGV[2]
local old = redis.call("HMGET", key, "run", "started", "queued", "owner")
if old[1] == token then
  return 1
end
if ARGV[3] == "1" and old[1] and started < tonumber(old[2]) then
  return -1
end
redis.call("DEL", key)
redis.call(
  "HSET", key, "status", "working", "run", token, "seq", "0",
  "queued", old[3] or int(started), "started", int(started),
  "updated", int(started), "seen", int(started)
)
set(5)
if old[4] then
  redis.call("HSET", key, "owner", old[4])
end
redis.call("PEXPIRE", key, ARGV[4])
return 1

-- A run has ended, with all that it had still to report.
-- ARGV: token, seq, ttl, status, delay until the next try, then the fields, if any.
-- Returns 1 if the run owns the record, -1 if a newer one does, 0 if there is none.

local token, seq, status = ARGV[1], tonumber(ARGV[2]), ARGV[4]
local old = redis.call("HMGET", key, "status", "run", "seq")
if not old[1] then
  return 0
end
if old[2] ~= token then
  return -1
end
if old[1] ~= "working" then
  return 1
end
local now, ttl = time(), tonumber(ARGV[3])
redis.call("HSET", key, "status", status, "seq", int(seq), "updated", int(now))
if status == "retrying" then
  redis.call("HSET", key, "due", int(now + ARGV[5]))
  ttl = ttl + ARGV[5]
else
  redis.call("HSET", key, "finished", int(now))
end
set(6)
redis.call("PEXPIRE", key, int(ttl))
return 1

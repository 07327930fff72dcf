-- A run has ended, with all that it had still to report.
-- ARGV: token, seq, ttl of a job that is over, ttl of one that is not, status, delay
-- until the next try, the error of a cancelled job, then the fields, if any.

local token, status = ARGV[1], ARGV[5]
local old = redis.call("HMGET", key, "status", "run")
if not old[1] then
  return MISSING
end
if old[2] ~= token then
  return FENCED
end
if old[1] ~= "working" and old[1] ~= "cancelling" then
  return OK
end
if old[1] == "cancelling" and status ~= "success" then
  -- Dramatiq may have put the message back already: it is skipped when it comes.
  status = "cancelled"
end
local now = time()
redis.call("HSET", key, "status", status, "seq", ARGV[2], "updated", int(now))
set(8)
if status == "cancelled" and ARGV[5] ~= "cancelled" then
  redis.call("HSET", key, "error", ARGV[7])
end
if status == "retrying" then
  redis.call("HSET", key, "due", int(now + ARGV[6]))
  redis.call("PEXPIRE", key, int(ARGV[4] + ARGV[6]))
else
  redis.call("HSET", key, "finished", int(now))
  redis.call("PEXPIRE", key, ARGV[3])
end
return OK

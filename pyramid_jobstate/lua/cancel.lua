-- Somebody asks to cancel the job. ARGV: ttl, error.
-- Returns 2 if it is cancelled, 1 if its worker is told, 0 if it has ended or is unknown.

local status = redis.call("HGET", key, "status")
if status == "working" or status == "cancelling" then
  redis.call("HSET", key, "status", "cancelling")
  return 1
end
if status ~= "waiting" and status ~= "sending" and status ~= "queued" and status ~= "retrying" then
  return 0
end
local now = int(time())
redis.call("HSET", key, "status", "cancelled", "error", ARGV[2], "updated", now, "finished", now)
redis.call("PEXPIRE", key, ARGV[1])
return 2

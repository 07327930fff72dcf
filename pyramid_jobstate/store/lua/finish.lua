-- A run has ended: write its end and its last reports.
-- ARGV: token, seq, the seq that it builds on, ttl of an ended job, ttl of an unfinished
-- job, status, milliseconds until the message is delivered again ("" if it is not), the
-- error of a cancelled job, "0" if the actor's function was not called, then the fields,
-- if any.

local token, status = ARGV[1], ARGV[6]
local delay = tonumber(ARGV[7])
local old, refusal = read_for(token, ARGV[3])
if refusal then
  return refusal
end
if old[1] == "cancelled" then
  -- Cancelled while the run was silent, or by this call if it is repeated. A requeued
  -- message must find the record.
  if delay then
    lengthen(ARGV[5] + delay)
  end
  return status == "success" and CANCELLED or OK
end
if not is_running(old[1]) then
  return OK
end
if old[1] == "cancelling" and status ~= "success" then
  status = "cancelled"
end
local now = time()
redis.call("HSET", key, "status", status, "seq", ARGV[2], "updated", int(now))
set(10)
if ARGV[9] == "0" then
  -- Restore the attempt and the start of the previous run, or 0 and no start.
  local attempt, started = string.match(redis.call("HGET", key, "before") or "0 ", "(%d+) (%d*)")
  redis.call("HSET", key, "attempt", attempt, "started", started)
end
if status == "cancelled" and ARGV[6] ~= "cancelled" then
  redis.call("HSET", key, "error", ARGV[8])
end
-- A requeued message must find the record, even that of a cancelled job.
redis.call("PEXPIRE", key, int(delay and ARGV[5] + delay or ARGV[4]))
if status == "retrying" then
  redis.call("HSET", key, "due", int(now + delay))
else
  redis.call("HSET", key, "finished", int(now))
end
return OK

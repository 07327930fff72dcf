-- A run has ended, with all that it had still to report.
-- ARGV: token, seq, the seq that it builds on, ttl of a job that is over, ttl of one that
-- is not, status, milliseconds until the message comes again ("" if it does not), the
-- error of a cancelled job, "0" if the actor's function was not called, then the fields,
-- if any.

local token, status = ARGV[1], ARGV[6]
local delay = tonumber(ARGV[7])
local old, refusal = open(token, ARGV[3])
if refusal then
  return refusal
end
if old[1] == "cancelled" then
  -- While the run was silent, or by this very call before. A message that was put back
  -- must find the record.
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
  -- The attempt and the start are those of the run before, or 0 and none.
  local attempt, started = string.match(old[5] or "0 ", "(%d+) (%d*)")
  redis.call("HSET", key, "attempt", attempt, "started", started)
end
if status == "cancelled" and ARGV[6] ~= "cancelled" then
  redis.call("HSET", key, "error", ARGV[8])
end
-- A message that was put back must find the record, be it of a cancelled job.
redis.call("PEXPIRE", key, int(delay and ARGV[5] + delay or ARGV[4]))
if status == "retrying" then
  redis.call("HSET", key, "due", int(now + delay))
else
  redis.call("HSET", key, "finished", int(now))
end
return OK

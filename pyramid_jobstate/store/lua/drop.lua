-- A message was stopped before a run of it began: it was dropped or requeued.
-- ARGV: a token of this call, ttl of an ended job, ttl of an unfinished job, milliseconds
-- of silence after which a run counts as dead, "1" if the message was not sent (then a job
-- whose message the broker has is left alone), the only sender whose record may change
-- ("" for any), status, milliseconds until the message is delivered again ("" if it is
-- not), the error of a cancelled job, the error, if any.
-- Returns OK, or MISSING if there is nothing to do.

local token, status, delay, reason = ARGV[1], ARGV[7], tonumber(ARGV[8]), ARGV[10]
local old = redis.call("HMGET", key, "status", "seen", "run", "past", "drop")
local now = time()
if old[5] == token then
  -- The reply was lost.
  return OK
end
if ARGV[5] == "1" and old[1] ~= "waiting" and old[1] ~= "sending" then
  return MISSING
end
if ARGV[6] ~= "" and not is_of(ARGV[6]) then
  return MISSING
end
if not is_unfinished(old[1]) or (is_running(old[1]) and not is_silent(old[2], now, ARGV[4])) then
  -- The job has ended, or is running from another delivery of the message.
  return MISSING
end
-- Without a token, no run owns the record.
if old[3] then
  redis.call("HDEL", key, "run")
  redis.call("HSET", key, "past", earlier(old[3], old[4]))
end
if old[1] == "cancelling" then
  status, reason = "cancelled", ARGV[9]
end
redis.call("HSET", key, "status", status, "drop", token, "updated", int(now))
if reason then
  redis.call("HSET", key, "error", reason)
else
  redis.call("HDEL", key, "error")
end
if status == "retrying" then
  redis.call("HSET", key, "due", int(now + delay))
else
  redis.call("HDEL", key, "due")
  redis.call("HSET", key, "finished", int(now))
end
-- A requeued message must find the record, even that of a cancelled job.
redis.call("PEXPIRE", key, int(delay and ARGV[3] + delay or ARGV[2]))
return OK

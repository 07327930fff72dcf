-- A message was stopped before a run of it began: it was dropped or requeued.
-- ARGV: a token of this call, ttl of an ended job, ttl of an unfinished job, milliseconds
-- of silence after which a run counts as dead, "sent" or, if the message was not sent, "lost"
-- or, if its turn in the pipeline never came, "unreached" (a job whose message the broker has
-- is then left alone), the only sender whose record may change
-- ("" for any), the word of the last request to run the job again that the message knows of
-- ("" for none), the number of attempts before this message, status, milliseconds until the
-- message is delivered again ("" if it is not), the error of a cancelled job, the error, if
-- any.
-- Returns OK, or CANCELLING if cancellation was requested before, or MISSING if there is
-- nothing to do.

local token, status, delay, reason = ARGV[1], ARGV[9], tonumber(ARGV[10]), ARGV[12]
local old = redis.call("HMGET", key, "status", "seen", "run", "past", "drop", "rerun", "attempt")
local now = time()
if old[5] == token then
  -- The reply was lost.
  return old[1] == "cancelled" and stopped(status) or OK
end
if ARGV[5] ~= "sent" and old[1] ~= "waiting" and old[1] ~= "sending" then
  return MISSING
end
if (ARGV[6] ~= "" and not is_of(ARGV[6])) or (old[6] and old[6] ~= ARGV[7]) then
  return MISSING
end
if not is_unfinished(old[1]) then
  return MISSING
end
if is_running(old[1]) and not is_silent(old[2], now, ARGV[4]) then
  if tonumber(ARGV[8]) < (tonumber(old[7]) or 0) then
    -- The job is running from another delivery of the message.
    return MISSING
  end
  -- The attempt before has put the message back, and is about to write that: finish.lua
  -- then writes this.
  redis.call("HSET", key, "drop", token, "stop", cjson.encode({ status, delay or false, reason or false }))
  return old[1] == "cancelling" and CANCELLING or OK
end
-- Without a token, no run owns the record.
if old[3] then
  redis.call("HDEL", key, "run")
  redis.call("HSET", key, "past", earlier(old[3], old[4]))
end
if old[1] == "cancelling" then
  status, reason = "cancelled", ARGV[11]
end
redis.call("HSET", key, "status", status, "drop", token, "updated", int(now))
if ARGV[5] == "unreached" then
  redis.call("HSET", key, "unreached", "1")
end
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
return status == "cancelled" and stopped(ARGV[9]) or OK

-- A message was stopped before a run of it began: it was dropped or requeued.
-- ARGV:
--   1   a token of this call
--   2   "sent" or, if the message was not sent, "lost" or, if its turn in the pipeline never came,
--       "unreached"; a job whose message the broker has is then left alone
--   3   the only sender whose record may change, or ""
--   4   the word of the last request to run the job again that the message knows of, or ""
--   5   the number of attempts before this message
--   6   the status
--   7   milliseconds until the message is delivered again, or ""
--   8   the error of a cancelled job
--   9   the error, if any
--   10  if it failed: the message from which it may run again, or ""
--   11  why it may not, or ""
--   12  the traceback
-- Returns OK, or CANCELLING if cancellation was requested before, or MISSING if there is
-- nothing to do.

local token, status, delay, reason = ARGV[1], ARGV[6], tonumber(ARGV[7]), ARGV[9]
local old = redis.call(
  "HMGET", key, "status", "seen", "run", "past", "drop", "rerun", "attempt", "kind", "actor",
  "owner", "batch", "hooks", "log_level"
)
local was, now = old[1], time()
if old[5] == token then
  -- The reply was lost.
  return was == "cancelled" and stopped(status) or OK
end
if ARGV[2] ~= "sent" and was ~= "waiting" and was ~= "sending" then
  return MISSING
end
if (ARGV[3] ~= "" and not is_of(ARGV[3])) or (old[6] and old[6] ~= ARGV[4]) then
  return MISSING
end
if not is_unfinished(was) then
  return MISSING
end
if is_running(was) and not is_silent(old[2], now) then
  if tonumber(ARGV[5]) < (tonumber(old[7]) or 0) then
    -- The job is running from another delivery of the message.
    return MISSING
  end
  -- The attempt before has put the message back, and is about to write that: finish.lua
  -- then writes this.
  local stop = cjson.encode({ status, delay or false, reason or false })
  redis.call("HSET", key, "drop", token, "stop", stop)
  return was == "cancelling" and CANCELLING or OK
end
if was == "cancelling" then
  status, reason = "cancelled", ARGV[8]
end
if status ~= "retrying" and put_back(was) then
  -- The job had ended before its message was sent again.
  redis.call("HSET", key, "drop", token)
  return OK
end
local has_failed = status == "error" and ARGV[12]
local untold = untold_in(old[12], old[8], status)
-- Without a token, no run owns the record.
local words, gone = { "status", status, "drop", token, "updated", int(now) }, { "run" }
if old[3] or has_failed then
  add(words, "past", earlier(old[3], old[4]))
end
if ARGV[2] == "unreached" then
  add(words, "unreached", "1")
end
if reason then
  add(words, "error", reason)
else
  gone[2] = "error"
end
if status == "retrying" then
  add(words, "due", int(now + delay))
else
  add(words, "finished", int(now))
  gone[#gone + 1] = "due"
end
if untold then
  add(words, "untold", "1")
end
write(words)
redis.call("HDEL", key, unpack(gone))
-- A requeued message must find the record, even that of a cancelled job.
redis.call("PEXPIRE", key, int(delay and ACTIVE_TTL + delay or life_after(untold)))
if has_failed then
  redis.pcall("HSET", failure_key(), "traceback", ARGV[12])
  keep_message(ARGV[10], ARGV[11])
end
renew(old[13], old[3] or old[4] or has_failed)
place(key, was, status, due_in(status == "retrying" and delay or 0), { unpack(old, 8) })
if untold then
  enter(key, untold, micros())
end
return status == "cancelled" and stopped(ARGV[6]) or OK

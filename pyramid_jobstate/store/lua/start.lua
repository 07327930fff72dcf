-- A worker has started a run, which takes the record over from all earlier runs.
-- ARGV:
--   1  a token of the run
--   2  milliseconds since it began
--   3  "1" if this call may be late
--   4  "1" if something answered in place of the function
--   5  "1" if the run already knows of a requested cancellation
--   6  the word of the last request to run the job again that the message knows of, or ""
--   7  the deadline of a unique job: after it, a job that has ended, or whose record is lost, does
--      not run; or ""
--   8  "1" if its batch was or may be cancelled
--   9  the error of a cancelled job
-- Then the fields.

local token, late, is_answered, must_stop = ARGV[1], ARGV[3] == "1", ARGV[4] == "1", ARGV[5] == "1"
local now = time()
local started = now - ARGV[2]
local old = redis.call(
  "HMGET", key, "status", "run", "started", "queued", "owner", "past", "asked", "seen", "rerun",
  "kind", "actor", "batch", "hooks", "untold", "updated", "due", "log_level"
)
local was, facts = old[1], facts_in(ARGV, 10)
if was == "deleted" or was == "alias" then
  return CANCELLED
end
if old[9] and old[9] ~= ARGV[6] then
  return STALE
end
if old[2] ~= token and knows(token, old[2], old[6]) then
  return FENCED
end
if old[2] ~= token and late and old[2] and started < (tonumber(old[3]) or 0) then
  return FENCED
end
if was_cancelled(was, old[7]) then
  return CANCELLED
end
if old[2] == token then
  return was == "cancelling" and CANCELLING or OK
end
if is_answered and is_running(was) and not is_silent(old[8], now) then
  -- That run decides how the job ends.
  return FENCED
end
if was == "cancelling" or (ARGV[8] == "1" and is_stopped(space_of(key) .. facts[4])) then
  -- The broker takes its worker for dead. What becomes of a job whose record is gone is known to
  -- its batch alone.
  if is_unfinished(was) then
    local untold = untold_in(old[13], old[10], "cancelled")
    cancel(was, now, ARGV[9], old[17], old[2] or old[6], untold)
  end
  return CANCELLED
end
if (not was or is_finished(was)) and is_late(ARGV[7], now) then
  return UNCLAIMED
end
local is = must_stop and "cancelling" or "working"
facts[3] = old[5] or facts[3]
-- Its class or its actor may have another name now, and its batch may have been lost.
local is_other = facts[1] ~= old[10] or facts[2] ~= old[11] or facts[4] ~= old[12]
local before = was and is_other and scopes_of(key) or nil
local words = {
  "status", is, "run", token, "seq", "0", "queued", old[4] or int(started),
  "started", int(started), "updated", int(started), "seen", int(now),
}
if old[17] and redis.call("EXISTS", log_key()) == 1 then
  -- The class may capture nothing here, but has elsewhere.
  add(words, "log_level", old[17])
end
add_all(words, ARGV, 10)
if old[13] then
  -- This worker may know another version of the class.
  add(words, "hooks", old[13])
end
if old[9] == "" then
  -- The message of an earlier request may still come: see put_back().
  add(words, "rerun", "")
end
if old[2] or old[6] then
  add(words, "past", earlier(old[2], old[6]))
end
if old[5] then
  add(words, "owner", old[5])
end
if is == "cancelling" then
  add(words, "asked", old[7] or "")
end
local since = tonumber(old[15])
-- While a step is waiting for its turn, it is not a worker that it waits for. The store may have
-- been away when its turn came.
if since and (was == "queued" or was == "sending" or was == "retrying") then
  since = math.max(since, tonumber(old[16]) or 0)
  add(words, "waited", int(math.max(0, started - since)))
end
if old[14] then
  leave(key)
end
if was then
  redis.call("DEL", key)
end
if old[6] then
  -- The record that was set aside does not come back.
  redis.call("DEL", former_key())
end
write(words)
redis.call("PEXPIRE", key, int(ACTIVE_TTL))
renew(old[17], old[2] or old[6], ACTIVE_TTL / 2)
if not was then
  -- The store may have lost the record and not its places.
  leave_all(key)
end
place(key, was, is, micros(), facts, before)
return is == "cancelling" and CANCELLING or OK

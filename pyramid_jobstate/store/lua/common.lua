-- Prepended, after clock.lua, to the scripts that change the record of a job.

-- Set hash fields from the arguments that start at an index. In portions, because unpack()
-- limits the number of values.
local function set(from)
  for i = from, #ARGV, 1000 do
    redis.call("HSET", key, unpack(ARGV, i, math.min(i + 999, #ARGV)))
  end
end

-- Extend the lifetime of the record to at least ttl milliseconds from now.
local function lengthen(ttl)
  redis.call("PEXPIRE", key, int(math.max(ttl, redis.call("PTTL", key))))
end

-- Write the record of a new job. ARGV: ttl, delay, status, sender, then the fields.
local function create()
  local now, delay = time(), tonumber(ARGV[2])
  redis.call("HSET", key, "status", ARGV[3], "queued", int(now), "updated", int(now))
  if ARGV[4] ~= "" then
    redis.call("HSET", key, "sender", ARGV[4])
  end
  set(5)
  -- The due time of a step that waits for its turn is not known yet.
  if delay > 0 and ARGV[3] ~= "waiting" then
    redis.call("HSET", key, "due", int(now + delay))
  end
  redis.call("PEXPIRE", key, int(ARGV[1] + delay))
end

-- Whether the record was written for a sender, "" for an unnamed one.
local function is_of(sender)
  return (redis.call("HGET", key, "sender") or "") == sender
end

local function is_running(status)
  return status == "working" or status == "cancelling"
end

local function is_waiting(status)
  return status == "waiting" or status == "sending" or status == "queued" or status == "retrying"
end

local function is_unfinished(status)
  return is_running(status) or is_waiting(status)
end

local function is_finished(status)
  return status == "success" or status == "error" or status == "cancelled"
end

-- Whether cancellation of the job was requested, which leaves a word in "asked". Such a job
-- never runs. A job that was dropped or ended in another way may run again.
local function was_cancelled(status, asked)
  return status == "cancelled" and asked
end

-- Whether a run counts as dead, given the time of its last sign of life.
local function is_silent(seen, now, silence)
  return now - (tonumber(seen) or 0) > tonumber(silence)
end

-- Whether it is too late for a unique job to run again. The deadline is until when it holds its
-- claim; "" stands for a job that is not unique.
local function is_late(deadline, now)
  return deadline ~= "" and now >= tonumber(deadline)
end

-- The tokens of a record's earlier runs, newest first, whose updates are now too late.
local function earlier(run, past)
  return string.sub((run or "") .. " " .. (past or ""), 1, 51)
end

-- Whether a run ever owned the record, given the tokens of its last and earlier runs. If
-- not, the record is older than the run: the store has lost the changes in between.
local function knows(token, run, past)
  return run == token or string.find(" " .. (past or "") .. " ", " " .. token .. " ", 1, true)
end

-- The replies to a run: it owns the record; it does, and cancellation was requested, which
-- decides how the job ends unless it succeeds; it does, and the job had ended before it began;
-- a newer run owns the record; the record is missing, or older than the update that the run
-- builds on; the job is cancelled or deleted, and stays so; the job is to run from another
-- message; the job needs its claim to run again.
local OK, CANCELLING, REOPENED = 1, 2, 3
local FENCED, MISSING, CANCELLED, STALE, UNCLAIMED = -1, 0, -2, -3, -4

-- The reply to an end with a status, if the job is cancelled.
local function stopped(status)
  return status == "cancelled" and OK or CANCELLING
end

-- Read the record for a run. Returns its status, run, past and seq. Also returns
-- the reply if the run may not write because it does not own the record, or because the
-- record lacks the update `base` that the run builds on.
local function read_for(token, base)
  local old = redis.call("HMGET", key, "status", "run", "past", "seq")
  if not old[1] then
    return old, MISSING
  end
  if old[1] == "deleted" then
    return old, CANCELLED
  end
  if old[2] ~= token then
    return old, (old[2] or knows(token, old[2], old[3])) and FENCED or MISSING
  end
  if (tonumber(old[4]) or 0) < tonumber(base) then
    return old, MISSING
  end
  return old
end

-- What the scripts share that change records. Each reads all that it needs before it writes
-- anything, and writes the record first: a server that is full refuses only the first write of a
-- script.

-- Append a field to some words.
local function add(words, name, value)
  words[#words + 1] = name
  words[#words + 1] = value
end

-- Append the arguments from an index on.
local function add_all(words, argv, from)
  for i = from, #argv do
    words[#words + 1] = argv[i]
  end
end

-- Set fields of the record: their names and values. In portions, because unpack() limits the
-- number of values.
local function write(words)
  for i = 1, #words, 1000 do
    redis.call("HSET", key, unpack(words, i, math.min(i + 999, #words)))
  end
end

-- Extend the lifetime of the record to at least ttl milliseconds from now.
local function lengthen(ttl)
  redis.call("PEXPIRE", key, int(math.max(ttl, redis.call("PTTL", key))))
end

local function log_key()
  return OPEN .. key .. CLOSE .. ":log"
end

-- The key of what is kept of the failures of the job.
local function failure_key()
  return OPEN .. key .. CLOSE .. ":failure"
end

-- The key of an ended job's record, set aside while the job waits to run again: see put_back().
local function former_key()
  return OPEN .. key .. CLOSE .. ":former"
end

-- Keep the message from which a job that has failed may run again or, without one, why it may not.
local function keep_message(message, refusal)
  redis.pcall("HDEL", failure_key(), "message", "refusal")
  if message ~= "" then
    redis.pcall("HSET", failure_key(), "message", message)
  else
    redis.pcall("HSET", failure_key(), "refusal", refusal)
  end
end

-- Let what lies beside the record of a job live for as long as that, and some milliseconds more.
--   level  its `log_level`: a job without one has no log
--   past   whether the job ended or failed before: only then is anything kept of failures
local function renew(level, past, more)
  if level or past then
    local life = int(redis.call("PTTL", key) + (more or 0))
    if level then
      redis.call("PEXPIRE", log_key(), life)
    end
    if past then
      redis.call("PEXPIRE", failure_key(), life)
      redis.call("PEXPIRE", former_key(), life)
    end
  end
end

-- Do that for a job, or a batch, of which only the record knows what lies beside it.
local function renew_all(more)
  local old = redis.call("HMGET", key, "log_level", "run", "past", "batch")
  renew(old[1], old[2] or old[3], more)
  if old[4] == "*" then
    local life = int(redis.call("PTTL", key))
    for _, name in ipairs({ ":members", ":failed", ":order" }) do
      redis.call("PEXPIRE", OPEN .. key .. CLOSE .. name, life)
    end
  end
end

-- What scopes_of() needs of a job whose fields are among the arguments from an index on, and its
-- hooks.
local function facts_in(argv, from)
  local job = {}
  for i = from, #argv, 2 do
    job[argv[i]] = argv[i + 1]
  end
  return { job.kind, job.actor, job.owner or false, job.batch or false, job.hooks }
end

-- When a job is due, in microseconds, that is due in some milliseconds.
local function due_in(delay)
  return micros() + delay * 1000
end

-- Write the record of a new job, and list it.
--   argv    delay, status, sender, then the fields
--   was     the status of the record that it replaces
--   more    further fields of the record
--   before  the scopes of that record
local function create(argv, was, more, before)
  local now, delay, status = int(time()), tonumber(argv[1]), argv[2]
  local words = { "status", status, "queued", now, "updated", now }
  if argv[3] ~= "" then
    add(words, "sender", argv[3])
  end
  -- The due time of a step that waits for its turn is not known yet.
  if delay > 0 and status ~= "waiting" then
    add(words, "due", int(now + delay))
  end
  add_all(words, argv, 4)
  add_all(words, more or {}, 1)
  write(words)
  redis.call("PEXPIRE", key, int(ACTIVE_TTL + delay))
  place(key, was, status, due_in(delay), not more and facts_in(argv, 4), before)
end

-- Whether the record was written for a sender, "" for an unnamed one.
local function is_of(sender)
  return (redis.call("HGET", key, "sender") or "") == sender
end

-- The call of a sender that creates a record has come again: on a Cluster, the lists may have
-- missed the first reply. Returns 1 if the record is that sender's, else 0.
local function relist(sender)
  if not is_of(sender) then
    return 0
  end
  local status = redis.call("HGET", key, "status")
  place(key, nil, status, time_in(status))
  return 1
end

-- Whether cancellation of the job was requested, which leaves a word in "asked". Such a job
-- never runs. A job that was dropped or ended in another way may run again.
local function was_cancelled(status, asked)
  return status == "cancelled" and asked
end

-- Cancel a job that no run owns any more.
--   was     its status
--   reason  why, as its error is stored
--   level, past  see renew()
--   set     the set of ends to be told that it enters, or nil
--   asked   the words of the requests to cancel it, if any
local function cancel(was, now, reason, level, past, set, asked)
  local words = {
    "status", "cancelled", "error", reason, "updated", int(now), "finished", int(now),
  }
  if asked then
    add(words, "asked", asked)
  end
  if set then
    add(words, "untold", "1")
  end
  write(words)
  lengthen(life_after(set))
  renew(level, past)
  place(key, was, "cancelled", micros())
  if set then
    enter(key, set, micros())
  end
end

-- Whether a run counts as dead, given the time of its last sign of life.
local function is_silent(seen, now)
  return now - (tonumber(seen) or 0) > SILENCE
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

-- Bring back the record that was set aside. Returns whether there was one.
--   was  the status of the record that it replaces
local function put_back(was)
  if redis.call("EXISTS", former_key()) == 0 then
    return false
  end
  local before, word = scopes_of(key), redis.call("HGET", key, "rerun")
  redis.call("RENAME", former_key(), key)
  local old = redis.call(
    "HMGET", key, "status", "finished", "hooks", "kind", "hook", "log_level", "rerun"
  )
  if word then
    -- The message that runs the job again may come after all, and must not.
    redis.call("HSET", key, "rerun", old[7] or "")
  end
  -- Its hook's message may have been dropped meanwhile, as that end was not there. If not, a second
  -- one runs nothing.
  local untold = old[5] ~= OVER and untold_in(old[3], old[4], old[1])
  if untold then
    redis.call("HSET", key, "untold", "1")
    redis.call("HDEL", key, "hook")
  end
  redis.call("PEXPIRE", key, int(life_after(untold)))
  renew(old[6], true)
  place(key, was, old[1], (tonumber(old[2]) or time()) * 1000, nil, before)
  for _, scope in ipairs(before) do
    move(scope, string.sub(key, -36), "again", nil)
  end
  if untold then
    enter(key, untold, micros())
  end
  return true
end

-- Whether a run ever owned the record, given the tokens of its last and earlier runs. If
-- not, the record is older than the run: the store has lost the changes in between.
local function knows(token, run, past)
  return run == token or string.find(" " .. (past or "") .. " ", " " .. token .. " ", 1, true)
end

-- The replies to a run: it owns the record; it does, and cancellation was requested, which
-- decides how the job ends unless it succeeds; a newer run owns the record; the record is
-- missing, or older than the update that the run builds on; the job is cancelled or deleted, and
-- stays so; the job is to run from another message; the job needs its claim to run again.
local OK, CANCELLING = 1, 2
local FENCED, MISSING, CANCELLED, STALE, UNCLAIMED = -1, 0, -2, -3, -4

-- The reply to an end with a status, if the job is cancelled.
local function stopped(status)
  return status == "cancelled" and OK or CANCELLING
end

-- Read the record for a run. Returns its status, run, past and seq, what scopes_of() needs, its
-- hooks, and the other fields that are named.
-- Also returns the reply if the run may not write because it does not own the record, or because
-- the record lacks the update `base` that the run builds on.
local function read_for(token, base, ...)
  local old = redis.call(
    "HMGET", key, "status", "run", "past", "seq", "kind", "actor", "owner", "batch", "hooks", ...
  )
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

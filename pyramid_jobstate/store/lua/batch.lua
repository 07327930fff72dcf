-- Prepended, after common.lua, to the scripts that change the record of a batch.
-- KEYS: the record, its members, those that failed, and the order in which they were sent.
-- Of each member is kept, in a hash: a letter for its status, the number of its change that
-- was told last, how much of it is done, in millionths, its weight in thousandths, and its
-- place in the order.

-- The letters: n is being sent, q waits, r waits for another attempt, w runs, s has
-- succeeded, e has failed, x could not be sent and counts as failed, c was cancelled.
local function waits(letter)
  return letter == "n" or letter == "q" or letter == "r"
end

-- Read what is kept of a member. Returns nothing if the job is not a member.
local function member(uuid)
  local kept = redis.call("HGET", KEYS[2], uuid)
  if kept then
    local letter, rev, part, weight, number = string.match(kept, "^(%a) (%d+) (%d+) (%d+) (%d+)$")
    return letter, tonumber(rev), tonumber(part), tonumber(weight), number
  end
end

-- Add to a number, which another program may have overwritten.
local function add(field, number)
  local sum = redis.pcall("HINCRBY", key, field, int(number))
  if type(sum) == "table" or sum < 0 then
    redis.call("HSET", key, field, int(math.max(0, number)))
  end
end

-- Keep a member, and count it under its letter. What another program has overwritten must not
-- stop a script half way.
local function keep(uuid, old, letter, rev, part, weight, number)
  local from, to = old == "x" and "e" or old, letter == "x" and "e" or letter
  if from ~= to then
    if from then
      add("n:" .. from, -1)
    end
    add("n:" .. to, 1)
    if to == "e" then
      redis.pcall("ZADD", KEYS[3], number, uuid)
    elseif from == "e" then
      redis.pcall("ZREM", KEYS[3], uuid)
    end
  end
  local kept = { letter, int(rev), int(part), int(weight), number }
  redis.call("HSET", KEYS[2], uuid, table.concat(kept, " "))
end

-- What settle() has changed: nothing, the batch has ended, it goes on, it has another
-- status, it has to be listed anew.
local SAME, ENDED, REOPENED_BATCH, MOVED, AGED = 0, 1, 2, 3, 4

-- Write the status that follows from the counts, and let the record live for as long as it
-- needs to. Returns what has changed, the status, and the milliseconds until the last of its
-- members is due that wait.
local function settle(now, active_ttl, ended_ttl)
  local old = redis.call(
    "HMGET", key, "n:n", "n:q", "n:r", "n:w", "n:s", "n:e", "n:c", "size",
    "status", "stopped", "forced", "allow", "latest", "started", "finished", "seen", "listed"
  )
  local n = {}
  for i = 1, 8 do
    n[i] = tonumber(old[i]) or 0
  end
  local waiting, running, failed = n[1] + n[2] + n[3], n[4], n[6]
  local over, size = n[5] + failed + n[7], n[8]
  local stopped, was_over = old[10], old[15]
  local is_over = over == size or (stopped and (running == 0 or old[11]))
  local has_begun = n[3] + running + over > 0
  local status
  if stopped and was_over then
    -- Pages have acted on that, whatever its members still do.
    is_over, status = true, old[9]
  elseif not is_over then
    status = stopped and "cancelling" or has_begun and "working" or "queued"
  elseif failed > 0 and not old[12] then
    status = "error"
  else
    status = size > n[5] + failed and "cancelled" or "success"
  end
  if status ~= old[9] then
    redis.call("HSET", key, "status", status)
  end
  if has_begun and not old[14] then
    redis.call("HSET", key, "started", int(now))
  end
  -- What it reads once it is silent: see Record.read().
  local silent = not is_over and (running + n[1] > 0 and "w" or n[3] > 0 and "r")
  if silent and silent ~= old[16] then
    redis.call("HSET", key, "seen", silent)
  elseif old[16] and not silent then
    redis.call("HDEL", key, "seen")
  end
  if is_over and not was_over then
    redis.call("HSET", key, "finished", int(now))
  elseif was_over and not is_over then
    -- The bar starts anew.
    redis.call("HDEL", key, "finished", "held")
    redis.call("HSET", key, "listed", int(now))
  end
  -- Another program may have written it.
  local due = math.min(math.max(0, (tonumber(old[13]) or 0) - now), 2 ^ 50)
  local life = active_ttl + due
  if over == size then
    life = ended_ttl
  else
    life = math.max(life, redis.call("PTTL", key))
  end
  for i = 1, #KEYS do
    redis.call("PEXPIRE", KEYS[i], int(life))
  end
  if is_over ~= (was_over and true or false) then
    return is_over and ENDED or REOPENED_BATCH, status, int(due)
  end
  if not is_over and now + due - (tonumber(old[17]) or now) > active_ttl / 2 then
    redis.call("HSET", key, "listed", int(now + due))
    return AGED, status, int(due)
  end
  if status ~= old[9] then
    return is_over and ENDED or MOVED, status, int(due)
  end
  return SAME, status, int(due)
end

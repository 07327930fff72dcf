-- Prepended to the scripts that change the record of a batch.
-- Of each member is kept, in a hash: a letter for its status, the number of its change that
-- was told last, how much of it is done, in millionths, its weight in thousandths, and its
-- place in the order.

-- The keys of the batch: the record, its members, those that failed, and the order in which they
-- were sent.
local batch = KEYS

-- The fields of the record that change with its members, by name, and the names of those that are
-- to be written; one without a value is to be removed.
local record, changed = {}, {}

local NAMES = {
  "status", "stopped", "forced", "allow", "size", "latest", "weight", "sum", "held", "updated",
  "started", "finished", "seen", "listed", "kind", "hooks", "untold", "hook", "n:n", "n:q", "n:r",
  "n:w", "n:s", "n:e", "n:c",
}

local function read_batch()
  for i, value in ipairs(redis.call("HMGET", batch[1], unpack(NAMES))) do
    record[NAMES[i]] = value
  end
  return record
end

local function set(name, value)
  record[name], changed[name] = value, true
end

-- A number of the record. Another program may have overwritten it.
local function number(name)
  return math.max(0, tonumber(record[name]) or 0)
end

-- The letters: n is being sent, q waits, r waits for another attempt, w runs, s has
-- succeeded, e has failed, x could not be sent and counts as failed, c was cancelled.
local function waits(letter)
  return letter == "n" or letter == "q" or letter == "r"
end

local LETTERS = {
  sending = "n", waiting = "q", queued = "q", retrying = "r", working = "w", cancelling = "w",
  success = "s", error = "e", cancelled = "c",
}

-- What is kept of a member, or nothing if the job is not a member.
local function parse(kept)
  local pattern = "^(%a) (%d+) (%d+) (%d+) (%d+)$"
  local letter, rev, part, weight, place = string.match(kept or "", pattern)
  return letter, tonumber(rev), tonumber(part), tonumber(weight), place
end

local function member(uuid)
  return parse(redis.call("HGET", batch[2], uuid))
end

-- What to keep of a member.
local function kept(letter, rev, part, weight, place)
  return table.concat({ letter, int(rev), int(part), int(weight), place }, " ")
end

-- Count a member under another letter.
local function count(old, letter)
  local from, to = old == "x" and "e" or old, letter == "x" and "e" or letter
  if from ~= to then
    if from then
      set("n:" .. from, int(math.max(0, number("n:" .. from) - 1)))
    end
    set("n:" .. to, int(number("n:" .. to) + 1))
  end
end

-- Write the record with the status that follows from the counts, and let it live for as long as
-- it needs to. Returns the status.
--   has_grown  whether one of the keys may be new
local function settle(now, has_grown)
  local waiting = number("n:n") + number("n:q") + number("n:r")
  local running, failed = number("n:w"), number("n:e")
  local over, size = number("n:s") + failed + number("n:c"), number("size")
  local was, stopped, was_over = record.status, record.stopped, record.finished
  local is_over = over == size or (stopped and (running == 0 or record.forced))
  local has_begun = number("n:r") + running + over > 0
  local status
  if stopped and was_over then
    -- Pages have acted on that, whatever its members still do.
    is_over, status = true, was
  elseif not is_over then
    status = stopped and "cancelling" or has_begun and "working" or "queued"
  elseif failed > 0 and not record.allow then
    status = "error"
  else
    status = size > number("n:s") + failed and "cancelled" or "success"
  end
  if status ~= was then
    set("status", status)
  end
  if has_begun and not record.started then
    set("started", int(now))
  end
  -- What it reads once it is silent: see Record.read().
  local silent = not is_over and (running + number("n:n") > 0 and "w" or number("n:r") > 0 and "r")
  if silent and silent ~= record.seen then
    set("seen", silent)
  elseif record.seen and not silent then
    set("seen", false)
  end
  -- Another program may have written it.
  local due = math.min(math.max(0, number("latest") - now), 2 ^ 50)
  local at, is_aged, untold = micros() + due * 1000, false, nil
  if status ~= was and record.untold then
    leave(batch[1])
    record.untold = nil
  end
  if status ~= was and record.hook then
    set("hook", false)
  end
  if is_over and status ~= was then
    -- If it was over, it has gone on meanwhile: a member has run again.
    set("finished", int(now))
    untold = untold_in(record.hooks, record.kind, status)
    if untold then
      set("untold", "1")
    end
  elseif was_over and not is_over then
    -- The bar starts anew.
    set("finished", false)
    set("held", false)
  end
  if is_over then
    at = micros()
  elseif was_over or now + due - (tonumber(record.listed) or now) > ACTIVE_TTL / 2 then
    set("listed", int(now + due))
    is_aged = not was_over
  end
  local words, gone = {}, {}
  for name in pairs(changed) do
    if record[name] then
      add(words, name, record[name])
    else
      gone[#gone + 1] = name
    end
  end
  if words[1] then
    redis.call("HSET", batch[1], unpack(words))
  end
  if gone[1] then
    redis.call("HDEL", batch[1], unpack(gone))
  end
  local life, left = ACTIVE_TTL + due, redis.call("PTTL", batch[1])
  if has_grown or over == size or left < life then
    -- It lives longer than it needs to, so that this is rarely written.
    life = over == size and life_after(record.untold) or life + ACTIVE_TTL / 8
    for i = 1, #batch do
      redis.call("PEXPIRE", batch[i], int(life))
    end
  end
  if is_aged or status ~= was then
    place(batch[1], was, status, at, nil, nil, is_aged)
  end
  if untold then
    enter(batch[1], untold, micros())
  end
  return status
end

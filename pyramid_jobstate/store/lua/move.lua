-- Writes the lists. What another program has written there, or the server refuses, must not stop a
-- script half way.

local fault
local moves = {}

-- In a script that changes many jobs: for how long each set lives, and which kinds are listed, so
-- that this is asked once.
local known

-- Run a command on a list. Returns its reply, or nothing if it fails.
local function try(name, set, ...)
  local reply = redis.pcall(name, set, ...)
  if type(reply) == "table" and reply.err then
    fault = fault or { set, reply.err }
    return nil
  end
  return reply
end

-- List a member in a set of a scope, and then no longer in another one; nil stands for none.
-- Its score, in microseconds, is `at`, or what it has there if that is at most `slack`
-- milliseconds less. Without slack it is `at`. Returns the score.
local function move(scope, member, from, to, at, ttl, slack)
  if to then
    local set = scope .. to
    local score = slack and from and tonumber(try("ZSCORE", scope .. from, member) or nil)
    -- A higher score is that of a job that was not due yet, or another program's.
    if score and score >= at - slack * 1000 and score <= at then
      at = score
    end
    if not try("ZADD", set, int(at), member) then
      return at
    end
    local life = ttl + math.ceil(math.max(0, at - micros()) / 1000)
    local is_old = not (known and known[set] and known[set] >= life)
    if is_old then
      -- A set lives longer than it needs to, so that this is rarely written.
      is_old = (try("PTTL", set) or 0) < life
      if is_old then
        try("PEXPIRE", set, int(life + ttl / 8))
      end
      if known then
        known[set] = life
      end
    end
    if is_old or micros() % 16 == 0 then
      -- Remove a few of the entries that are older than the ttl.
      local old = try("ZCOUNT", set, "-inf", "(" .. int(micros() - ttl * 1000)) or 0
      if old > 0 then
        try("ZREMRANGEBYRANK", set, 0, math.min(old, 100) - 1)
      end
    end
  end
  if from and from ~= to then
    try("ZREM", scope .. from, member)
  end
  return at
end

-- List a kind. That is written once in a minute.
local function note(space, kind, at, ttl)
  if known and known[kind] and known[kind] >= at then
    return
  end
  local score = tonumber(try("ZSCORE", space .. "kinds", kind) or nil)
  if not score or score < at - 60000000 then
    move(space, kind, nil, "kinds", at, ttl)
  end
  if known then
    known[kind] = at + 60000000
  end
end

-- Whether a batch was cancelled.
local function is_stopped(record)
  return type(redis.pcall("HGET", record, "stopped")) == "string"
end

-- Whether a set no longer lists a job.
local function has_left(set, uuid)
  return not try("ZSCORE", set, uuid)
end

-- Whether one of some sets lists a job.
local function are_used(sets)
  return try("EXISTS", unpack(sets)) ~= 0
end

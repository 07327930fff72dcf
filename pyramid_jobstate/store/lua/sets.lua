-- Where jobs are listed.
--
-- A job is listed in some scopes: among all jobs, those of its class or actor, and those of its
-- owner. Each scope has a sorted set for each status. The scores of unfinished jobs are the times
-- when they were queued or are due, those of ended jobs the times of their ends, in microseconds.
-- The members of a batch have sets of their own, but none of an owner: there, the batch stands for
-- them.

local function is_running(status)
  return status == "working" or status == "cancelling"
end

local function is_unfinished(status)
  return is_running(status) or status == "waiting" or status == "sending" or status == "queued"
    or status == "retrying"
end

local function is_finished(status)
  return status == "success" or status == "error" or status == "cancelled"
end

-- The name of the set of a status, as it is stored, or nil.
local function set_of(status)
  if status == "waiting" or status == "sending" then
    return "queued"
  end
  return (is_unfinished(status) or is_finished(status)) and status or nil
end

local function space_of(record)
  return string.sub(record, 1, -37)
end

-- The name of a class, an actor or an owner in a scope. A brace would end the hash tag of its
-- keys: see Sets.scope() in lists.py.
local function escape(name)
  return (string.gsub(name, "[%%}:]", function(c)
    return string.format("%%%02X", string.byte(c))
  end))
end

-- What the names of the sets begin with that list a job: its scopes. Also returns its kind.
--   facts  its kind, actor, owner and batch, by default those of its record
local function scopes_of(record, facts)
  facts = facts or redis.call("HMGET", record, "kind", "actor", "owner", "batch")
  local kind, actor, owner, batch = unpack(facts)
  local is_member = batch and batch ~= "*"
  local first, last = space_of(record) .. OPEN, CLOSE .. (is_member and ":members:" or ":")
  -- The name of its kind is that of its class or, if its actor has none, of its actor.
  local what, name = "class:", kind or ""
  if kind == "JobState" and batch ~= "*" and actor and actor ~= "" then
    what, name = "actor:", actor
  end
  local scopes = { first .. "all" .. last, first .. what .. escape(name) .. last }
  if owner and not is_member then
    scopes[3] = first .. "owner:" .. escape(owner) .. last
  end
  return scopes, what .. name
end

-- List a job that is due at a time as one that is being sent; without the time, no longer.
local function mark(record, due)
  local from, to = not due and "unsent" or nil, due and "unsent" or nil
  move(space_of(record), string.sub(record, -36), from, to, due, ACTIVE_TTL)
end

-- List a job where its record says, in place of where it says that it was. `at` is its score;
-- among the unfinished jobs, and among the ended ones, it keeps its place for half its ttl.
--   was, is  the statuses before and after
--   facts    see scopes_of()
--   before   its scopes before, if they may be others
--   anew     whether it does not keep its place
local function place(record, was, is, at, facts, before, anew)
  local uuid, from, to = string.sub(record, -36), set_of(was), set_of(is)
  local ttl = is_finished(is) and ENDED_TTL or ACTIVE_TTL
  local keeps = not anew and is_finished(was) == is_finished(is)
  local slack = keeps and ttl / 2 or nil
  at = at and math.min(at, 2 ^ 53)
  if is == "sending" or was == "sending" then
    mark(record, is == "sending" and at)
  end
  local scopes, kind = scopes_of(record, facts)
  for _, scope in ipairs(before or {}) do
    if scope ~= scopes[1] and scope ~= scopes[2] and scope ~= scopes[3] then
      move(scope, uuid, from, nil)
    end
  end
  if is_finished(was) and is_unfinished(is) then
    -- Among the ended jobs it leaves a trace, for those who are paging there: the top of the list
    -- is behind them.
    for _, scope in ipairs(scopes) do
      move(scope, uuid, from, "again", at, ENDED_TTL, 2 ^ 53)
    end
  end
  local top = at
  for _, scope in ipairs(scopes) do
    -- All scopes take the score of the first one; on a Cluster, each finds its own.
    at, slack = move(scope, uuid, from, to, at, ttl, slack)
  end
  if to and at == top and (is_unfinished(is) or not was) then
    -- It may be listed for long from now on, and so is its kind.
    note(space_of(record), kind, math.max(at, micros()), ACTIVE_TTL + ENDED_TTL)
  end
end

local SETS = "queued working retrying cancelling success error cancelled again"

-- Remove a job whose record was lost from all sets that may list it.
local function leave_all(record)
  local uuid = string.sub(record, -36)
  for _, scope in ipairs(scopes_of(record)) do
    for set in string.gmatch(SETS, "%l+") do
      move(scope, uuid, set, nil)
    end
  end
  mark(record)
end

-- Remove a job that was not sent from the lists, and its kind if it has no other job.
local function withdraw(record, status)
  place(record, status, nil)
  local scopes, kind = scopes_of(record)
  local scope, sets = string.gsub(scopes[2], "members:$", ""), {}
  for set in string.gmatch(SETS, "%l+") do
    sets[#sets + 1] = scope .. set
    sets[#sets + 1] = scope .. "members:" .. set
  end
  if not are_used(sets) then
    move(space_of(record), kind, "kinds", nil)
  end
end

-- The score of a job in a set that does not list it yet, according to its record.
local function time_in(status)
  local times = redis.call("HMGET", key, "finished", "due", "queued")
  local at = is_finished(status) and times[1] or times[2] or times[3]
  return (tonumber(at) or time()) * 1000
end

-- Announce to all workers that a job is to stop, of which they learn later from the reply to a
-- heartbeat; or, with the prefix "where:", that it is asked where it is.
local function announce(record, prefix)
  local member = (prefix or "") .. string.sub(record, -36)
  move(space_of(record), member, nil, "cancels", micros(), 60000)
end

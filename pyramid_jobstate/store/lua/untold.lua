-- The ends of jobs and batches that are to be told to hooks of their classes. A record with hooks
-- has a field `hooks`, a JSON array: the first letters of the statuses that are to be told, the
-- queue of the message that tells them, and more that concerns the worker. While its end is not
-- told, it has a field `untold`, and stands in a sorted set of its queue and kind, with the time
-- in microseconds from which a worker may send the message. The names of these sets stand in a set.
-- Once the hook has begun, the field `hook` holds the id of that message, and OVER once it has
-- returned or was given up, until the job goes on.

local OVER = "over"

local HOOKS = '^%["(%l+)","([^"\\]+)"'

-- What the name of the set ends with that a job enters as it ends with a status, or nothing if
-- that is not told.
local function untold_in(hooks, kind, status)
  local letters, queue = string.match(hooks or "", HOOKS)
  local letter = is_finished(status) and string.sub(status, 1, 1)
  if letters and letter and string.find(letters, letter, 1, true) then
    return queue .. ":" .. escape(kind or "")
  end
end

-- For how long a record lives that has ended. `is_untold`: whether hooks are to be told of its end.
local function life_after(is_untold)
  return is_untold and math.max(ACTIVE_TTL, ENDED_TTL) or ENDED_TTL
end

-- Enter a job in a set, with the time from which its end may be told. What is wrong with the set
-- must not stop a script half way: the worker that has written the end tells it all the same.
local function enter(record, set, at)
  local names = space_of(record) .. "untold"
  local key, life = names .. ":" .. set, int(2 * life_after(set))
  try("ZADD", key, int(at), string.sub(record, -36))
  try("PEXPIRE", key, life)
  try("SADD", names, set)
  try("PEXPIRE", names, life)
end

-- The end of a job is told, or will not be.
local function leave(record)
  local old = redis.call("HMGET", record, "hooks", "kind")
  local _, queue = string.match(old[1] or "", HOOKS)
  redis.call("HDEL", record, "untold")
  if queue then
    local key = space_of(record) .. "untold:" .. queue .. ":" .. escape(old[2] or "")
    try("ZREM", key, string.sub(record, -36))
  end
end

-- A job that failed is about to run again. KEYS: the record, what is kept of its failure.
-- ARGV: a word that identifies this request and the only message that may run the job from now
-- on, the deadline of a unique job, the queue of that message, then the names of the fields to
-- keep.
-- The record is set aside: see put_back().
-- Returns 1 if the job was queued, by this call or by the same call before, whose reply was
-- lost; 0 if the job has not failed, is being sent, or is unknown, or its message is not kept;
-- -1 after the deadline.

local old = redis.call("HMGET", key, "status", "updated", "rerun", "run", "past", "untold", "log_level")
local status, now = old[1], time()
if status == "sending" and old[3] == ARGV[1] then
  -- On a Cluster, the lists may have missed the first reply.
  place(key, nil, status, time_in(status))
  return 1
end
-- A job that was never confirmed holds its message if a process died while it was rerun.
local is_rerun = old[3] and old[3] ~= ""
local is_lost = status == "sending" and is_rerun and is_silent(old[2], now)
if status ~= "error" and not is_lost then
  return 0
end
if not redis.call("HGET", KEYS[2], "message") then
  return 0
end
if is_late(ARGV[2], now) then
  return -1
end
if is_lost then
  -- Whoever was about to send it may only have stood still: its message runs nothing.
  local lost = old[3] .. " " .. (redis.call("HGET", KEYS[2], "lost") or "")
  redis.call("HSET", KEYS[2], "lost", string.sub(lost, 1, 51))
end
local words = {}
for i, value in ipairs(redis.call("HMGET", key, unpack(ARGV, 4))) do
  if value then
    add(words, ARGV[i + 3], value)
  end
end
add_all(words, { "status", "sending", "updated", int(now), "rerun", ARGV[1], "attempt", "0" }, 1)
add(words, "queue", ARGV[3])
add(words, "past", earlier(old[4], old[5]))
if old[6] then
  leave(key)
end
if is_lost then
  redis.call("DEL", key)
else
  redis.call("RENAME", key, former_key())
end
write(words)
redis.call("PEXPIRE", key, int(ACTIVE_TTL))
renew(old[7], true)
place(key, status, "sending", micros())
return 1

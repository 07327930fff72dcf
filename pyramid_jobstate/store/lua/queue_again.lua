-- The message of an ended job is put back in the queue.
-- ARGV: ttl, delay, status, sender, then the fields, the token that create.lua returned, and
-- last the deadline of a unique job. Returns 1 if the job was queued again, by this call or by the same call before,
-- whose reply was lost; 0 if the job has changed since.

local old = redis.call("HMGET", key, "status", "run", "owner", "past", "asked", "rerun")
local deadline, token = table.remove(ARGV), table.remove(ARGV)
local status = old[1]
if status == "sending" then
  return 1
end
if not is_finished(status) or was_cancelled(status, old[5]) or (old[2] or "") ~= token then
  return 0
end
if is_late(deadline, time()) then
  return 0
end
redis.call("DEL", key)
create()
redis.call("HSET", key, "past", earlier(old[2], old[4]))
if old[3] then
  redis.call("HSET", key, "owner", old[3])
end
if old[6] == "" then
  -- A message that the broker has refused may still come: see restore.lua.
  redis.call("HSETNX", key, "rerun", "")
end
return 1

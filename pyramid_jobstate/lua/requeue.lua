-- The message of a job that has ended is put back in the queue.
-- ARGV: ttl, delay, status, then the fields, the last of them the token that create.lua told.
-- Returns 1 if the job is queued anew, 0 if something has happened to it since.

local old = redis.call("HMGET", key, "status", "run", "owner", "past")
local token = table.remove(ARGV)
if (old[1] ~= "success" and old[1] ~= "error") or (old[2] or "") ~= token then
  return 0
end
redis.call("DEL", key)
create()
redis.call("HSET", key, "past", earlier(old[2], old[4]))
if old[3] then
  redis.call("HSET", key, "owner", old[3])
end
return 1

-- The message of a job that has ended is put back in the queue.
-- ARGV: ttl, delay, status, sender, then the fields, the last of them the token that create.lua told.
-- Returns 1 if the job is queued anew, by this call or by the same one before, whose reply
-- was lost; 0 if something else has happened to it since.

local old = redis.call("HMGET", key, "status", "run", "owner", "past", "asked")
local status, token = old[1], table.remove(ARGV)
if status == "sending" then
  return 1
end
if not status or is_unfinished(status) or was_cancelled(status, old[5]) or (old[2] or "") ~= token then
  return 0
end
redis.call("DEL", key)
create()
redis.call("HSET", key, "past", earlier(old[2], old[4]))
if old[3] then
  redis.call("HSET", key, "owner", old[3])
end
return 1

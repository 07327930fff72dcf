-- A job that was written is not sent after all. ARGV: sender.
-- Returns 1 if it is forgotten, 0 if something has happened to it since, or if another
-- has written it.

local status = redis.call("HGET", key, "status")
if (status ~= "sending" and status ~= "waiting") or not is_of(ARGV[1]) then
  return 0
end
return redis.call("DEL", key)

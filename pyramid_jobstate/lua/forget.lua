-- A job that was written is not sent after all. Returns 1 if it is forgotten, 0 if
-- something has happened to it since.

local status = redis.call("HGET", key, "status")
if status ~= "sending" and status ~= "waiting" then
  return 0
end
return redis.call("DEL", key)

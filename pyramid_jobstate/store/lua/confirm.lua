-- The broker has accepted the message. ARGV: the word of the last request to run the job again
-- that the message knows of ("" for none).
-- Returns 1 if the job was being sent with this message, else 0.

local old = redis.call("HMGET", key, "status", "rerun")
if old[1] ~= "sending" or (old[2] and old[2] ~= ARGV[1]) then
  return 0
end
redis.call("HSET", key, "status", "queued")
mark(key)
return 1

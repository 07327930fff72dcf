-- The broker has accepted the message. ARGV: the word of the last request to run the job again
-- that the message knows of ("" for none), sender.
-- Returns 1 if the job was being sent with this message, else 0: the job may have ended since, and
-- be about to be put back by a sender that dies first.

local old = redis.call("HMGET", key, "status", "rerun", "resender")
if old[1] ~= "sending" or (old[2] and old[2] ~= ARGV[1]) or (old[3] and old[3] ~= ARGV[2]) then
  return 0
end
redis.call("HSET", key, "status", "queued")
mark(key)
return 1

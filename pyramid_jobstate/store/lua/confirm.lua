-- The broker has accepted the message. Returns 1 if the job was being sent, else 0.

if redis.call("HGET", key, "status") ~= "sending" then
  return 0
end
redis.call("HSET", key, "status", "queued")
return 1

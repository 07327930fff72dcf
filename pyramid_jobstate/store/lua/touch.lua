-- The message of a job with a record is about to leave: a sign of life of its sender.
-- ARGV: sender. Returns 1, or 0 if the job has changed since.

if redis.call("HGET", key, "status") ~= "sending" or not is_of(ARGV[1]) then
  return 0
end
redis.call("HSET", key, "updated", int(time()))
return 1

-- A hook of a job has returned, or Dramatiq has given up. KEYS: the record, and what is kept beside
-- it. ARGV: when the job ended.
-- The message of a cancelled job may still come, and must find the record.

local old = redis.call("HMGET", key, "status", "finished")
if is_finished(old[1]) and old[1] ~= "cancelled" and old[2] == ARGV[1] then
  for _, each in ipairs(KEYS) do
    redis.call("PEXPIRE", each, int(ENDED_TTL))
  end
end
return 1

-- The broker has accepted the message that tells the end of a job. ARGV: when the job ended.
-- Returns 1, or 0 if it has another end or none now.

local old = redis.call("HMGET", key, "untold", "finished")
if not old[1] or old[2] ~= ARGV[1] then
  return 0
end
leave(key)
return 1

-- A hook of a job has returned, or Dramatiq has given up. ARGV: when the job ended, the id of the
-- message that tells this end, "1" if Dramatiq has given up, perhaps before the hook began.
-- The messages of a cancelled job or of a cancelled batch may still come, and must find the record.
-- So must that of a hook which is tried again, if another message for its end has run nothing.

local old = redis.call("HMGET", key, "status", "finished", "stopped", "untold", "hook")
local hook = old[5] or (ARGV[3] == "1" and ARGV[2])
if not is_finished(old[1]) or old[2] ~= ARGV[1] or not hook then
  return 0
end
if not old[4] and hook == ARGV[2] then
  redis.call("HSET", key, "hook", OVER)
end
local is_awaited = old[4] or (hook ~= ARGV[2] and hook ~= OVER)
if not (is_awaited or old[1] == "cancelled" or old[3]) then
  redis.call("PEXPIRE", key, int(ENDED_TTL))
  renew_all()
end
return 1

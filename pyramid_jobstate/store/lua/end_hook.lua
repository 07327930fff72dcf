-- A hook of a job has returned, or Dramatiq has given up. KEYS: the record, and what is kept beside
-- it. ARGV: when the job ended, the id of the message that tells this end.
-- The messages of a cancelled job or of a cancelled batch may still come, and must find the record.
-- So must that of a hook which is tried again, if another message for its end has run nothing.

local old = redis.call("HMGET", key, "status", "finished", "stopped", "untold", "hook")
local is_begun_by_other = old[5] and old[5] ~= ARGV[2]
local is_awaited = old[1] == "cancelled" or old[3] or old[4] or is_begun_by_other
if is_finished(old[1]) and old[2] == ARGV[1] and not is_awaited then
  for _, each in ipairs(KEYS) do
    redis.call("PEXPIRE", each, int(ENDED_TTL))
  end
end
return 1

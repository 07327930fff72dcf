-- A hook of a job has returned, or Dramatiq has given up. KEYS: the record, and what is kept beside
-- it. ARGV: when the job ended.
-- The messages of a cancelled job or of a cancelled batch may still come, and must find the record.

local old = redis.call("HMGET", key, "status", "finished", "stopped", "untold")
local is_cut = old[1] == "cancelled" or old[3]
if is_finished(old[1]) and old[2] == ARGV[1] and not (is_cut or old[4]) then
  for _, each in ipairs(KEYS) do
    redis.call("PEXPIRE", each, int(ENDED_TTL))
  end
end
return 1

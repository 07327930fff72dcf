-- A worker is about to run a hook of a job. ARGV: when the job ended, the id of the message that
-- tells this end.
-- Returns 1 if it may run, 0 if the job has another end or none now, or another message has told
-- this one.

local old = redis.call("HMGET", key, "status", "finished", "hook", "untold")
if not is_finished(old[1]) or old[2] ~= ARGV[1] then
  return 0
end
local hook = old[3] or ""
if hook ~= "" and hook ~= ARGV[2] then
  return 0
end
redis.call("HSET", key, "hook", ARGV[2])
lengthen(life_after(true))
renew_all()
if old[4] then
  leave(key)
end
return 1

-- A hook of a job has failed, and the message is lost that was to try it again: another one is to
-- tell the end. Or the transaction of an empty batch has committed, and nothing has told its end.
-- ARGV: when the job ended, the id of the message ("" for none).

local old = redis.call("HMGET", key, "status", "finished", "hook", "hooks", "kind")
local set = old[2] == ARGV[1] and untold_in(old[4], old[5], old[1])
if not set or (old[3] and old[3] ~= ARGV[2]) then
  return 0
end
redis.call("HSET", key, "untold", "1")
redis.call("HDEL", key, "hook")
lengthen(life_after(set))
renew_all()
enter(key, set, micros())
return 1

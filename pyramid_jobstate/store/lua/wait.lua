-- An earlier step of the job's pipeline is about to run again: let the job wait for its turn,
-- if it was cancelled because that step did not succeed, and nobody has asked to cancel it.
-- Returns 1 if it waits, by this call or an earlier one, -1 if it was deleted, so that its
-- message will run nothing, else 0.

local old = redis.call("HMGET", key, "status", "unreached", "untold", "asked")
if old[1] == "waiting" then
  return 1
end
if old[1] == "deleted" then
  return -1
end
if old[1] ~= "cancelled" or old[4] or not old[2] then
  return 0
end
if old[3] then
  leave(key)
end
redis.call("HSET", key, "status", "waiting", "updated", int(time()))
redis.call("HDEL", key, "error", "finished", "due", "drop", "unreached", "hook")
redis.call("PEXPIRE", key, int(ACTIVE_TTL))
renew_all()
place(key, "cancelled", "waiting", micros())
return 1

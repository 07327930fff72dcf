-- Another job is under way in the place of one that is being sent: turn the record into an
-- alias, which leads to that job. Or renew the alias.
-- ARGV: the uuid of the other job, ttl, sender, the error of a job that was never sent: the
-- sender of this one may have been taken for dead.
-- Returns 1 if the record is the alias, 0 if it has changed since.

local old = redis.call("HMGET", key, "status", "error", "untold")
local status = old[1]
local is_unsent = status == "sending" or (status == "cancelled" and old[2] == ARGV[4])
if is_unsent and is_of(ARGV[3]) then
  if old[3] then
    leave(key)
  end
  place(key, status, nil)
  redis.call("DEL", key)
elseif status ~= "alias" then
  return 0
end
redis.call("HSET", key, "status", "alias", "target", ARGV[1], "updated", int(time()))
lengthen(ARGV[2])
return 1

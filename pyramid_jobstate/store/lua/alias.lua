-- Another job is under way in the place of one that is being sent: turn the record into an
-- alias, which leads to that job. Or renew the alias.
-- ARGV: the uuid of the other job, ttl, sender.
-- Returns 1 if the record is the alias, 0 if it has changed since.

local status = redis.call("HGET", key, "status")
if status == "sending" and is_of(ARGV[3]) then
  redis.call("DEL", key)
elseif status ~= "alias" then
  return 0
end
redis.call("HSET", key, "status", "alias", "target", ARGV[1], "updated", int(time()))
lengthen(ARGV[2])
return 1

-- A batch knows of a later change of a member than its record: the store has lost the
-- record, or its server's clock has gone back. ARGV: the number of the change that the batch
-- knows.
-- Numbers the last change of the record above that, and returns the number and the status;
-- returns nothing if the record is missing or not behind.

local old = redis.call("HMGET", key, "rev", "status")
if not old[2] or (tonumber(old[1]) or 0) >= tonumber(ARGV[1]) then
  return {}
end
local rev = int(ARGV[1] + 1)
redis.call("HSET", key, "rev", rev)
return { rev, old[2] }

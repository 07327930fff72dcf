-- A job with a record was not sent after all: delete the record. ARGV: sender.
-- Returns 1 if the record was deleted, 0 if it has changed since or is another sender's.

local status = redis.call("HGET", key, "status")
if (status ~= "sending" and status ~= "waiting") or not is_of(ARGV[1]) then
  return 0
end
withdraw(key, status)
return redis.call("DEL", key)

-- A job was not sent after all: bring back the record that was set aside, or delete the new one.
-- ARGV: sender.
-- Returns 1, or 0 if the record has changed since or is another sender's.

local status = redis.call("HGET", key, "status")
if (status ~= "sending" and status ~= "waiting") or not is_of(ARGV[1]) then
  return 0
end
if put_back(status) then
  return 1
end
withdraw(key, status)
return redis.call("DEL", key)

-- A batch was not sent after all: delete it. ARGV: sender.
-- Returns 1 if it was deleted, 0 if it has changed since or is another sender's.

local old = redis.call("HMGET", key, "status", "size")
local is_new = old[1] == "queued" or (old[1] == "success" and not old[2])
if not is_new or not is_of(ARGV[1]) then
  return 0
end
withdraw(key, old[1])
return redis.call("DEL", unpack(KEYS)) > 0 and 1 or 0

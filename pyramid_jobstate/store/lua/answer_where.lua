-- A worker says where a job is. KEYS: the record, and what is known of where it is.
-- ARGV: the run, then the fields.
-- Returns 1, or 0 if the run is over, or was not asked, or has said it before.

local status, run = unpack(redis.call("HMGET", key, "status", "run"))
local asked, taken_at = unpack(redis.call("HMGET", KEYS[2], "run", "taken_at"))
if not is_running(status) or run ~= ARGV[1] or asked ~= ARGV[1] or taken_at then
  return 0
end
redis.call("HSET", KEYS[2], "taken_at", int(time()), unpack(ARGV, 2))
return 1

-- A message was dropped before a run of it began.
-- ARGV: ttl, milliseconds after which a silent run is taken for dead, "1" if the message
-- was not sent, so that a job whose message the broker has is left alone, status, error.
-- Returns OK, or MISSING where there is nothing to be done.

local old = redis.call("HMGET", key, "status", "seen", "run", "past")
local status = old[1]
local now = time()
if ARGV[3] == "1" and status ~= "waiting" and status ~= "sending" then
  return MISSING
end
if not is_unfinished(status) or (is_running(status) and not is_silent(old[2], now, ARGV[2])) then
  -- Over, or another delivery of the message is being worked on.
  return MISSING
end
-- Without a token no run owns the record.
if old[3] then
  redis.call("HDEL", key, "run")
  redis.call("HSET", key, "past", earlier(old[3], old[4]))
end
redis.call("HSET", key, "status", ARGV[4], "error", ARGV[5], "updated", int(now), "finished", int(now))
redis.call("PEXPIRE", key, ARGV[1])
return OK

-- Somebody asks to cancel the job. ARGV: ttl, milliseconds after which a silent run is
-- taken for dead, error, a word that names this request.
-- Returns 2 if it is cancelled, 1 if its worker is told, 0 if it has ended or is unknown.
-- A request that is sent twice is answered twice alike: "asked" keeps its word, and those
-- of the two before. A message
-- whose job was asked to stop is skipped when it comes, so the record must outlive it:
-- a cancel never shortens the record's life.

local old = redis.call("HMGET", key, "status", "seen", "asked")
local status, now = old[1], time()
if old[3] and string.find(old[3], ARGV[4], 1, true) then
  return status == "cancelled" and 2 or 1
end
if not is_unfinished(status) then
  return 0
end
redis.call("HSET", key, "asked", string.sub(ARGV[4] .. " " .. (old[3] or ""), 1, 26))
if is_running(status) and not is_silent(old[2], now, ARGV[2]) then
  redis.call("HSET", key, "status", "cancelling")
  return 1
end
-- Its run, if it still lives, is told with its next update: the token stays.
redis.call("HSET", key, "status", "cancelled", "error", ARGV[3], "updated", int(now), "finished", int(now))
lengthen(ARGV[1])
return 2

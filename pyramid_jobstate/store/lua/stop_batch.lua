-- Cancel a batch: its members learn of that with their next report, or before they run.
-- ARGV: ttl of an unfinished batch, ttl of an ended one, milliseconds of silence after which
-- its running members count as dead, error, a word that identifies this request.
-- Returns 2 if the batch is now cancelled, 1 if members are yet to stop, 0 if it has ended or
-- is unknown. A repeated request gets the same reply: "asked" keeps its word and those of the
-- two requests before it.

local old = redis.call("HMGET", key, "status", "stopped", "asked", "updated", "n:w")
local now = time()
if old[3] and string.find(old[3], ARGV[5], 1, true) then
  return is_finished(old[1]) and 2 or 1
end
if not is_unfinished(old[1]) then
  return 0
end
redis.call(
  "HSET", key, "stopped", old[2] or int(now),
  "asked", string.sub(ARGV[5] .. " " .. (old[3] or ""), 1, 26)
)
if is_silent(old[4], now, ARGV[3]) then
  redis.call("HSET", key, "forced", "1")
end
local change = settle(now, tonumber(ARGV[1]), tonumber(ARGV[2]))
if change ~= ENDED then
  return 1
end
redis.call("HSET", key, "updated", int(now))
return 2

-- Choose members of a silent batch to look at: the next ones that have not ended. The
-- record keeps a cursor, so that all have their turn. A cancelled batch may have such
-- members although it has ended.
-- ARGV: milliseconds between two looks, the most members to choose, the most members to go
-- through.
-- Returns for each its uuid, its letter and the number of the change that was told last.

local old = redis.call("HMGET", key, "status", "updated", "looked", "cursor", "size", "stopped")
local now, found = time(), {}
local most, size = tonumber(ARGV[2]), tonumber(old[5]) or 0
local is_open = is_unfinished(old[1]) or (is_finished(old[1]) and old[6])
local is_early = now - (tonumber(old[3]) or 0) <= tonumber(ARGV[1])
if not is_open or not is_silent(old[2], now) or is_early then
  return found
end
local at = tonumber(old[4]) or 0
at = at < size and at or 0
for _, uuid in ipairs(redis.call("LRANGE", batch[4], int(at), int(at + ARGV[3] - 1))) do
  at = at + 1
  local letter, rev = member(uuid)
  if letter == "w" or waits(letter) then
    found[#found + 1] = uuid
    found[#found + 1] = letter
    found[#found + 1] = int(rev)
    if #found == 3 * most then
      break
    end
  end
end
redis.call("HSET", key, "looked", int(now), "cursor", int(at))
return found

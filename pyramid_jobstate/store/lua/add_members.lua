-- Jobs are about to be sent as members of a batch. ARGV: ttl of an unfinished batch, ttl of
-- an ended one, the running member that sends them ("" for the sender of the batch), then for
-- each its uuid, its letter, its weight in thousandths, and the milliseconds until it is due.
-- Returns what has changed, the status of the batch, its kind and owner, and the milliseconds
-- until it is due, as tell_batch.lua does, then for each member 1 if it was added, 2 if it was
-- added before and was never sent, as far as the batch knows, else 0. Or returns only -1 if
-- the batch is unknown, -2 if it is over, -3 if it was cancelled, -4 if the run of the sender
-- is over.

local old = redis.call("HMGET", key, "status", "stopped", "size", "latest", "kind", "owner")
if not old[1] or (old[1] == "deleted" and not old[2]) then
  return { -1 }
end
if old[2] then
  return { -3 }
end
if not is_unfinished(old[1]) then
  return { -2 }
end
if ARGV[3] ~= "" then
  local letter = member(ARGV[3])
  if not letter then
    return { -1 }
  end
  if not (waits(letter) or letter == "w") then
    return { -4 }
  end
end
local now, replies = time(), {}
local size, latest, weight = tonumber(old[3]) or 0, tonumber(old[4]) or 0, 0
for i = 4, #ARGV, 4 do
  local letter = member(ARGV[i])
  if letter then
    replies[#replies + 1] = (letter == "n" or letter == "x") and 2 or 0
  else
    size = size + 1
    weight = weight + ARGV[i + 2]
    latest = math.max(latest, now + ARGV[i + 3])
    keep(ARGV[i], nil, ARGV[i + 1], 0, 0, ARGV[i + 2], int(size))
    redis.pcall("RPUSH", KEYS[4], ARGV[i])
    replies[#replies + 1] = 1
  end
end
add("weight", weight)
if weight > 0 then
  -- The bar starts anew.
  redis.call("HDEL", key, "held")
end
redis.call("HSET", key, "size", int(size), "latest", int(latest), "updated", int(now))
local change, status, due = settle(now, tonumber(ARGV[1]), tonumber(ARGV[2]))
return { change, status, old[5] or "", old[6] or "", due, unpack(replies) }

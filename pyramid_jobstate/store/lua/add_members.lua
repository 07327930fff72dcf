-- Jobs are about to be sent as members of a batch. ARGV: the running member that sends them (""
-- for the sender of the batch), then for each its uuid, its letter, its weight in thousandths, and
-- the milliseconds until it is due.
-- Returns for each member 1 if it was added, 2 if it was added before and was never sent, as far
-- as the batch knows, else 0. Or returns only -1 if the batch is unknown, -2 if it is over, -3 if
-- it was cancelled, -4 if the run of the sender is over.

read_batch()
if not record.status or (record.status == "deleted" and not record.stopped) then
  return { -1 }
end
if record.stopped then
  return { -3 }
end
if not is_unfinished(record.status) then
  return { -2 }
end
if ARGV[1] ~= "" then
  local letter = member(ARGV[1])
  if not letter then
    return { -1 }
  end
  if not (waits(letter) or letter == "w") then
    return { -4 }
  end
end
local now, replies = time(), {}
local uuids, known, added = {}, {}, {}
for i = 2, #ARGV, 4 do
  uuids[#uuids + 1] = ARGV[i]
end
for i, text in ipairs(redis.call("HMGET", batch[2], unpack(uuids))) do
  known[uuids[i]] = text
end
local size, latest, weight = number("size"), number("latest"), number("weight")
local members, order = {}, {}
for i = 2, #ARGV, 4 do
  local uuid = ARGV[i]
  local letter = parse(known[uuid] or added[uuid])
  if letter then
    replies[#replies + 1] = (letter == "n" or letter == "x") and 2 or 0
  else
    size = size + 1
    weight = weight + ARGV[i + 2]
    latest = math.max(latest, now + ARGV[i + 3])
    added[uuid] = kept(ARGV[i + 1], 0, 0, ARGV[i + 2], int(size))
    add(members, uuid, added[uuid])
    order[#order + 1] = uuid
    count(nil, ARGV[i + 1])
    replies[#replies + 1] = 1
  end
end
if order[1] then
  if weight > number("weight") then
    -- The bar starts anew.
    set("held", false)
  end
  set("weight", int(weight))
  set("size", int(size))
  set("latest", int(latest))
  redis.call("HSET", batch[2], unpack(members))
  redis.pcall("RPUSH", batch[4], unpack(order))
end
set("updated", int(now))
settle(now, true)
return replies

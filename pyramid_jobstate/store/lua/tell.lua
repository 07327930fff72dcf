-- Tells a batch of a change of a member.

-- Whether the batch is to be written, and whether it has a member more that failed.
local has_changed, has_grown

-- Tell the batch, as far as it was read, of a change. Twice, late or out of order, this changes
-- nothing. Returns the number of the change that the batch knows now ("" if it or the member is
-- unknown), 1 if the batch was cancelled, and 1 if it is gone.
--   uuid    the member
--   rev     the number of the change
--   to      the letter of its status
--   part    how much of it is done, in millionths, nil for as much as before
--   delay   milliseconds until it is due
--   seen    when it was last heard of, nil for now
--   known   the number of the change that the batch must know last, or nil: the record of the
--           member is gone, and numbers no change
local function tell(uuid, rev, to, part, delay, seen, known)
  local stopped = record.stopped and 1 or 0
  local letter, last, done, weight, place = member(uuid)
  if not record.status or not letter then
    -- The members of a cancelled batch do not run, even if it was deleted.
    local is_gone = not record.status or (record.status == "deleted" and not record.stopped)
    return { "", stopped, is_gone and 1 or 0 }
  end
  if rev <= last or (known and known ~= last) then
    return { int(last), stopped, 0 }
  end
  local now = time()
  if to ~= "w" then
    part = waits(to) and 0 or 1000000
  elseif record.stopped and waits(letter) then
    -- It will not run.
    to, part = letter, 0
  else
    part = part or (letter == "w" and done or 0)
  end
  if part < done and number("sum") > number("held") then
    -- Hold the bar where it is.
    set("held", record.sum)
  end
  if part ~= done then
    set("sum", int(math.max(0, number("sum") + (part - done) * weight)))
  end
  count(letter, to)
  local is_failed, was_failed = to == "e" or to == "x", letter == "e" or letter == "x"
  if is_failed ~= was_failed then
    if is_failed then
      redis.pcall("ZADD", batch[3], place, uuid)
      has_grown = true
    else
      redis.pcall("ZREM", batch[3], uuid)
    end
  end
  if to ~= letter or to == "w" then
    set("updated", int(math.max(number("updated"), math.min(seen or now, now))))
  end
  if delay > 0 then
    set("latest", int(math.max(number("latest"), now + delay)))
  end
  redis.call("HSET", batch[2], uuid, kept(to, rev, part, weight, place))
  has_changed = true
  return { int(rev), stopped, 0 }
end

-- Write what the batch was told.
local function write_batch()
  if has_changed then
    settle(time(), has_grown)
  end
end

-- Use the batch of a member, whose record is beside that of the member.
local function open_batch_of(uuid)
  local batch_key = space_of(key) .. uuid
  local beside = OPEN .. batch_key .. CLOSE
  batch = { batch_key, beside .. ":members", beside .. ":failed", beside .. ":order" }
  read_batch()
end

-- Numbers the changes of the members of a batch.

-- Change the record, and number the change: "rev" rises with each, and is higher after a record
-- was lost, as long as the server's clock does not go back. Returns what the script returns, the
-- number of the last change, and the status ("" without a record).
local function numbered(KEYS, ARGV)
  local before = redis.call("HMGET", key, "rev", "status", "run", "seq")
  local reply = change(KEYS, ARGV)
  local after = redis.call("HMGET", key, "rev", "status", "run", "seq")
  local status = after[2]
  if not status then
    return reply, 0, ""
  end
  local rev = tonumber(before[1]) or 0
  if rev == 0 or before[2] ~= status or before[3] ~= after[3] or before[4] ~= after[4] then
    rev = math.max(rev + 1, micros())
  end
  if int(rev) ~= after[1] then
    redis.call("HSET", key, "rev", int(rev))
  end
  return reply, rev, status
end

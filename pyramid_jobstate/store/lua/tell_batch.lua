-- A member of a batch has changed. Twice, late or out of order, this changes nothing.
-- ARGV: ttl of an unfinished batch, ttl of an ended one, the member, the number of the
-- change, the letter of its status, how much of it is done in millionths ("" for as much as
-- before), milliseconds until it is due, when the member was last heard of ("" for now), and
-- optionally the number of the change that the batch must know last: the record of the member
-- is gone, and numbers no change.
-- Returns the number of the change that the batch knows now ("" if it or the member is
-- unknown), 1 if the batch was cancelled, what has changed, its status ("" if it is gone), kind
-- and owner, and the milliseconds until the last of its members is due that wait.

local old = redis.call("HMGET", key, "status", "stopped", "kind", "owner", "updated")
local stopped = old[2] and 1 or 0
local letter, rev, part, weight, number = member(ARGV[3])
if not old[1] or not letter then
  -- The members of a cancelled batch do not run, even if it was deleted.
  local is_gone = not old[1] or (old[1] == "deleted" and not old[2])
  return { "", stopped, SAME, is_gone and "" or old[1], "", "", "0" }
end
local to, told = ARGV[5], tonumber(ARGV[4])
if told <= rev or (ARGV[9] and tonumber(ARGV[9]) ~= rev) then
  return { int(rev), stopped, SAME, old[1], "", "", "0" }
end
local now, done = time(), 0
if to == "w" then
  done = tonumber(ARGV[6]) or (letter == "w" and part or 0)
  if old[2] and waits(letter) then
    -- It will not run.
    to, done = letter, 0
  end
end
if to ~= "w" and not waits(to) then
  done = 1000000
end
if done < part then
  -- Hold the bar where it is.
  local sum = redis.call("HMGET", key, "sum", "held")
  if (tonumber(sum[1]) or 0) > (tonumber(sum[2]) or 0) then
    redis.call("HSET", key, "held", sum[1])
  end
end
if done ~= part then
  add("sum", (done - part) * weight)
end
keep(ARGV[3], letter, to, told, done, weight, number)
if to ~= letter or to == "w" then
  local heard = math.min(tonumber(ARGV[8]) or now, now)
  redis.call("HSET", key, "updated", int(math.max(tonumber(old[5]) or 0, heard)))
end
if tonumber(ARGV[7]) > 0 then
  local latest = tonumber(redis.call("HGET", key, "latest")) or 0
  redis.call("HSET", key, "latest", int(math.max(latest, now + ARGV[7])))
end
local change, status, due = settle(now, tonumber(ARGV[1]), tonumber(ARGV[2]))
return { int(told), stopped, change, status, old[3] or "", old[4] or "", due }

-- Appended to the scripts that change the record of a job, whose body is change() then, for
-- the members of a batch. Numbers the changes of a record: "rev" rises with each of them,
-- and is higher after a record was lost, as long as the server's clock does not go back.
-- Returns what the script returns, the number of the last change, and the status.

local before = redis.call("HMGET", key, "rev", "status", "run", "seq")
local reply = change()
local after = redis.call("HMGET", key, "rev", "status", "run", "seq")
local status = after[2]
if not status then
  return { reply, "0", "" }
end
local rev = tonumber(before[1]) or 0
if rev == 0 or before[2] ~= status or before[3] ~= after[3] or before[4] ~= after[4] then
  rev = math.max(rev + 1, micros())
end
if int(rev) ~= after[1] then
  redis.call("HSET", key, "rev", int(rev))
end
return { reply, int(rev), status }

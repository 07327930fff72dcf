-- The message of an ended job is put back in the queue. Its record is set aside: see put_back().
-- ARGV: delay, status, sender, then the fields, the token that create.lua returned, and last
-- the deadline of a unique job. Returns 1 if the job was queued again, by this call or by the
-- same call before, whose reply was lost; 0 if the job has changed since.

local old = redis.call(
  "HMGET", key, "status", "run", "owner", "past", "asked", "rerun", "hooks", "untold", "log_level"
)
local deadline, token = table.remove(ARGV), table.remove(ARGV)
local status = old[1]
if status == "sending" then
  return relist(ARGV[3])
end
if not is_finished(status) or was_cancelled(status, old[5]) or (old[2] or "") ~= token then
  return 0
end
if is_late(deadline, time()) then
  return 0
end
local more = { "past", earlier(old[2], old[4]) }
if ARGV[2] == "sending" then
  -- A late confirmation of a message that has run already says nothing of this one.
  add(more, "resender", ARGV[3])
end
if old[3] then
  add(more, "owner", old[3])
end
if old[6] == "" then
  -- The message of an earlier request may still come: see put_back().
  for i = 4, #ARGV, 2 do
    old[6] = ARGV[i] == "rerun" and ARGV[i + 1] or old[6]
  end
  add(more, "rerun", old[6])
end
if old[7] then
  add(more, "hooks", old[7])
end
if old[9] then
  add(more, "log_level", old[9])
end
local before = scopes_of(key)
if old[8] then
  leave(key)
end
redis.call("RENAME", key, former_key())
create(ARGV, status, more, before)
renew(old[9], true)
return 1

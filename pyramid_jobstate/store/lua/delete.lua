-- Delete the record of an ended job. KEYS: the record, and all that is kept beside it.
-- ARGV: a word that identifies this request, "1" to leave a job alone whose hook has yet to
-- return.
-- Returns 2 if the job was deleted, by this call or by the same call before, whose reply was
-- lost: as for a cancel, 2 says that the job is not among those of its status any more; 0 if it has
-- not ended, is unknown or was left alone.
-- A tombstone stays for the rest of the record's lifetime. It reads as an unknown job, and
-- keeps a message that is still to come from running and from writing the job again.

local old = redis.call(
  "HMGET", key, "status", "asked", "stopped", "rev", "untold", "hooks", "kind", "hook"
)
if old[1] == "deleted" then
  return old[2] == ARGV[1] and 2 or 0
end
local is_awaited = old[8] ~= OVER and untold_in(old[6], old[7], old[1])
if not is_finished(old[1]) or (is_awaited and ARGV[2] == "1") then
  return 0
end
if old[5] then
  leave(key)
end
local ttl = redis.call("PTTL", key)
place(key, old[1], nil)
redis.call("DEL", unpack(KEYS))
redis.call("HSET", key, "status", "deleted", "asked", ARGV[1])
if old[4] then
  -- Its batch may not have been told of its end.
  redis.call("HSET", key, "was", old[1], "rev", old[4])
end
if old[3] then
  -- The members of a cancelled batch that wait for their turn never run.
  redis.call("HSET", key, "stopped", old[3])
end
redis.call("PEXPIRE", key, int(ttl > 0 and ttl or ENDED_TTL))
return 2

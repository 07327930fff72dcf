-- Delete the record of an ended job. KEYS: the record, what is kept of its failure.
-- ARGV: ttl, a word that identifies this request.
-- Returns 1 if the job was deleted, by this call or by the same call before, whose reply was
-- lost; 0 if it has not ended or is unknown.
-- A tombstone stays for the rest of the record's lifetime. It reads as an unknown job, and
-- keeps a message that is still to come from running and from writing the job again.

local old = redis.call("HMGET", key, "status", "asked")
if old[1] == "deleted" then
  return old[2] == ARGV[2] and 1 or 0
end
if not is_finished(old[1]) then
  return 0
end
local ttl = redis.call("PTTL", key)
redis.call("DEL", key, KEYS[2])
redis.call("HSET", key, "status", "deleted", "asked", ARGV[2])
redis.call("PEXPIRE", key, ttl > 0 and int(ttl) or ARGV[1])
return 1

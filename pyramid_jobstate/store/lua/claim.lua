-- Claim the identity of a unique job. The claim names a job, whose record says whether it is
-- under way.
-- KEYS: the claim. ARGV: uuid, the version of the claim that this call builds on ("" for
-- none), ttl, milliseconds for which no other job may take the claim, whatever the record of
-- this one says ("0" to end such a hold with this version, "" to leave it as it is).
-- Returns the uuid of the job that the claim names, the version, and until when it is held so
-- (0 if it is not), in milliseconds.

local old = redis.call("HMGET", key, "job", "version", "held")
local now = time()
local version, held = old[2] or "", tonumber(old[3]) or 0
if held > now + 60000 then
  -- Another program wrote it.
  held = 0
end
if old[1] and old[1] ~= ARGV[1] and (version ~= ARGV[2] or held > now) then
  return { old[1], version, held > now and int(held) or "0" }
end
if old[1] ~= ARGV[1] or (ARGV[4] == "0" and version == ARGV[2]) then
  held = 0
end
if old[1] ~= ARGV[1] or (tonumber(ARGV[4]) or 0) > 0 then
  -- Each job and each hold gets a version of its own, so that a late call changes nothing.
  version = int(math.max(micros(), (tonumber(version) or 0) + 1))
  held = ARGV[4] ~= "" and now + ARGV[4] or 0
end
redis.call("HSET", key, "job", ARGV[1], "version", version, "held", int(held))
redis.call("PEXPIRE", key, ARGV[3])
return { ARGV[1], version, int(held) }

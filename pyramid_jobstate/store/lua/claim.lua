-- Claim the identity of a unique job. The claim names a job, whose record says whether it is
-- under way.
-- KEYS: the claim. ARGV: uuid, the version of the claim that this call builds on ("" for
-- none), ttl, milliseconds for which no other job may take the claim, whatever the record of
-- this one says ("0" to end such a hold with this version, "" to leave it as it is).
-- Returns the uuid of the job that the claim names, the version, and until when it is held so
-- (0 if it is not), in milliseconds, then the uuids of some other jobs whose senders may have
-- died.

local now, old, lost, is_marked = time(), {}, {}, false
local fields = redis.call("HGETALL", key)
for i = 1, #fields, 2 do
  local name, value = fields[i], fields[i + 1]
  if string.sub(name, 1, 5) ~= "mark:" then
    old[name] = value
  elseif name ~= "mark:" .. ARGV[1] then
    is_marked = true
    if #lost < 20 and is_silent(value, now) then
      lost[#lost + 1] = string.sub(name, 6)
    end
  end
end
-- Another program may have written them.
local version, held = string.match(old.version or "", "^%d+$") or "", tonumber(old.held) or 0
if held > now + 60000 then
  held = 0
end
if old.job and old.job ~= ARGV[1] and (version ~= ARGV[2] or held > now) then
  return { old.job, version, held > now and int(held) or "0", unpack(lost) }
end
if old.job ~= ARGV[1] or (ARGV[4] == "0" and version == ARGV[2]) then
  held = 0
end
if old.job ~= ARGV[1] or (tonumber(ARGV[4]) or 0) > 0 then
  -- Each job and each hold gets a version of its own, so that a late call changes nothing.
  version = int(math.max(micros(), (tonumber(version) or 0) + 1))
  held = ARGV[4] ~= "" and now + ARGV[4] or 0
end
redis.call("HSET", key, "job", ARGV[1], "version", version, "held", int(held))
redis.call("HDEL", key, "mark:" .. ARGV[1])
if is_marked then
  -- The marks must outlive the job that has the claim.
  lengthen(ARGV[3])
else
  redis.call("PEXPIRE", key, ARGV[3])
end
return { ARGV[1], version, int(held), unpack(lost) }

-- Take ends of jobs that are to be told, so that no other process tells them for a while.
-- KEYS: the set of the names of their sets. ARGV: for how many milliseconds, how many at most, the
-- uuid of the only job to take, or "" and then the names of sets, to take all that are due.
-- Returns for each its uuid, its hooks, its kind, its status, when it ended, and its owner ("" if
-- it has none).

local now, most, found = micros(), tonumber(ARGV[2]), {}
-- Nobody enters an end for later than that, by this clock: it was set back since.
local last = now + math.max(ARGV[1], SILENCE) * 1000
local space = string.match(key, "^(.*)untold$")

local function take(name, uuid, at)
  local old = redis.pcall(
    "HMGET", space .. uuid, "untold", "hooks", "kind", "status", "finished", "owner"
  )
  if not (old[1] and is_finished(old[4])) then
    -- It is gone, or another program has written it.
    try("ZREM", key .. ":" .. name, uuid)
  elseif not at or at <= now or at > last then
    enter(space .. uuid, name, now + ARGV[1] * 1000)
    found[#found + 1] = { uuid, old[2] or "", old[3] or "", old[4], old[5] or "", old[6] or "" }
  end
end

if ARGV[3] ~= "" then
  -- Its entry may be missing: see enter().
  local old = redis.pcall("HMGET", space .. ARGV[3], "hooks", "kind", "status")
  local name = untold_in(old[1], old[2], old[3])
  if name then
    take(name, ARGV[3], tonumber(try("ZSCORE", key .. ":" .. name, ARGV[3]) or nil))
  end
end
for i = 4, #ARGV do
  local name = ARGV[i]
  for _, range in ipairs({ { "-inf", int(now) }, { "(" .. int(last), "+inf" } }) do
    local least, greatest = unpack(range)
    local left = int(most - #found)
    local due = try("ZRANGEBYSCORE", key .. ":" .. name, least, greatest, "LIMIT", 0, left)
    for _, uuid in ipairs(due or {}) do
      take(name, uuid, nil)
    end
  end
  if try("EXISTS", key .. ":" .. name) == 0 then
    try("SREM", key, name)
  end
end
return found

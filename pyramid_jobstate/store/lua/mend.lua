-- A list has found a job in a set where it does not belong. KEYS: the record. ARGV: what the name
-- of the set begins with, the rest of its name, and the score of the job there.
-- Lists the job where its record says, and removes it there.

local status, uuid = redis.call("HGET", key, "status"), string.sub(key, -36)
if has_left(ARGV[1] .. ARGV[2], uuid) then
  -- It has changed since.
  return 0
end
local set = set_of(status)
if set and set_of(ARGV[2]) then
  local at = time_in(status)
  if is_unfinished(status) and is_unfinished(ARGV[2]) then
    at = math.max(at, tonumber(ARGV[3]))
  end
  place(key, ARGV[2], status, at)
end
if set == ARGV[2] then
  for _, scope in ipairs(scopes_of(key)) do
    if scope == ARGV[1] then
      return 1
    end
  end
end
move(ARGV[1], uuid, ARGV[2], nil)
return 1

-- Move a member in the sets of one scope of a Cluster. KEYS: the sets that it leaves and enters.
-- ARGV: the arguments of move(), "-" for nil.

local function argument(i)
  return ARGV[i] ~= "-" and ARGV[i] or nil
end

local at, ttl, slack = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(argument(7))
move(ARGV[1], ARGV[2], argument(3), argument(4), at, ttl, slack)
return fault or 1

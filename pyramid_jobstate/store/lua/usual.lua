-- Write into the record of a working job how long jobs of its kind usually run.
-- ARGV: the token of its run ("" for none), and the range as JSON. Returns 1, or 0 if the job has
-- changed since, or its record says so already.

local old = redis.call("HMGET", key, "status", "run")
if old[1] ~= "working" or (old[2] or "") ~= ARGV[1] then
  return 0
end
return redis.call("HSETNX", key, "usual", ARGV[2])

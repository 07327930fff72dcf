-- The broker did not accept the message of a job that was to run again: put its failure back.
-- KEYS: the record, what is kept of its failure. ARGV: the word of the request.
-- Returns 1 if the failure was put back, by this call or by the same call before, whose reply
-- was lost; 0 if the job has changed since.

local old = redis.call("HMGET", key, "status", "rerun", "refused")
if old[3] == ARGV[1] then
  return 1
end
if old[1] ~= "sending" or old[2] ~= ARGV[1] then
  return 0
end
if not put_back("sending") then
  return 0
end
redis.call("HSET", key, "refused", ARGV[1])
return 1

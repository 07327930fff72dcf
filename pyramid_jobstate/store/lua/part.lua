-- The batch of a member is gone: the member is a job of its own from now on.

local status = redis.call("HGET", key, "status")
local before = scopes_of(key)
redis.call("HDEL", key, "batch")
if set_of(status) then
  place(key, status, status, time_in(status), nil, before)
end
return 1

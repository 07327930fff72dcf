-- A batch is about to be sent: create its record. ARGV: status, sender, milliseconds until the last
-- of its members is due, then the fields. The status is "queued", or "success" for an empty batch,
-- which is over at once. Hooks are told of that once its transaction has committed: see tell_again.
-- Returns 1 if the record was created, by this call or by the same call before, whose reply
-- was lost; 0 if another one is there.

if redis.call("EXISTS", key) == 1 then
  return relist(ARGV[2])
end
local now, status = int(time()), ARGV[1]
local words = { "status", status, "queued", now, "updated", now, "sender", ARGV[2], "listed", now }
local facts = facts_in(ARGV, 4)
if status == "success" then
  add(words, "started", now)
  add(words, "finished", now)
end
add_all(words, ARGV, 4)
write(words)
redis.call("PEXPIRE", key, int(status == "success" and ENDED_TTL or ACTIVE_TTL))
place(key, nil, status, due_in(tonumber(ARGV[3])), facts)
return 1

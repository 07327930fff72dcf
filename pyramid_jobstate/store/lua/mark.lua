-- A unique job is about to be recorded: mark it beside the claim, which it takes later. If its
-- sender dies before, whoever calls claim.lua next finds the mark.
-- ARGV: uuid, ttl (0 to remove the mark).

if ARGV[2] == "0" then
  return redis.call("HDEL", key, "mark:" .. ARGV[1])
end
redis.call("HSET", key, "mark:" .. ARGV[1], int(time()))
lengthen(ARGV[2])
return 1

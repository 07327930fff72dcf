-- Cancel a batch: its members learn of that with their next report, or before they run.
-- ARGV: a word that identifies this request.
-- Returns 2 if the batch is now cancelled, 1 if members are yet to stop, 0 if it has ended or
-- is unknown. A repeated request gets the same reply: "asked" keeps its word and those of the
-- two requests before it.

read_batch()
local asked, now = redis.call("HGET", key, "asked"), time()
if asked and string.find(asked, ARGV[1], 1, true) then
  return is_finished(record.status) and 2 or 1
end
if not is_unfinished(record.status) then
  return 0
end
set("asked", string.sub(ARGV[1] .. " " .. (asked or ""), 1, 26))
if not record.stopped then
  set("stopped", int(now))
end
if is_silent(record.updated, now) then
  set("forced", "1")
end
if not is_finished(settle(now)) then
  announce(key)
  return 1
end
redis.call("HSET", key, "updated", int(now))
return 2

-- Request cancellation of the job. ARGV: error, a word that identifies this request, "1" to
-- cancel the job only if the process died that was sending it.
-- Returns 2 if the job is now cancelled, 1 if its worker is yet to stop it, 0 if it has
-- ended or is unknown, and for an alias the uuid of its job. A repeated request gets the same
-- reply: "asked" keeps its word and those of the two requests before it.
-- A later delivery of a cancelled job's message is skipped, so the record must outlive the
-- message: cancelling never shortens the record's lifetime.

local old = redis.call(
  "HMGET", key, "status", "seen", "asked", "updated", "hooks", "kind", "log_level", "run", "past"
)
local status, now = old[1], time()
if old[3] and string.find(old[3], ARGV[2], 1, true) then
  return status == "cancelled" and 2 or 1
end
if status == "alias" then
  return redis.call("HGET", key, "target")
end
if not is_unfinished(status) then
  return 0
end
if ARGV[3] == "1" and not (status == "sending" and is_silent(old[4], now)) then
  return 0
end
local asked = string.sub(ARGV[2] .. " " .. (old[3] or ""), 1, 26)
if is_running(status) and not is_silent(old[2], now) then
  redis.call("HSET", key, "asked", asked, "status", "cancelling")
  place(key, status, "cancelling", micros())
  announce(key)
  return 1
end
-- Keep the token: a run that is alive after all learns of this with its next update.
local untold = untold_in(old[5], old[6], "cancelled")
cancel(status, now, ARGV[1], old[7], old[8] or old[9], untold, asked)
return 2

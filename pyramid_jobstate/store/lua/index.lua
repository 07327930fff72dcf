-- List a job in an index, and in one of the status indexes beside it, or remove it from all.
-- An index of unfinished jobs is ordered by the time when they were queued or are due, an
-- index of ended jobs by the time of their end, in microseconds, the newest last. A status
-- index holds some of its jobs, with the same scores: seek.lua relies on that.
-- KEYS: the index, then its status indexes, if any. ARGV: uuid, ttl (0 to remove the job),
-- delay, its place, the number of the status index that it enters (0 for none), and optionally
-- the number of the only status index that it may leave (0 if it must be in none), and the
-- score that it must have there ("" for any). A job that is elsewhere stays.
-- The places, for a job that is listed, and for one that is not:
--   GT  it moves to the top                                         it is listed
--   NX  it keeps its place, if that lasts half the ttl after it is  it is listed
--       due; else it moves to the top
--   XX  the same                                                    it leaves all
--   ""  it keeps its place                                          it leaves all
-- Entries older than the ttl are removed. The index itself expires with the last one.
-- Returns 1, or 0 if the job stays where it is.

local uuid, ttl, delay, place = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local to, from = tonumber(ARGV[5]), tonumber(ARGV[6])
if from == 0 then
  for i = 2, #KEYS do
    if redis.call("ZSCORE", KEYS[i], uuid) then
      return 0
    end
  end
elseif from then
  local score = redis.call("ZSCORE", KEYS[from + 1], uuid)
  if not score or (ARGV[7] ~= "" and tonumber(score) ~= tonumber(ARGV[7])) then
    return 0
  end
end
if ttl == 0 then
  for i = 1, #KEYS do
    redis.call("ZREM", KEYS[i], uuid)
  end
  return 1
end
local now = micros()
-- Scores are exact up to 2^53.
local due = math.min(now + delay * 1000, 9007199254740992)
local score = tonumber(redis.call("ZSCORE", key, uuid))
if score and math.abs(score) > 9007199254740992 then
  -- Another program wrote it.
  score, place = nil, "GT"
end
if not score and (place == "XX" or place == "") then
  -- No status index lists what the index does not.
  to = 0
elseif not score or (place ~= "" and score < (place == "GT" and due or due - ttl * 500)) then
  score = due
  redis.call("ZADD", key, int(score), uuid)
end
-- A place in the future has the whole ttl after it.
local life = int(ttl + math.ceil(math.max(0, (score or now) - now) / 1000))
for i = 2, #KEYS do
  if i - 1 == to then
    redis.call("ZADD", KEYS[i], int(score), uuid)
    redis.call("PEXPIRE", KEYS[i], int(math.max(life, redis.call("PTTL", KEYS[i]))))
  else
    redis.call("ZREM", KEYS[i], uuid)
  end
end
local old = "(" .. int(now - ttl * 1000)
if redis.call("ZREMRANGEBYSCORE", key, "-inf", old) > 0 then
  for i = 2, #KEYS do
    redis.call("ZREMRANGEBYSCORE", KEYS[i], "-inf", old)
  end
end
redis.call("PEXPIRE", key, int(math.max(life, redis.call("PTTL", key))))
return 1

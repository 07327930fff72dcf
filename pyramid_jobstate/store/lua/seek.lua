-- Read the entries of an index that are in none of some of its status indexes, the newest
-- first.
-- KEYS: the index, then those status indexes. ARGV: the score of the newest entry to read,
-- the uuid after which to begin among those with this score ("" for the first), how many to
-- read, and after how many entries looked at to stop.
-- Returns the uuid and the score of the last entry looked at, or two empty strings at the
-- end of the index, the number of entries looked at, then uuid and score of each entry found.

-- How many entries are looked at before those behind them are counted.
local PORTION = 64

local newest, after, count, most = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])

local function is_elsewhere(uuid)
  for i = 2, #KEYS do
    if redis.call("ZSCORE", KEYS[i], uuid) then
      return true
    end
  end
end

-- Whether none of some entries from a rank on is wanted: the status indexes have as many
-- entries between their scores.
local function are_elsewhere(rank, number)
  local first = redis.call("ZREVRANGE", key, rank, rank, "WITHSCORES")[2]
  local last = redis.call("ZREVRANGE", key, rank + number - 1, rank + number - 1, "WITHSCORES")[2]
  if not last then
    return false
  end
  local others = 0
  for i = 2, #KEYS do
    others = others + redis.call("ZCOUNT", KEYS[i], last, first)
  end
  return redis.call("ZCOUNT", key, last, first) == others
end

-- Returns the rank behind unwanted entries: longer and longer stretches of them, then shorter
-- and shorter ones.
local function jump(rank)
  local number, grows = PORTION, true
  while number >= PORTION do
    if are_elsewhere(rank, number) then
      rank = rank + number
    else
      grows = false
    end
    number = grows and number * 2 or number / 2
  end
  return rank
end

local found = {}
local rank = redis.call("ZCOUNT", key, "(" .. newest, "+inf")
local looked, uuid, score = 0, "", ""
while true do
  local rows = redis.call("ZREVRANGE", key, rank, rank + PORTION - 1, "WITHSCORES")
  local before = #found
  for i = 1, #rows, 2 do
    if tonumber(rows[i + 1]) < 0 then
      -- Another program wrote it.
      return { "", "", looked, unpack(found) }
    end
    uuid, score = rows[i], rows[i + 1]
    looked = looked + 1
    -- Entries with equal scores come in descending order of uuids.
    local follows = tonumber(score) ~= tonumber(newest) or after == "" or uuid < after
    if follows and not is_elsewhere(uuid) then
      found[#found + 1] = uuid
      found[#found + 1] = score
      if #found == 2 * count then
        return { uuid, score, looked, unpack(found) }
      end
    end
  end
  if #rows < 2 * PORTION then
    return { "", "", looked, unpack(found) }
  end
  if looked >= most then
    return { uuid, score, looked, unpack(found) }
  end
  rank = rank + PORTION
  if #found == before then
    rank = jump(rank)
  end
end

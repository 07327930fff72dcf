-- Append lines to the log of a job, unless a newer run owns the record, and let the log live for as
-- long as the record does. KEYS: the record, the log. ARGV: token, the most bytes of the log, then
-- for each line its number in the run, how many milliseconds ago it was logged, and the line.
-- Each entry has its number in the job, the token, the number in the run, the bytes of all entries so
-- far, its time, and the line. So the last one says which lines of the run stand there already, and
-- with the first one how long the log is.
-- Returns 1, or 0 if a newer run owns the record.

local token, most, words = ARGV[1], tonumber(ARGV[2]), {}
local status, run = unpack(redis.call("HMGET", key, "status", "run"))
if run ~= token then
  return 0
end

-- The number, token, number in the run and bytes so far of the entry at a place, and its length.
local function entry(place)
  local found = redis.call("LINDEX", KEYS[2], place) or ""
  local number, by, own, bytes = string.match(found, "^(%d+) (%x+) (%d+) (%d+) ")
  return tonumber(number) or 0, by, tonumber(own) or 0, tonumber(bytes) or 0, #found
end

local number, by, last, bytes = entry(-1)
if by ~= token then
  last = 0
end
for i = 3, #ARGV, 3 do
  local own = tonumber(ARGV[i])
  if own > last then
    number, last = number + own - last, own
    local head = table.concat({ int(number), token, ARGV[i] }, " ")
    local rest = " " .. int(time() - ARGV[i + 1]) .. " " .. ARGV[i + 2]
    -- About as many digits as the number will have.
    bytes = bytes + #head + 1 + #int(bytes) + #rest
    words[#words + 1] = head .. " " .. int(bytes) .. rest
  end
end
if #words > 0 then
  -- A flush has fewer than 1,000 lines.
  redis.call("RPUSH", KEYS[2], unpack(words))
end
local _, _, _, first, length = entry(0)
while length > 0 and bytes - first + length > most do
  redis.call("LPOP", KEYS[2])
  _, _, _, first, length = entry(0)
end
renew(true, false, is_running(status) and ACTIVE_TTL / 2)
return 1

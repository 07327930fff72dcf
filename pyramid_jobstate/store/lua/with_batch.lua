-- Changes a member whose batch is in the same slot, and tells the batch of the change, if it was
-- opened for that. ARGV ends with the arguments part and delay of tell(), and "1" if the job could
-- not be sent, as far as the caller knows. Returns what member.lua does, and what tell() does.
local function change_and_tell(KEYS, ARGV, is_opened)
  local unsent, delay = table.remove(ARGV) == "1", tonumber(table.remove(ARGV))
  local part = tonumber(table.remove(ARGV))
  local reply, rev, status = numbered(KEYS, ARGV)
  local answer = false
  if is_opened and LETTERS[status] then
    if type(reply) ~= "number" or reply < 1 then
      -- It is the change of another run.
      part, delay = nil, 0
    end
    local letter = status == "error" and unsent and "x" or LETTERS[status]
    -- The change must not suffer from what another program has written there: the caller tells
    -- the batch in a call of its own then, and hears why it could not.
    local is_done, found = pcall(tell, string.sub(key, -36), rev, letter, part, delay)
    answer = is_done and found
  end
  return { reply, fault or "", moves, int(rev), status, answer }
end

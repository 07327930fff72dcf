-- Changes many members of a batch. ARGV: the uuid of the batch ("" not to tell it), then for each
-- member the key of its record, the number of its arguments, and those. Returns for each what
-- one.lua does.

local is_opened, replies, i = ARGV[1] ~= "" and pcall(open_batch_of, ARGV[1]), {}, 2
known = {}
while ARGV[i] do
  local last = i + 1 + ARGV[i + 1]
  key = ARGV[i]
  -- No two have the same place in the lists.
  clock = micros() + 1
  -- What is wrong with one job does not concern the others.
  local argv = { unpack(ARGV, i + 2, last) }
  local is_done, answer = pcall(change_and_tell, { key }, argv, is_opened)
  if not is_done then
    answer = { err = type(answer) == "table" and answer.err or tostring(answer) }
  end
  replies[#replies + 1] = answer
  i = last + 1
end
pcall(write_batch)
return replies

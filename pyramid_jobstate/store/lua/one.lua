-- Changes a member. ARGV ends with the uuid of the batch ("" not to tell it).

local uuid = table.remove(ARGV)
local is_opened = uuid ~= "" and pcall(open_batch_of, uuid)
local answer = change_and_tell(KEYS, ARGV, is_opened)
pcall(write_batch)
answer[2] = fault or answer[2]
return answer

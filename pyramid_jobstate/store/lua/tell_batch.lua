-- A member of a batch has changed. ARGV: the arguments of tell(), "" for nil. Returns what it does.

read_batch()
local answer = tell(
  ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]),
  tonumber(ARGV[7])
)
write_batch()
return answer

-- Runs change() for a member of a batch on a Cluster.
-- Returns what spread.lua does, the number of the last change, and the status.

local reply, rev, status = numbered(KEYS, ARGV)
return { reply, fault or "", moves, int(rev), status }

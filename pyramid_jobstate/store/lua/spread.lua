-- The same for a batch, and on a Cluster.
-- Returns what the script returns, why the lists could not be written, if so, and the calls of
-- move_in.lua that a Cluster needs.

local reply = change(KEYS, ARGV)
return { reply, fault or "", moves }

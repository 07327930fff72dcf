-- Runs change(), the body of a script that changes the record of a job.
-- Returns what the script returns, or that and why the lists could not be written.

local reply = change(KEYS, ARGV)
return fault and { reply, fault } or reply

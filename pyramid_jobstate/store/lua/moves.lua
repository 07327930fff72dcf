-- In place of move.lua for a Cluster, whose scripts cannot write the lists, since these are in
-- other slots: they return the arguments of move_in.lua, a call for each scope.

local fault
local moves = {}

local function move(scope, member, from, to, at, ttl, slack)
  moves[#moves + 1] = {
    scope, member, from or "-", to or "-", int(at or 0), int(ttl or 0), slack and int(slack) or "-",
  }
  return at, slack
end

-- Only a namespace with a hash tag has the sets of untold.lua.
local function try()
  return nil
end

-- The caller makes that call once in a minute.
local function note(space, kind, at, ttl)
  move(space, kind, "kinds", "kinds", at, ttl, 0)
end

-- Whether a batch was cancelled that may be: the caller has looked.
local function is_stopped()
  return true
end

-- Whether a set no longer lists a job that it listed when the caller looked.
local function has_left()
  return false
end

-- Whether one of some sets may list a job.
local function are_used()
  return true
end

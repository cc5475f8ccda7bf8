"""
The Lua scripts of the store: each changes users or one piece of bookkeeping, and never goes back in generations.

Their text is constant; ids are only ever KEYS and ARGV. In a Cluster all keys of one call must hash to one slot.
"""

from typing import Final

HISTORY_LENGTH: Final = 20

# The generation of the value at a key; 0 for none, for a list no publication wrote, and for another type of value.
# Any other error, such as a missing right, is the script's: without the generation there would be no fence.
# What is called for every user is looked up once, which costs the server less than the tables of the interpreter do.
_GENERATION_OF: Final = """
local call, attempt, match = redis.call, redis.pcall, string.match
local mine = tonumber(ARGV[1])
local function generation_of(key)
  local head = attempt('GETRANGE', key, 0, 31)
  if type(head) == 'table' then
    if match(head.err, 'WRONGTYPE') then return 0 end
    return nil, head
  end
  return tonumber(match(head, '^%[{"gen":(%d+)')) or 0
end
"""
_LIVE_GENERATION: Final = (
    _GENERATION_OF
    + """
local live, refusal = generation_of(KEYS[1])
if refusal then return refusal end
"""
)

FLIP: Final = (
    _GENERATION_OF
    + """
local outcomes = {}
for user = 1, #KEYS / 2 do
  local live_key, stage_key = KEYS[2 * user - 1], KEYS[2 * user]
  local live, refusal = generation_of(live_key)
  if refusal then return refusal end
  if live > mine then
    call('UNLINK', stage_key)
    outcomes[user] = 0
  else
    local renamed = attempt('RENAME', stage_key, live_key)
    if not renamed.err then
      outcomes[user] = 1
    elseif match(renamed.err, 'no such key') then
      outcomes[user] = live == mine and 2 or -1
    else
      return renamed
    end
  end
end
return outcomes
"""
)
"""
Keys: live and stage of each user. Arguments: generation. A list keeps the expiry it was staged with. Returns one of the
outcomes below for each user; what was done before an error is done again harmlessly.
"""

OVERTAKEN, FLIPPED, ALREADY, MISSING = 0, 1, 2, -1

SET_POPULAR: Final = _LIVE_GENERATION + "if live > mine then return 0 end redis.call('SET', KEYS[1], ARGV[2]) return 1"
"""Keys: popular. Arguments: generation, value. Returns 0 if a newer one is there."""

RETIRE: Final = (
    _LIVE_GENERATION
    + """
if live == 0 or live >= mine then return 0 end
if ARGV[2] == 'delete' then return redis.call('UNLINK', KEYS[1]) end
if redis.call('PTTL', KEYS[1]) == -1 then redis.call('PEXPIREAT', KEYS[1], ARGV[3]) end
return 1
"""
)
"""Keys: live. Arguments: generation, ``delete`` or ``expire``, expiry in epoch ms. Returns 1 for an older list."""

SET_FIELDS: Final = """
if tonumber(redis.call('HGET', KEYS[1], 'gen') or 0) > tonumber(ARGV[1]) then return 0 end
redis.call('HSET', KEYS[1], 'gen', unpack(ARGV))
return 1
"""
"""Keys: a hash. Arguments: generation, then field, value, ... Returns 0 if a newer generation has written it."""

RAISE_NUMBER: Final = """
if tonumber(redis.call('GET', KEYS[1]) or 0) < tonumber(ARGV[1]) then redis.call('SET', KEYS[1], ARGV[1]) end
"""
"""Keys: a number. Arguments: what it must at least be."""

ADD_TO_HISTORY: Final = f"""
local last = redis.call('LINDEX', KEYS[1], 0)
if last and cjson.decode(last).gen >= tonumber(ARGV[1]) then return 0 end
redis.call('LPUSH', KEYS[1], ARGV[2])
redis.call('LTRIM', KEYS[1], 0, {HISTORY_LENGTH - 1})
return 1
"""
"""Keys: a list. Arguments: generation, entry. Returns 0 if it is there already."""

"""
The Lua scripts of the store: each changes one user or one piece of bookkeeping, and never goes back in generations.

Their text is constant; ids are only ever KEYS and ARGV. All keys of one call hash to one slot.
"""

from typing import Final

HISTORY_LENGTH: Final = 20

# The generation of the value at KEYS[1]; 0 for none, for a list no publication wrote, and for another type of value.
# Any other error, such as a missing right, is the script's: without the generation there would be no fence.
_LIVE_GENERATION: Final = """
local head = redis.pcall('GETRANGE', KEYS[1], 0, 31)
if type(head) == 'table' and not string.find(head.err, 'WRONGTYPE') then return head end
local live = type(head) == 'string' and tonumber(string.match(head, '^%[{"gen":(%d+)')) or 0
local mine = tonumber(ARGV[1])
"""

FLIP: Final = (
    _LIVE_GENERATION
    + """
if live > mine then redis.call('UNLINK', KEYS[2]) return 0 end
if redis.call('EXISTS', KEYS[2]) == 0 then return live == mine and 2 or -1 end
redis.call('RENAME', KEYS[2], KEYS[1])
redis.call('PEXPIREAT', KEYS[1], ARGV[2])
return 1
"""
)
"""Keys: live, stage. Arguments: generation, expiry in epoch ms. Returns one of the outcomes below."""

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

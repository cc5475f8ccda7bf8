"""
Every Redis key this project reads or writes; no other module spells one out.

Prefixes end in ``:`` and differ before it, so no id can make a user's key collide with another kind of key. The braces
of a staging key make Redis Cluster hash it to the slot of the live key it will replace, so both can be named in one
script; those of the keys beside a user's recent items do the same with that one.
"""

from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from rec_pipeline.engine.data.ids import check_id

LIVE_PREFIX: Final = "recommendations:"
STAGE_PREFIX: Final = "recommendations_stage:"
EVENTS_PREFIX: Final = "events:"
EVENTS_VERSION_PREFIX: Final = "events_version:"
EVENT_IDS_PREFIX: Final = "events_ids:"

EVENT_STREAM: Final = "events_stream"
EVENT_GROUP: Final = "event_log"
ANSWERS_PREFIX: Final = "recommendations_answers:"

CURRENT: Final = "recommendations_meta:current"
LOCK: Final = "recommendations_meta:lock"
JOB: Final = "recommendations_meta:job"
HISTORY: Final = "recommendations_meta:history"
PIN: Final = "recommendations_meta:pin"
POPULAR: Final = "recommendations_meta:popular"
LAST_GENERATION: Final = "recommendations_meta:generation"
SUPPRESSED: Final = "recommendations_meta:suppressed"
READMITTED: Final = "recommendations_meta:readmitted"

# The text that no user's id can be gives keys that no user's list can have: the publisher tries its rights on them.
PROBE_LIVE: Final = LIVE_PREFIX
PROBE_STAGE: Final = f"{STAGE_PREFIX}{{{LIVE_PREFIX}}}:probe"


def live_key(user_id: str) -> str:
    """
    Return the key of a user's list, the one key other languages read.

    Raises
    ------
    InvalidIdError
        If ``user_id`` cannot be an id; no command is sent with it.

    Examples
    --------
    >>> live_key("user:7")
    'recommendations:user:7'
    """
    check_id(user_id, "user_id")
    return LIVE_PREFIX + user_id


def stage_key(user_id: str, number: int) -> str:
    """
    Return the key under which generation ``number`` of a user's list waits to go live.

    Examples
    --------
    >>> stage_key("user:7", 17)
    'recommendations_stage:{recommendations:user:7}:17'
    """
    return f"{STAGE_PREFIX}{{{live_key(user_id)}}}:{number}"


def live_keys(user_ids: pa.Array) -> pa.Array:
    """Return ``live_key`` of each of these ids, which are taken as checked."""
    return pc.binary_join_element_wise(LIVE_PREFIX, user_ids, "")


def stage_keys(user_ids: pa.Array, number: int) -> pa.Array:
    """Return ``stage_key`` of each of these ids, which are taken as checked."""
    return pc.binary_join_element_wise(f"{STAGE_PREFIX}{{{LIVE_PREFIX}", user_ids, f"}}:{number}", "")


def events_key(user_id: str) -> str:
    """
    Return the key of the items a user touched, a sorted set of item ids by time in milliseconds since 1970.

    Examples
    --------
    >>> events_key("user:7")
    'events:user:7'
    """
    check_id(user_id, "user_id")
    return EVENTS_PREFIX + user_id


def user_version_key(user_id: str) -> str:
    """
    Return the key of a counter that grows whenever a user's recent items change; absent is 0.

    An answer made for the user is stale once the counter differs from what it was before the answer was computed.

    Examples
    --------
    >>> user_version_key("user:7")
    'events_version:{events:user:7}'
    """
    return f"{EVENTS_VERSION_PREFIX}{{{events_key(user_id)}}}"


def event_ids_key(user_id: str) -> str:
    """Return the key of the ids of a user's last events, a sorted set by arrival, by which replays are recognised."""
    return f"{EVENT_IDS_PREFIX}{{{events_key(user_id)}}}"


def answers_key(user_id: str) -> str:
    """
    Return the key of the answers the online side keeps for a user, a hash.

    Each names the value of ``user_version_key`` it was made under, and so is stale after the user's next event.

    Examples
    --------
    >>> answers_key("user:7")
    'recommendations_answers:{events:user:7}'
    """
    return f"{ANSWERS_PREFIX}{{{events_key(user_id)}}}"


KEYS_OF_EVENTS: Final = (events_key, user_version_key, event_ids_key, answers_key)
"""Every kind of key made of what a user did; for one user they hash to one slot."""

"""Forgetting a person: what the store holds of them goes, and no later publication brings it back."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from rec_pipeline.engine.store import keys
from rec_pipeline.engine.store.bookkeeping import explained, last_number
from rec_pipeline.engine.store.generation import sealed_numbers
from rec_pipeline.engine.store.suppression import readmit, suppress


@dataclass(frozen=True)
class Forgotten:
    """
    What was done.

    Attributes
    ----------
    n_keys
        Keys that were deleted.
    is_new
        False if the person was on the list of the forgotten already.
    """

    n_keys: int
    is_new: bool


def forget(client: "redis.Redis", root: Path, user_id: str) -> Forgotten:
    """
    Delete a user's list, its staged successors, recent events and kept answers, and leave the user out from now on.

    A publication under way removes the list at its end, should it bring it back. Sealed generations are not rewritten,
    and neither is the source the models are trained on: take the user out of that as well.

    Parameters
    ----------
    client
        The store.
    root
        Folder of the sealed generations, where the list of the forgotten is kept too.
    user_id
        Whom.

    Raises
    ------
    InvalidIdError
        If it cannot be an id.
    PublishFailedError
        If the store cannot be written; the user is on the list on disk by then, and is to be forgotten again.
    """
    live = keys.live_key(user_id)
    with explained("the user is left out of every publication from now on: forget them again to delete what is there"):
        is_new = suppress(client, root, user_id)
        numbers = {*sealed_numbers(root), last_number(client)}
        stages = [keys.stage_key(user_id, number) for number in sorted(numbers)]
        own: Any = client.unlink(live, *stages)
        made: Any = client.unlink(*(key(user_id) for key in keys.KEYS_OF_EVENTS))
    return Forgotten(int(own) + int(made), is_new)


def remember(client: "redis.Redis", root: Path, user_id: str) -> bool:
    """Let a user who was forgotten be published again; returns whether they had been forgotten."""
    keys.live_key(user_id)
    with explained("the user stays forgotten"):
        return readmit(client, root, user_id)

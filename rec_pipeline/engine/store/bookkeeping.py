"""What the store says about publications: what is live, what was, what is under way."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import redis

from rec_pipeline.engine.errors import PublishFailedError, PublishIncompleteError, PublishRefusedError
from rec_pipeline.engine.store import keys
from rec_pipeline.engine.store.server import STORE_ERRORS, explain, is_refusal, number_at, text_fields


def live_number(client: "redis.Redis") -> int:
    """Return the number of the generation that is live, 0 before the first."""
    return int(text_fields(client, keys.CURRENT).get("gen", 0))


def last_number(client: "redis.Redis") -> int:
    """Return the highest number that anybody ever began to publish here; a new generation needs a higher one."""
    return max(number_at(client, keys.LAST_GENERATION) or 0, live_number(client))


def published_history(client: "redis.Redis") -> list[dict[str, Any]]:
    """Return the last publications, newest first: gen, content, users, published_at, publisher, reason."""
    entries: Any = client.lrange(keys.HISTORY, 0, -1)
    return [json.loads(entry) for entry in entries]


def half_live(job: Mapping[str, str]) -> list[int]:
    """Return the generations that, by the fields of the job, have begun to flip and not finished."""
    return [int(number) for number in json.loads(job.get("half_live", "[]"))]


@contextmanager
def explained(consequence: str = "", is_begun: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """
    Turn what the store or its client says into the error a caller can react to.

    Parameters
    ----------
    consequence
        What that means for what was being done, for the end of the message; nothing to say of a question.
    is_begun
        Tells whether lists have gone live by then, so that what is left is to be finished.
    """
    try:
        yield
    except STORE_ERRORS as error:
        if is_begun():
            raise PublishIncompleteError(f"{explain(error)}; every user has a whole list: publish it again") from error
        kind = PublishRefusedError if is_refusal(error) else PublishFailedError
        raise kind("; ".join(filter(None, (explain(error), consequence)))) from error

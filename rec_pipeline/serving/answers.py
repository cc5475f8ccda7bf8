"""What a recommender answers, and the form in which an answer is kept."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypedDict

import orjson

from rec_pipeline.engine.errors import StoredValueError
from rec_pipeline.engine.pseudonyms import pseudonym
from rec_pipeline.engine.store.codec import MAX_VALUE_BYTES, PublishedList, user_checksum

CACHE: Final = "cache"
GENERATED: Final = "generated"
POPULAR: Final = "popular"
SNAPSHOT: Final = "snapshot"


class Recommendation(TypedDict):
    """One recommended item."""

    id: str
    score: float
    sources: list[str]
    reason: str


@dataclass(frozen=True)
class Answer:
    """
    A list and what is to be known about it.

    Attributes
    ----------
    user_id
        Whom it is for; None for an anonymous session.
    items
        Best first.
    source
        ``cache``: kept or published before; ``generated``: made for this question; ``popular``: the list for everybody;
        ``snapshot``: made from what this process holds, as the store could not be asked.
    generation
        Published generation it was made under; 0 before the first one or when unknown.
    bundle
        Version of the serving bundle that made it; empty for a published list.
    made_at
        Unix time in seconds at which it was made; 0 when unknown.
    degraded, reason
        Whether something failed on the way, and what.
    left_out
        Sources that failed or were late, and why.
    shares
        For each item, what part of its score each source gave; empty where it is not known.
    version
        Count of the user's events it was made under.
    experiment, variant
        The experiment that runs and the user's variant of it; empty for an anonymous session.
    """

    user_id: str | None
    items: Sequence[Recommendation]
    source: str
    generation: int = 0
    bundle: str = ""
    made_at: float = 0.0
    degraded: bool = False
    reason: str = ""
    left_out: Mapping[str, str] = field(default_factory=dict)
    shares: Sequence[Mapping[str, float]] = ()
    version: int = 0
    experiment: str = ""
    variant: str = ""

    @property
    def age_seconds(self) -> float:
        """Seconds since it was made; 0 where that is unknown."""
        return max(0.0, time.time() - self.made_at) if self.made_at else 0.0

    def degraded_by(self, reason: str) -> "Answer":
        """Return it marked as the best there was."""
        return replace(self, degraded=True, reason=reason)

    def encode(self) -> bytes:
        """Return the form in which it is kept."""
        return orjson.dumps(
            {
                "u": user_checksum(self.user_id or ""),
                "v": self.version,
                "at": self.made_at,
                "gen": self.generation,
                "bundle": self.bundle,
                "popular": self.source == POPULAR,
                "left_out": self.left_out,
                "shares": self.shares,
                "items": self.items,
            }
        )

    @classmethod
    def decode(cls, value: bytes, user_id: str) -> "Answer":
        """
        Read a kept answer, whatever bytes stand in the store.

        Raises
        ------
        StoredValueError
            If it is anything but an answer to this user.
        """
        if len(value) > MAX_VALUE_BYTES:
            raise StoredValueError(f"answer kept for {pseudonym(user_id)} has {len(value)} bytes")
        try:
            kept = orjson.loads(value)
            items = kept["items"]
            if kept["u"] != user_checksum(user_id):
                raise StoredValueError(f"answer kept for {pseudonym(user_id)} was made for another user")
            if type(items) is not list or not all(
                type(item["id"]) is str and type(item["score"]) in {int, float} for item in items
            ):
                raise StoredValueError(f"answer kept for {pseudonym(user_id)} holds something else than items")
            if not type(kept["gen"]) is type(kept["v"]) is int:
                raise StoredValueError(f"answer kept for {pseudonym(user_id)} names no generation or version")
            shares = kept["shares"]
            if type(shares) is not list or not all(type(share) is dict for share in shares):
                raise StoredValueError(f"answer kept for {pseudonym(user_id)} holds something else than shares")
            return cls(
                user_id=user_id,
                items=items,
                source=POPULAR if kept["popular"] else CACHE,
                generation=kept["gen"],
                bundle=str(kept["bundle"]),
                made_at=float(kept["at"]),
                left_out=dict(kept["left_out"]),
                shares=shares,
                version=kept["v"],
            )
        except (ValueError, OverflowError, TypeError, KeyError, AttributeError) as error:
            raise StoredValueError(f"answer kept for {pseudonym(user_id)} cannot be read: {error}") from error


class Recommendations(list[Recommendation]):
    """
    The items of an answer as a plain list, with the whole answer beside it.

    Attributes
    ----------
    answer
        Source, generation, age, what was left out.
    """

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.items)
        self.answer = answer


def published_items(published: PublishedList) -> list[Recommendation]:
    """Return a published list in the form of answers."""
    return [
        {"id": item.item_id, "score": item.score, "sources": list(item.sources), "reason": item.reason}
        for item in published.items
    ]

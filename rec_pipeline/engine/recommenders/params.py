"""Settings of the hybrid recommender, importable without the libraries that do the work."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from itertools import pairwise
from typing import Final, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, model_validator

COLLABORATIVE: Final = "collaborative"
CONTENT: Final = "content"
SEQUENCE: Final = "sequence"
TRENDING: Final = "trending"
POPULARITY: Final = "popularity"
EXPLORATION: Final = "exploration"
WELL_KNOWN_USERS: Final = 10  # an item fewer users have is new; with the first clicks it is still shown for a while


class FusionMethod(StrEnum):
    """What an item gains in a source that offers it."""

    RECIPROCAL_RANK = "reciprocal_rank"
    SCORE = "score"


class HybridParams(BaseModel, frozen=True, extra="forbid"):
    """How the sources of the hybrid recommender are merged; the asset ``fusion_weights`` finds better ones."""

    weights: dict[str, float] = Field(
        default={COLLABORATIVE: 0.4, CONTENT: 0.3, SEQUENCE: 0.3, TRENDING: 0.1},
        description="Weight of each source by name, >= 0; only their proportions matter. 0 switches a source off.",
    )
    segment_weights: dict[str, dict[str, float]] = Field(
        default={},
        description="Weights for users of one activity segment, by its name (0, 1-4, 5-19, 20+), in place of weights.",
    )
    segment_bounds: list[int] = Field(
        default=[1, 5, 20], description="Bounds between segments of users by items in the history, ascending."
    )
    method: FusionMethod = Field(
        default=FusionMethod.RECIPROCAL_RANK,
        description="reciprocal_rank: what a rank is worth. score: the source's score between the lowest and the "
        "highest of the user's list.",
    )
    rank_constant: int = Field(
        default=60,
        ge=1,
        description="Constant added to every rank: the larger, the less the first ranks stand out. 60 is the value of "
        "Cormack, Clarke & Buettcher (2009).",
    )
    n_candidates: int = Field(
        default=100,
        ge=1,
        le=10_000,
        description="Items each source hands to the merge, per user; at least the list length is always asked for.",
    )
    context_strength: float = Field(
        default=1.0,
        ge=0,
        le=10,
        description="What the learnt lifts of a context are multiplied by before they change scores; 0 switches "
        "context off. fusion_weights finds it.",
    )
    new_item_rank: int = Field(
        default=5,
        ge=0,
        le=10_000,
        description="A new item, one that fewer than 10 users have, may take a place kept for new items if it is among "
        "the so many items nearest to the user's taste in words; 0 keeps no places. fusion_weights finds it.",
    )
    new_item_every: int = Field(
        default=10, ge=2, description="One place of so many is kept for new items, the last of them."
    )
    mmr_trade_off: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Lambda of maximal marginal relevance on the items' text vectors: 1 leaves lists as they are, "
        "lower values make them more varied; the report draws what that costs.",
    )
    category_cap: int | None = Field(
        default=None, ge=1, description="Items of one category in a list, while others can fill it; unset: no cap."
    )
    exploration_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share of the places after the first that go to items drawn at random, marked as exploration.",
    )
    exploration_seed: int = Field(default=0, ge=0, description="Decides what is drawn for whom.")

    @model_validator(mode="after")
    def _weights_are_usable(self) -> Self:
        if self.segment_bounds != sorted(set(self.segment_bounds)) or min(self.segment_bounds, default=1) < 1:
            raise ValueError(f"segment_bounds must be positive and ascending, found {self.segment_bounds}")
        if unknown := set(self.segment_weights) - set(segment_names(self.segment_bounds)):
            raise ValueError(
                f"segment_weights are for {sorted(unknown)}, expected {segment_names(self.segment_bounds)}"
            )
        for weights in (self.weights, *self.segment_weights.values()):
            check_weights(weights)
            if weights.keys() != self.weights.keys():
                raise ValueError(f"every segment needs a weight for {sorted(self.weights)}, found {sorted(weights)}")
        return self

    def user_weights(self, n_history: npt.NDArray[np.integer]) -> dict[str, npt.NDArray[np.float64]]:
        """
        Return each source's weight for each user, float64 of the shape of ``n_history``.

        Parameters
        ----------
        n_history : int of shape (n_users,)
            Distinct items in the history of each user.
        """
        segment = np.searchsorted(self.segment_bounds, n_history, side="right")
        by_segment = [self.segment_weights.get(name, self.weights) for name in segment_names(self.segment_bounds)]
        return {source: np.array([weights[source] for weights in by_segment])[segment] for source in self.weights}

    def is_active(self, source: str) -> bool:
        """Tell whether any user's list can hold an item of ``source``."""
        return any(weights.get(source, 0) > 0 for weights in (self.weights, *self.segment_weights.values()))


def segment_names(bounds: Sequence[int]) -> list[str]:
    """
    Name the segments between bounds.

    Examples
    --------
    >>> segment_names([1, 5, 20])
    ['0', '1-4', '5-19', '20+']
    """
    closed = [str(low) if low == high - 1 else f"{low}-{high - 1}" for low, high in pairwise([0, *bounds])]
    return [*closed, f"{bounds[-1]}+" if bounds else "all"]


def check_weights(weights: Mapping[str, float]) -> None:
    """
    Refuse weights that cannot be normalised.

    Raises
    ------
    ValueError
        If a weight is negative or not finite, or if none is above zero.
    """
    refused = {name: weight for name, weight in weights.items() if not 0 <= weight < float("inf")}
    if refused:
        raise ValueError(f"weights must be finite and >= 0, found {refused}")
    if not any(weights.values()):
        raise ValueError(f"at least one weight must be above 0, found {weights}")

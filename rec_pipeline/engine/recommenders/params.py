"""Settings of the hybrid recommender, importable without the libraries that do the work."""

from typing import Self

from pydantic import BaseModel, Field, model_validator


class HybridParams(BaseModel, frozen=True, extra="forbid"):
    """How the sources of the hybrid recommender are merged."""

    weights: dict[str, float] = Field(
        default={"collaborative": 0.5, "content": 0.2, "sequence": 0.3},
        description="Weight of each source by name, >= 0; only their proportions matter. 0 switches a source off. "
        "The default is between the best on the validation parts of the sample and of MovieLens 100K.",
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

    @model_validator(mode="after")
    def _weights_are_usable(self) -> Self:
        check_weights(self.weights)
        return self


def check_weights(weights: dict[str, float]) -> None:
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

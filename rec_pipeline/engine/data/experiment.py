"""Which variant of an experiment a user is in: a hash of the user id over configured shares."""

import hashlib
import math
from itertools import accumulate
from typing import Any, Self

from pydantic import BaseModel, Field, field_validator, model_validator

from rec_pipeline.engine.data.events import check_name


class Experiment(BaseModel, frozen=True, extra="forbid"):
    """
    A comparison of configurations on live traffic.

    A user is in the same variant whichever process asks and however often. Another ``name`` deals the users anew, so
    that one experiment does not inherit the groups of the last.

    Examples
    --------
    >>> experiment = Experiment(name="weights", shares={"control": 0.5, "tuned": 0.5})
    >>> [experiment.variant(f"u{number}") for number in range(4)]
    ['tuned', 'control', 'control', 'control']
    """

    name: str = Field("default", description="Name of the experiment; the salt of the hash.")
    shares: dict[str, float] = Field(
        {"control": 1.0}, description="Share of the users in each variant, by name; above 0, together 1."
    )
    params: dict[str, dict[str, Any]] = Field(
        {},
        description="By variant, what differs in it from the fusion of the serving bundle (`HybridParams`): its users "
        "get live answers. A variant without is served as published.",
    )

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        check_name(name)
        return name

    @field_validator("shares")
    @classmethod
    def _are_shares(cls, shares: dict[str, float]) -> dict[str, float]:
        for name, share in shares.items():
            check_name(name)
            if not 0 < share <= 1:
                raise ValueError(f"variant {name!r} has share {share}, expected above 0 and at most 1")
        if not math.isclose(total := sum(shares.values()), 1, abs_tol=1e-6):
            raise ValueError(f"the shares of the variants sum to {total:g}, expected 1")
        return shares

    @model_validator(mode="after")
    def _params_are_of_variants(self) -> Self:
        if unknown := set(self.params) - set(self.shares):
            raise ValueError(f"params are for {sorted(unknown)}, expected variants among {sorted(self.shares)}")
        return self

    def variant(self, user_id: str) -> str:
        """Return the variant of a user."""
        digest = hashlib.blake2b(f"{self.name}\n{user_id}".encode(), digest_size=8).digest()
        draw = int.from_bytes(digest, "big") / 2**64
        names = list(self.shares)
        bounds = accumulate(self.shares.values())
        return next((name for name, bound in zip(names, bounds, strict=True) if draw < bound), names[-1])

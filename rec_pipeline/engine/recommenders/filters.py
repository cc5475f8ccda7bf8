"""Which items a list may hold: what the catalogue says of each item, and what a request asks for."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from rec_pipeline.engine import columns as c
from rec_pipeline.engine.artifacts import read_array, read_json, write_array, write_json
from rec_pipeline.engine.data.batches import BoolVector, IdxVector
from rec_pipeline.engine.data.id_map import NO_IDX
from rec_pipeline.engine.data.validation import parse_timestamps

SEPARATOR: Final = "|"
NEVER: Final = np.iinfo(np.int64).max


@dataclass(frozen=True)
class ItemFacts:
    """
    What filters know of the items.

    Attributes
    ----------
    available
        Bool of shape (n_items,).
    published_at, expires_at
        int64 of shape (n_items,): seconds since 1970 from which and before which an item may be shown.
    categories
        Names, in the order of the columns of ``in_category``.
    in_category
        Bool CSR of shape (n_items, n_categories).
    """

    available: BoolVector
    published_at: npt.NDArray[np.int64]
    expires_at: npt.NDArray[np.int64]
    categories: tuple[str, ...]
    in_category: sp.csr_matrix

    @classmethod
    def of(cls, items: pd.DataFrame) -> Self:
        """
        Read the facts of a catalogue.

        Parameters
        ----------
        items : pd.DataFrame
            One row an item, in row order; ``available``, ``published_at``, ``expires_at`` (instants) and ``categories``
            (joined by ``|``) where present. What is missing forbids nothing.
        """
        given = items[c.CATEGORIES].fillna("").astype(str) if c.CATEGORIES in items else pd.Series("", items.index)
        named = [sorted({name.strip() for name in text.split(SEPARATOR)} - {""}) for text in given]
        categories = tuple(sorted({name for names in named for name in names}))
        column = {name: number for number, name in enumerate(categories)}
        indptr = np.concatenate([[0], np.cumsum([len(names) for names in named])]).astype(np.int64)
        indices = np.array([column[name] for names in named for name in names], dtype=np.int64)
        in_category = sp.csr_matrix(
            (np.ones(len(indices), dtype=np.bool_), indices, indptr), shape=(len(items), len(categories))
        )
        available = np.ones(len(items), dtype=np.bool_)
        if c.AVAILABLE in items:
            available = items[c.AVAILABLE].fillna(value=True).to_numpy(dtype=np.bool_)
        return cls(
            available=available,
            published_at=_seconds(items, c.PUBLISHED_AT, missing=-NEVER),
            expires_at=_seconds(items, c.EXPIRES_AT, missing=NEVER),
            categories=categories,
            in_category=in_category,
        )

    def save(self, directory: Path) -> None:
        """Write three arrays, ``categories.json`` and ``in_category.npz``."""
        for name in ("available", "published_at", "expires_at"):
            write_array(directory / f"{name}.npy", getattr(self, name))
        write_json(directory / "categories.json", list(self.categories))
        sp.save_npz(directory / "in_category.npz", self.in_category, compressed=False)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read what ``save`` wrote."""
        arrays = {name: read_array(directory / f"{name}.npy") for name in ("available", "published_at", "expires_at")}
        categories = tuple(read_json(directory / "categories.json"))
        return cls(
            **arrays, categories=categories, in_category=sp.csr_matrix(sp.load_npz(directory / "in_category.npz"))
        )

    def shown_at(self, now: float) -> BoolVector:
        """Return the items that are available, published and not expired at ``now`` (seconds since 1970)."""
        return np.asarray(self.available & (self.published_at <= now) & (now < self.expires_at))

    def eligible(
        self,
        now: float,
        *,
        allowed: Collection[str] = (),
        denied: Collection[str] = (),
        excluded: IdxVector | None = None,
    ) -> BoolVector:
        """
        Return the items that a request leaves.

        Parameters
        ----------
        now : float
            Seconds since 1970.
        allowed
            An item must be in one of these categories; empty allows all. A name that no item has allows nothing.
        denied
            An item in one of these categories is left out, even if it is in an allowed one too.
        excluded : int64 of any length, optional
            Rows to leave out; ``-1`` (an unknown id) excludes nothing.

        Returns
        -------
        bool of shape (n_items,)

        Notes
        -----
        What a user has seen is left out by every ranker itself. The rankers search among eligible items only, so a list
        is shorter than asked for only if fewer items qualify.

        Examples
        --------
        >>> facts = ItemFacts.of(pd.DataFrame({"categories": ["a|b", "a", "c"]}))
        >>> facts.eligible(0, allowed=["a"], denied=["b"])
        array([False,  True, False])
        """
        eligible = self.shown_at(now)
        if allowed:
            eligible &= self._in_any(allowed)
        if denied:
            eligible &= ~self._in_any(denied)
        if excluded is not None:
            eligible[excluded[excluded != NO_IDX]] = False
        return eligible

    def _in_any(self, names: Collection[str]) -> BoolVector:
        wanted = np.isin(self.categories, list(names)) if self.categories else np.zeros(0, dtype=np.bool_)
        return np.asarray(self.in_category.astype(np.int32) @ wanted.astype(np.int32) > 0)


def _seconds(items: pd.DataFrame, column: str, *, missing: int) -> npt.NDArray[np.int64]:
    if column not in items:
        return np.full(len(items), missing, dtype=np.int64)
    instants = parse_timestamps(items[column])
    seconds = instants.dt.as_unit("s").astype("int64").to_numpy()
    return np.where(instants.isna().to_numpy(), missing, seconds).astype(np.int64)

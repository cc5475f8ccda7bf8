"""What goes into a recommender and what comes out of it, as arrays over a batch of users."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from rec_pipeline.engine.data.id_map import NO_IDX

if TYPE_CHECKING:
    from rec_pipeline.engine.data.sequences import UserSequences

RECENT_EVENTS: Final = 200
GROUP: Final = 16  # scores of which the best alone is looked at first
MOST_TAKEN: Final = 4  # times as many items as are listed, among which they are sought

IdxVector: TypeAlias = npt.NDArray[np.int64]
IdxMatrix: TypeAlias = npt.NDArray[np.int64]
BoolVector: TypeAlias = npt.NDArray[np.bool_]
ScoreMatrix: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True)
class UserBatch:
    """
    A batch of users and what is known about each at request time.

    Attributes
    ----------
    user_idx
        int64 of shape (n_users,); ``-1`` for a user outside the id map.
    history
        Interaction weights per user and item, float32 CSR of shape (n_users, n_items): what the user has interacted
        with so far. It may be newer than what a model was fitted on. An empty row is a user without history.
    recent
        int64 of shape (n_users, length): item rows of the user's last events, oldest first and so the newest in the
        last column; ``-1`` fills the left of a shorter row. Any length serves; ``RECENT_EVENTS`` is as far back as any
        model looks. An item may occur more than once. Usually part of the history, but nothing depends on it. Without
        it (length 0, the default) a model of sequences knows nothing about anybody.

    Raises
    ------
    ValueError
        If the parts are not of as many users, or ``recent`` holds a row outside the catalogue or ``-1`` after an event.
    """

    user_idx: IdxVector
    history: sp.csr_matrix
    recent: IdxMatrix = field(default_factory=lambda: np.empty((0, 0), dtype=np.int64))

    def __post_init__(self) -> None:
        if self.recent.size == 0:
            object.__setattr__(self, "recent", np.empty((len(self.user_idx), 0), dtype=np.int64))
        if not len(self.user_idx) == self.history.shape[0] == len(self.recent):
            raise ValueError(
                f"{len(self.user_idx)} users but {self.history.shape[0]} history rows and {len(self.recent)} rows of "
                "recent events"
            )
        is_event = self.recent != NO_IDX
        if (is_event[:, :-1] & ~is_event[:, 1:]).any():
            raise ValueError("recent events must be padded with -1 at their left alone")
        if self.recent.size and not NO_IDX <= self.recent.min() <= self.recent.max() < self.n_items:
            raise ValueError(
                f"recent events go from row {self.recent.min()} to {self.recent.max()} of {self.n_items} items"
            )

    def __len__(self) -> int:
        return len(self.user_idx)

    @property
    def n_items(self) -> int:
        """Size of the catalogue."""
        return int(self.history.shape[1])

    @property
    def has_history(self) -> BoolVector:
        """Bool of shape (n_users,): users with at least one interaction."""
        return np.asarray(np.diff(self.history.indptr) > 0)


def binary(matrix: sp.csr_matrix, out: npt.NDArray[np.float32] | None = None) -> sp.csr_matrix:
    """
    Return float32 CSR of the same shape: 1 where an entry is stored and not zero, a stored 0 elsewhere.

    Its values are ``out``, as long as those of the matrix, if that is given.
    """
    values = np.empty(len(matrix.data), dtype=np.float32) if out is None else out
    np.not_equal(matrix.data, 0, out=values)
    return sp.csr_matrix((values, matrix.indices, matrix.indptr), matrix.shape)


def is_member(item_idx: IdxMatrix, user_item: sp.csr_matrix) -> npt.NDArray[np.bool_]:
    """
    Tell which listed items are stored in the same user's row of a matrix.

    Parameters
    ----------
    item_idx : int64 of shape (n_users, top_k)
        Item rows; ``-1`` is in no row.
    user_item : CSR of shape (n_users, n_items)
        Stored entries count, whatever their value.

    Returns
    -------
    bool of shape (n_users, top_k)
    """
    n_users, n_items = user_item.shape
    if item_idx.shape[0] != n_users:
        raise ValueError(f"{item_idx.shape[0]} lists but {n_users} rows of items")
    if item_idx.size and not (item_idx.min() >= NO_IDX and item_idx.max() < n_items):
        raise ValueError(f"item rows must lie in -1..{n_items - 1}, found {item_idx.min()}..{item_idx.max()}")
    found = np.empty(item_idx.shape, dtype=np.bool_)
    # A dense table of a few users at a time stays in the processor's cache, which beats any search by far. Its rows end
    # with a spare cell that is never set: row * width - 1, where -1 lands, is the spare cell of the row before.
    width = n_items + 1
    n_rows = max(1, min(n_users, 2**20 // width))
    table = np.zeros(n_rows * width, dtype=np.bool_)
    offset = np.arange(n_rows, dtype=np.int64)[:, None] * width
    cells = np.repeat(np.arange(n_users) % n_rows * width, np.diff(user_item.indptr)) + user_item.indices
    for start in range(0, n_users, n_rows):
        rows = slice(start, min(start + n_rows, n_users))
        stored = cells[user_item.indptr[rows.start] : user_item.indptr[rows.stop]]
        table[stored] = True
        table.take(item_idx[rows] + offset[: rows.stop - rows.start], out=found[rows], mode="wrap")
        table[stored] = False
    return found


def at_most(user_idx: IdxVector, n_users: int, seed: int) -> IdxVector:
    """Return ``user_idx``, or ``n_users`` of them, ascending and drawn by ``seed``, if they are more."""
    if len(user_idx) <= n_users:
        return user_idx
    return np.sort(np.random.default_rng(seed).choice(user_idx, n_users, replace=False))


def iterate_users(
    history: sp.csr_matrix, user_idx: IdxVector, batch_size: int, *, sequences: "UserSequences | None" = None
) -> Iterator[UserBatch]:
    """
    Yield ``user_idx`` in order, ``batch_size`` at a time, with their rows of ``history`` (n_users, n_items).

    Their recent events come from ``sequences``, which holds the same users in order of time; without it there are none.
    An unknown user (``-1``) has an empty history and no events.
    """
    for start in range(0, len(user_idx), batch_size):
        batch = user_idx[start : start + batch_size]
        is_known = batch != NO_IDX
        rows = history[np.where(is_known, batch, 0)]
        if not is_known.all():
            rows = sp.csr_matrix(sp.diags_array(is_known.astype(np.float32)) @ rows)
            rows.eliminate_zeros()
        if sequences is None:
            yield UserBatch(user_idx=batch, history=rows)
        else:
            yield UserBatch(user_idx=batch, history=rows, recent=sequences.recent(batch))


@dataclass(frozen=True)
class Ranking:
    """
    Items for each user of a batch, best first.

    Attributes
    ----------
    item_idx
        int64 of shape (n_users, top_k), no repeats within a row; ``-1`` pads short lists at their end.
    score
        float32 of the same shape, non-increasing along a row; ``-inf`` where ``item_idx`` is ``-1``.
    """

    item_idx: IdxMatrix
    score: ScoreMatrix

    def __post_init__(self) -> None:
        if self.item_idx.shape != self.score.shape:
            raise ValueError(f"item_idx has shape {self.item_idx.shape} but score {self.score.shape}")

    @classmethod
    def joined(cls, parts: Sequence["Ranking"]) -> "Ranking":
        """Return the lists of batches one below the other; all are as long."""
        return cls(np.concatenate([part.item_idx for part in parts]), np.concatenate([part.score for part in parts]))

    def first(self, n_places: int) -> "Ranking":
        """Return the first places of the lists, where they are as long."""
        return Ranking(self.item_idx[:, :n_places], self.score[:, :n_places])

    @classmethod
    def from_scores(cls, score: ScoreMatrix, top_k: int, excluded: sp.csr_matrix | None = None) -> "Ranking":
        """
        Keep each user's ``top_k`` best items out of a dense score matrix.

        Parameters
        ----------
        score : float32 of shape (n_users, n_items)
            Not modified. ``-inf`` marks an item that may not be returned.
        top_k : int
            List length; lists are padded with ``-1`` where fewer items qualify.
        excluded : CSR of shape (n_users, n_items), optional
            Items to leave out, e.g. those already seen.

        Notes
        -----
        Equal scores are ordered by item row, so a ranking is a function of the scores alone.

        Examples
        --------
        >>> Ranking.from_scores(np.array([[0.1, 0.9, 0.9]], dtype=np.float32), top_k=2).item_idx
        array([[1, 2]])
        """
        return cls.from_costs(np.negative(score, dtype=np.float32), top_k, excluded)

    @classmethod
    def from_costs(cls, cost: ScoreMatrix, top_k: int, excluded: sp.csr_matrix | None = None) -> "Ranking":
        """Do the same with negated scores, in place: those of ``excluded`` items are overwritten by ``inf``."""
        if excluded is not None:
            rows = np.repeat(np.arange(len(cost)), np.diff(excluded.indptr))
            cost[rows, excluded.indices] = np.inf
        n_users, n_items = cost.shape
        width = min(top_k, n_items)
        item_idx = np.full((n_users, top_k), NO_IDX, dtype=np.int64)
        best = np.full((n_users, top_k), -np.inf, dtype=np.float32)
        if n_users and width:
            columns = _lowest(cost, width)
            best[:, :width] = -np.take_along_axis(cost, columns, axis=1)
            item_idx[:, :width] = columns
            item_idx[np.isneginf(best)] = NO_IDX
        return cls(item_idx=item_idx, score=best)


def _lowest(values: ScoreMatrix, width: int) -> IdxMatrix:
    """
    Return the columns of the ``width`` lowest values of each row, the lowest first, among equals the first column.

    A few more than ``width`` are taken out by a bound, in passes that the processor makes over many values at once, and
    only these are sorted.
    """
    n_rows, n_columns = values.shape
    chosen = values <= _bound(values, width)
    place = np.flatnonzero(chosen)
    counts = np.bincount(place // n_columns, minlength=n_rows)
    crowded = np.flatnonzero(counts > MOST_TAKEN * width)
    if len(crowded):  # as many columns as are taken have the same value
        some = values[crowded]
        bound = np.partition(some, width - 1, axis=1)[:, width - 1 : width]
        below, equal = some < bound, some == bound
        chosen[crowded] = below | (equal & (np.cumsum(equal, axis=1) <= width - below.sum(axis=1, keepdims=True)))
        place = np.flatnonzero(chosen)
        counts = np.bincount(place // n_columns, minlength=n_rows)
    row = np.repeat(np.arange(n_rows), counts)
    slot = np.arange(len(place)) - np.repeat(np.cumsum(counts) - counts, counts)
    columns = np.zeros((n_rows, counts.max()), dtype=np.int64)
    taken = np.full(columns.shape, np.inf, dtype=np.float32)
    columns[row, slot] = place - row * n_columns
    taken[row, slot] = values[row, columns[row, slot]]
    return np.take_along_axis(columns, np.argsort(taken, axis=1, kind="stable")[:, :width], axis=1)


def _bound(values: ScoreMatrix, width: int) -> ScoreMatrix:
    """
    Return a bound, float32 of shape (n_rows, 1), up to which ``width`` values of each row lie, and hardly any more.

    In a long row it is that of the lowest of every ``GROUP`` values: so many groups have such a value.
    """
    n_groups = values.shape[1] // GROUP
    if n_groups < 2 * width:
        return np.partition(values, width - 1, axis=1)[:, width - 1 : width]
    grouped = values[:, : n_groups * GROUP].reshape(len(values), GROUP, n_groups)
    lowest = np.concatenate([grouped.min(axis=1), values[:, n_groups * GROUP :]], axis=1)
    lowest.partition(width - 1, axis=1)
    return lowest[:, width - 1 : width]

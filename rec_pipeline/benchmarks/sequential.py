"""
Next-item recommendation on any file of events in order, as SASRec (Kang & McAuley, 2018) and those after it measured.

Each user's last event is tested and the one before is for early stopping, where there are three or more. Every item
that the user does not have is ranked. Once the number of epochs is found, models are fitted again on all but the tested
events. Of a repeated (user, item) pair the first counts. Hyper-parameters are the defaults; nothing is chosen by
looking at the tested events.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from rec_pipeline.engine import columns as c
from rec_pipeline.engine.data.batches import ScoreMatrix, UserBatch, iterate_users
from rec_pipeline.engine.data.histories import histories_of
from rec_pipeline.engine.data.id_map import NO_IDX, IdMap
from rec_pipeline.engine.data.sequences import UserSequences
from rec_pipeline.engine.errors import ConfigurationError
from rec_pipeline.engine.evaluation.metrics import accuracy_metrics, label
from rec_pipeline.engine.models.item_knn import ItemKNNModel, ItemKNNParams
from rec_pipeline.engine.models.ncf_params import NCFParams, TrainingOptions
from rec_pipeline.engine.models.popularity import PopularityModel
from rec_pipeline.engine.models.sequence_params import SequenceParams
from rec_pipeline.engine.recommenders.ranker import Ranker
from rec_pipeline.engine.recommenders.score_ranker import ScoreRanker
from rec_pipeline.engine.recommenders.sequence import SequenceRanker

CUTOFF = 10
MIN_EVENTS = 3
SCORE_CELLS = 1 << 23  # scores held at a time: 32 MiB of float32
SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": r"\s+"}
NAMES = ("popularity", "transitions", "item_knn", "ncf", "sequence")


@dataclass(frozen=True)
class Events:
    """
    Events by user, and how often the file repeated one.

    Attributes
    ----------
    sequences
        All events of every user, oldest first, each item once.
    n_items
        Size of the catalogue: every item of the file.
    n_repeated
        Rows left out because the user has the item already.
    """

    sequences: UserSequences
    n_items: int
    n_repeated: int

    def without_last(self, n_last: int) -> UserSequences:
        """Return the sequences without their last ``n_last`` events, where there are three or more."""
        lengths = self.sequences.lengths
        kept = np.where(lengths >= MIN_EVENTS, lengths - n_last, lengths)
        place = np.arange(len(self.sequences.item_idx)) - np.repeat(self.sequences.starts[:-1], lengths)
        is_kept = place < np.repeat(kept, lengths)
        return UserSequences(np.concatenate([[0], np.cumsum(kept)]), self.sequences.item_idx[is_kept])

    def held_out(self, from_end: int) -> sp.csr_matrix:
        """Return the ``from_end``-th last event of users with three or more, CSR of shape (n_users, n_items)."""
        users = np.flatnonzero(self.sequences.lengths >= MIN_EVENTS)
        items = self.sequences.item_idx[self.sequences.starts[users + 1] - from_end]
        shape = (len(self.sequences), self.n_items)
        return sp.csr_matrix((np.ones(len(users), dtype=np.float32), (users, items)), shape=shape)


@dataclass(frozen=True)
class Transitions:
    """
    Scores an item by how often it came right after the user's last event; popularity orders the rest.

    Attributes
    ----------
    counts
        float32 CSR of shape (n_items, n_items), item by the next one.
    popularity
        float32 of shape (n_items,), below 1 throughout, so that it decides between equal counts only.
    """

    counts: sp.csr_matrix
    popularity: npt.NDArray[np.float32]

    @classmethod
    def fit(cls, sequences: UserSequences, n_items: int) -> "Transitions":
        """Count pairs of consecutive events of a user."""
        user = np.repeat(np.arange(len(sequences)), sequences.lengths)
        is_pair = user[1:] == user[:-1]
        pairs = (sequences.item_idx[:-1][is_pair], sequences.item_idx[1:][is_pair])
        counts = sp.csr_matrix((np.ones(int(is_pair.sum()), dtype=np.float32), pairs), shape=(n_items, n_items))
        popularity = np.bincount(sequences.item_idx, minlength=n_items)
        return cls(counts, (popularity / (popularity.sum() + 1)).astype(np.float32))

    def score(self, users: UserBatch) -> ScoreMatrix:
        """Return float32 of shape (n_users, n_items)."""
        last = users.recent[:, -1] if users.recent.shape[1] else np.full(len(users), NO_IDX)
        score = np.where((last != NO_IDX)[:, None], self.counts[np.maximum(last, 0)].toarray(), np.float32(0))
        return np.asarray(score + self.popularity, dtype=np.float32)


@dataclass(frozen=True)
class SequentialRow:
    """
    One model in the table.

    Attributes
    ----------
    hit_rate, ndcg
        At 10, means over the users with a tested event.
    fit_seconds
        Wall time of training, early stopping and the second fit included.
    rank_seconds
        Wall time of ranking the catalogue for all those users.
    epochs
        What early stopping found; None for a model without epochs.
    """

    name: str
    hit_rate: float
    ndcg: float
    fit_seconds: float
    rank_seconds: float
    epochs: int | None = None


def read_events(path: Path) -> Events:
    """
    Read user, item and, where there is one, time, of every event.

    CSV, TSV, whitespace-separated text or Parquet with columns ``user_id``, ``item_id`` and optionally ``timestamp``;
    text without these names is taken to hold them in that order. Without a timestamp the rows are in order.

    Raises
    ------
    ConfigurationError
        If the file is missing or not of that form, an id or a timestamp is, or no user has three events.
    """
    table = _read(path)
    if c.TIMESTAMP in table:
        table = table.sort_values(c.TIMESTAMP, kind="stable")
    once = table.drop_duplicates([c.USER_ID, c.ITEM_ID])
    users, items = IdMap.from_ids(once[c.USER_ID]), IdMap.from_ids(once[c.ITEM_ID])
    in_order = pd.DataFrame(
        {
            c.USER_IDX: users.to_idx(once[c.USER_ID]),
            c.ITEM_IDX: items.to_idx(once[c.ITEM_ID]),
            c.TIMESTAMP: np.arange(len(once)),
            c.WEIGHT: np.float32(1),
        }
    )
    sequences = histories_of(in_order, len(users), len(items))[0].sequences
    if sequences.lengths.max(initial=0) < MIN_EVENTS:
        raise ConfigurationError(f"{path}: no user has {MIN_EVENTS} events, so there is nothing to test")
    return Events(sequences, len(items), len(table) - len(once))


def run(
    data: Path,
    *,
    only: Sequence[str] | None = None,
    seed: int = 42,
    ncf_params: NCFParams | None = None,
    sequence_params: SequenceParams | None = None,
    on_row: Callable[[SequentialRow], None] | None = None,
) -> tuple[dict[str, int], list[dict[str, object]]]:
    """
    Fit every contender on all but the last event of each user and rank the catalogue for that one.

    Returns
    -------
    dict
        Counts of the data.
    list
        The rows, as dictionaries.

    Raises
    ------
    ConfigurationError
        If the file cannot be used or a name is unknown.
    """
    unknown = sorted(set(only or ()) - set(NAMES))
    if unknown:
        raise ConfigurationError(f"there is no row {unknown[0]!r}; the rows are {', '.join(NAMES)}")
    events = read_events(data)
    fits = _Fits(events, TrainingOptions(seed=seed), ncf_params or NCFParams(), sequence_params or SequenceParams())
    rows: list[SequentialRow] = []
    for name in NAMES:
        if only and name not in only:
            continue
        started = time.perf_counter()
        ranker, epochs = getattr(fits, name)()
        fitted = time.perf_counter()
        hit_rate, ndcg = _ranked(ranker, events)
        rows.append(SequentialRow(name, hit_rate, ndcg, fitted - started, time.perf_counter() - fitted, epochs))
        if on_row:
            on_row(rows[-1])
    facts = {
        "n_users": len(events.sequences),
        "n_items": events.n_items,
        "n_events": len(events.sequences.item_idx),
        "n_repeated": events.n_repeated,
        "n_users_tested": int(events.held_out(1).nnz),
    }
    return facts, [asdict(row) for row in rows]


class _Fits:
    """How each contender is fitted; the methods have the names of the rows."""

    def __init__(
        self, events: Events, options: TrainingOptions, ncf_params: NCFParams, sequence_params: SequenceParams
    ) -> None:
        self._events, self._options = events, options
        self._ncf_params, self._sequence_params = ncf_params, sequence_params
        self._train, self._known = events.without_last(2), events.without_last(1)
        self._validation = events.held_out(2)

    def popularity(self) -> tuple[Ranker, None]:
        model = PopularityModel.fit(_user_item(self._known, self._events.n_items))
        return ScoreRanker("popularity", model, serves_everyone=True), None

    def transitions(self) -> tuple[Ranker, None]:
        return ScoreRanker("transitions", Transitions.fit(self._known, self._events.n_items)), None

    def item_knn(self) -> tuple[Ranker, None]:
        model = ItemKNNModel.fit(_user_item(self._known, self._events.n_items), ItemKNNParams())
        return ScoreRanker("item_knn", model), None

    def ncf(self) -> tuple[Ranker, int]:
        from rec_pipeline.engine.models.ncf_training import fit_ncf

        train, known = (_user_item(part, self._events.n_items) for part in (self._train, self._known))
        found = fit_ncf(train, self._ncf_params, self._options, validation=self._validation)
        return ScoreRanker("ncf", fit_ncf(known, found.refit_params, self._options).model), found.best_epoch

    def sequence(self) -> tuple[Ranker, int]:
        from rec_pipeline.engine.models.sequence_training import continue_sequence, fit_sequence

        n_items = self._events.n_items
        found = fit_sequence(self._train, n_items, self._sequence_params, self._options, validation=self._validation)
        model = continue_sequence(found.model, self._known, self._options)
        return SequenceRanker(model, exact_up_to=n_items), found.best_epoch


def _ranked(ranker: Ranker, events: Events) -> tuple[float, float]:
    known, relevant = events.without_last(1), events.held_out(1)
    history = _user_item(known, events.n_items)
    user_idx = np.flatnonzero(np.diff(relevant.indptr))
    totals = np.zeros(2)
    batch_size = max(1, SCORE_CELLS // events.n_items)
    for users in iterate_users(history, user_idx, batch_size, sequences=known):
        ranking = ranker.recommend(users, CUTOFF)
        values = accuracy_metrics(ranking.item_idx, relevant[users.user_idx], [CUTOFF])
        totals += [values[label(name, CUTOFF)].sum() for name in ("hit_rate", "ndcg")]
    hit_rate, ndcg = totals / len(user_idx)
    return float(hit_rate), float(ndcg)


def _user_item(sequences: UserSequences, n_items: int) -> sp.csr_matrix:
    matrix = sp.csr_matrix(
        (np.ones(len(sequences.item_idx), dtype=np.float32), sequences.item_idx, sequences.starts),
        shape=(len(sequences), n_items),
        copy=True,  # sorted in place, where the sequences must stay in order of time
    )
    matrix.sort_indices()
    return matrix


def _read(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise ConfigurationError(f"{path}: there is no such file")
    wanted = [c.USER_ID, c.ITEM_ID, c.TIMESTAMP]
    try:
        table = _table(path)
    except (ValueError, OSError) as error:
        raise ConfigurationError(f"{path} cannot be read as a table: {error}") from error
    if not {c.USER_ID, c.ITEM_ID} <= set(table):
        raise ConfigurationError(
            f"{path} must hold the columns user_id and item_id, found {', '.join(map(str, table))}"
        )
    table = table[[name for name in wanted if name in table]]
    n_incomplete = int(table.isna().any(axis=1).sum())
    if n_incomplete:
        raise ConfigurationError(f"{path}: {n_incomplete} rows lack an id or a timestamp")
    return table.astype({c.USER_ID: "str", c.ITEM_ID: "str"})


def _table(path: Path) -> pd.DataFrame:
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    if path.suffix not in SEPARATORS:
        raise ConfigurationError(f"{path} must end with .parquet or one of {', '.join(SEPARATORS)}")
    separator, ids = SEPARATORS[path.suffix], {c.USER_ID: "str", c.ITEM_ID: "str"}
    first = pd.read_csv(path, sep=separator, header=None, nrows=1, dtype="str").iloc[0].tolist()
    if c.USER_ID in first:
        return pd.read_csv(path, sep=separator, dtype=ids)
    names = [c.USER_ID, c.ITEM_ID, c.TIMESTAMP][: len(first)]
    if len(first) > len(names):
        raise ConfigurationError(
            f"{path} has {len(first)} columns and no names; give it a row with user_id and item_id"
        )
    return pd.read_csv(path, sep=separator, names=names, dtype=ids)

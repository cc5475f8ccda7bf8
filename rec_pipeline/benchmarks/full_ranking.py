"""
Full ranking on a given train / test pair, as LightGCN (He et al., 2020, SIGIR) and those after it measured.

Every item that a user does not have in train is ranked. The metrics are those of ``engine.evaluation.metrics`` at 20:
recall divides by all held-out items of the user, and users are averaged. Hyper-parameters are the defaults; nothing is
chosen by looking at the pair.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import pandas as pd
import scipy.sparse as sp

from rec_pipeline.benchmarks.contenders import Contender, baselines, chosen, fits, ncf
from rec_pipeline.engine import columns as c
from rec_pipeline.engine.data.batches import Ranking, iterate_users
from rec_pipeline.engine.data.id_map import IdMap
from rec_pipeline.engine.errors import ConfigurationError
from rec_pipeline.engine.evaluation.metrics import accuracy_metrics, label
from rec_pipeline.engine.models.ease import EASEParams
from rec_pipeline.engine.models.ncf_params import NCFParams
from rec_pipeline.engine.models.scorer import Scorer

HELD_OUT = 0.1
CUTOFF = 20
ALS = {"factors": 128, "regularization": 50, "alpha": 3, "iterations": 15}
SCORE_CELLS = 1 << 23  # scores held at a time: 32 MiB of float32


@dataclass(frozen=True)
class Pair:
    """
    Train and test interactions in the rows of the same id maps.

    Attributes
    ----------
    train, test
        float32 CSR of shape (n_users, n_items) of ones; no entry is in both.
    n_known_again
        Test rows dropped because the pair is in train as well.
    n_repeated
        Test rows dropped because the pair is in test twice.
    """

    train: sp.csr_matrix
    test: sp.csr_matrix
    n_known_again: int
    n_repeated: int


@dataclass(frozen=True)
class FullRankingRow:
    """
    One model in the table.

    Attributes
    ----------
    recall, ndcg
        At 20, means over users with a held-out item, and then over seeds.
    fit_seconds, rank_seconds
        Mean wall time of a fit, and of ranking all those users.
    n_seeds
        Fits behind the means.
    skipped
        Why there is no number; None if there is.
    """

    name: str
    recall: float | None = None
    ndcg: float | None = None
    fit_seconds: float | None = None
    rank_seconds: float | None = None
    n_seeds: int = 0
    skipped: str | None = None


def read_pair(train: Path, test: Path) -> Pair:
    """
    Read two tables with columns ``user_id`` and ``item_id``, CSV or Parquet; other columns are ignored.

    Raises
    ------
    ConfigurationError
        If a file or a column is missing, an id is, or no test row is left.
    """
    frames = [_read(path) for path in (train, test)]
    both = pd.concat(frames)
    users, items = IdMap.from_ids(both[c.USER_ID]), IdMap.from_ids(both[c.ITEM_ID])
    shape = (len(users), len(items))
    counted = [
        sp.csr_matrix(
            (np.ones(len(frame), np.float32), (users.to_idx(frame[c.USER_ID]), items.to_idx(frame[c.ITEM_ID]))), shape
        )
        for frame in frames
    ]
    for matrix in counted:
        matrix.sum_duplicates()
        matrix.data[:] = 1
    again = counted[1].multiply(counted[0]).tocsr()
    held_out = sp.csr_matrix(counted[1] - again)
    held_out.eliminate_zeros()
    if not held_out.nnz:
        raise ConfigurationError(f"{test}: every row is in {train} already, nothing is left to rank")
    return Pair(counted[0], held_out, int(again.nnz), len(frames[1]) - int(counted[1].nnz))


def ranking_metrics(model: Scorer, pair: Pair) -> tuple[float, float]:
    """Return recall@20 and ndcg@20 over the users with held-out items; ties by item row."""
    user_idx = np.flatnonzero(np.diff(pair.test.indptr))
    values: dict[str, list[float]] = {}
    for users in iterate_users(pair.train, user_idx, max(1, SCORE_CELLS // pair.train.shape[1])):
        ranking = Ranking.from_scores(model.score(users), CUTOFF, excluded=users.history)
        for name, value in accuracy_metrics(ranking.item_idx, pair.test[users.user_idx], [CUTOFF]).items():
            values.setdefault(name, []).extend(value.tolist())
    return fmean(values[label("recall", CUTOFF)]), fmean(values[label("ndcg", CUTOFF)])


def contenders(params: NCFParams) -> list[Contender]:
    """Return the baselines and NCF with the given settings."""
    return [*baselines([EASEParams()], [ALS]), ncf("ncf", params, held_out=HELD_OUT)]


def run(
    train: Path,
    test: Path,
    *,
    seeds: int = 1,
    only: list[str] | None = None,
    params: NCFParams | None = None,
    on_row: Callable[[FullRankingRow], None] | None = None,
) -> tuple[dict[str, int], list[dict[str, object]]]:
    """
    Fit every contender on ``train`` and rank the catalogue for every user of ``test``.

    Returns
    -------
    dict
        Counts of the data.
    list
        The rows, as dictionaries.

    Raises
    ------
    ConfigurationError
        If the files cannot be used or a name is unknown.
    """
    pair = read_pair(train, test)
    rows: list[FullRankingRow] = []
    for row in _rows(pair, seeds, chosen(contenders(params or NCFParams()), only)):
        rows.append(row)
        if on_row:
            on_row(row)
    facts = {
        "n_users": pair.train.shape[0],
        "n_items": pair.train.shape[1],
        "n_train": int(pair.train.nnz),
        "n_test": int(pair.test.nnz),
        "n_test_known_again": pair.n_known_again,
        "n_test_repeated": pair.n_repeated,
    }
    return facts, [asdict(row) for row in rows]


def _read(path: Path) -> pd.DataFrame:
    wanted = [c.USER_ID, c.ITEM_ID]
    if not path.is_file():
        raise ConfigurationError(f"{path}: there is no such file")
    try:
        frame = (
            pd.read_parquet(path, columns=wanted) if path.suffix == ".parquet" else pd.read_csv(path, usecols=wanted)
        )
    except (ValueError, OSError) as error:
        raise ConfigurationError(f"{path} must be CSV or Parquet with columns user_id and item_id: {error}") from error
    if frame.isna().any(axis=None):
        raise ConfigurationError(f"{path}: {int(frame.isna().any(axis=1).sum())} rows lack an id")
    return frame.astype(str)


def _rows(pair: Pair, seeds: int, everyone: list[Contender]) -> Iterator[FullRankingRow]:
    for contender in everyone:
        reason = contender.reason_to_skip(pair.train.shape[1])
        if reason:
            yield FullRankingRow(contender.name, skipped=reason)
            continue
        values, fit_seconds, rank_seconds = [], [], []
        for fitted in fits(contender, pair.train, seeds):
            started = time.perf_counter()
            values.append(ranking_metrics(fitted.model, pair))
            rank_seconds.append(time.perf_counter() - started)
            fit_seconds.append(fitted.seconds)
        recalls, ndcgs = zip(*values, strict=True)
        yield FullRankingRow(
            contender.name, fmean(recalls), fmean(ndcgs), fmean(fit_seconds), fmean(rank_seconds), len(values)
        )

"""
The protocol of He et al. (2017), "Neural Collaborative Filtering", WWW, section 4.1, on the authors' split.

One item a user is held out and ranked among 99 given items that the user has not met. The metrics are sampled: they
say which of two models ranks better under this protocol, and nothing about a full catalogue (Krichene & Rendle, 2020).
Differs from the paper's code in that negatives equal to the user's own test item are dropped, and that a tie counts
against the model.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from rec_pipeline.benchmarks.contenders import Contender, baselines, chosen, fits, ncf, shown
from rec_pipeline.engine import columns as c
from rec_pipeline.engine.data.batches import IdxMatrix, IdxVector, UserBatch, iterate_users
from rec_pipeline.engine.data.id_map import NO_IDX
from rec_pipeline.engine.errors import ConfigurationError
from rec_pipeline.engine.models.ease import EASEParams
from rec_pipeline.engine.models.ncf_params import NCFParams, NCFVariant
from rec_pipeline.engine.models.scorer import Scorer

CUTOFF = 10
BATCH_SIZE = 512
EASE_CHOICE = (250, 500, 1000, 1500, 2500)
ALS_CHOICE = tuple(
    {"factors": factors, "regularization": regularization, "alpha": alpha, "iterations": 15}
    for factors in (64, 192)
    for regularization in (10, 50, 150)
    for alpha in (1, 3, 10)
)
# Alone it has to learn what the GMF branch brings otherwise; on validation data it was still improving when it ended.
MLP_ALONE = {"epochs": 10, "learning_rate": 3e-3}
FILES = ("train.parquet", "test.parquet", "test_negatives.parquet")


@dataclass(frozen=True)
class PaperSplit:
    """
    The files of the protocol as arrays.

    Attributes
    ----------
    train
        float32 CSR of shape (n_users, n_items).
    test_idx
        int64 of shape (n_users,): the held-out item of each user.
    negatives
        int64 of shape (n_users, n_negatives): given negatives; ``-1`` where one was the user's own test item.
    """

    train: sp.csr_matrix
    test_idx: IdxVector
    negatives: IdxMatrix


@dataclass(frozen=True)
class PaperRow:
    """
    One model in the table; ranks are among the sampled negatives.

    Attributes
    ----------
    sampled_hit_rate, sampled_ndcg
        Means over users, at 10, and then over seeds.
    sampled_hit_rate_sd, sampled_ndcg_sd
        Standard deviations over seeds; None below two.
    n_seeds
        Fits behind the means.
    fit_seconds
        Mean wall time of a fit; None for published numbers.
    settings
        How it was fitted, where that is not by the defaults.
    source
        ``measured``, or where the number was published.
    skipped
        Why there is no number; None if there is.
    """

    name: str
    sampled_hit_rate: float | None = None
    sampled_ndcg: float | None = None
    sampled_hit_rate_sd: float | None = None
    sampled_ndcg_sd: float | None = None
    n_seeds: int = 0
    fit_seconds: float | None = None
    settings: str | None = None
    source: str = "measured"
    skipped: str | None = None


PUBLISHED = (
    PaperRow("neumf_published", 0.730, 0.447, source="He et al. (2017), table 2: NeuMF with pre-training, 64 factors"),
    PaperRow("mf_published", 0.7294, 0.4523, source="Rendle et al. (2020), table 1: dot product"),
)


def read_paper_split(directory: Path) -> PaperSplit:
    """
    Read ``train.parquet``, ``test.parquet`` and ``test_negatives.parquet``, whose ids are rows from 0.

    Raises
    ------
    ConfigurationError
        If a file is missing, or the test part does not hold one item for each user from 0 on.
    """
    for name in FILES:
        if not (directory / name).is_file():
            raise ConfigurationError(f"{directory} has no {name}: it must hold {', '.join(FILES)}")
    train, test, given = (pd.read_parquet(directory / name) for name in FILES)
    test, given = test.sort_values(c.USER_ID), given.sort_values(c.USER_ID)
    n_users = len(test)
    if not (np.array_equal(test[c.USER_ID], np.arange(n_users)) and np.array_equal(given[c.USER_ID], test[c.USER_ID])):
        raise ConfigurationError(f"{directory}: test files must hold one row for each user 0..n-1")
    test_idx = test[c.ITEM_ID].to_numpy(dtype=np.int64)
    negatives = np.stack(given["negatives"].to_list()).astype(np.int64)
    n_items = 1 + max(int(train[c.ITEM_ID].max()), int(test_idx.max()), int(negatives.max()))
    ones = np.ones(len(train), dtype=np.float32)
    matrix = sp.csr_matrix((ones, (train[c.USER_ID], train[c.ITEM_ID])), shape=(n_users, n_items))
    return PaperSplit(matrix, test_idx, np.where(negatives == test_idx[:, None], NO_IDX, negatives))


def sampled_metrics(model: Scorer, split: PaperSplit) -> tuple[float, float]:
    """Return HR@10 and NDCG@10 over all users; an equal score counts as ranked above the held-out item."""
    hits, gains = [], []
    for users in iterate_users(split.train, np.arange(len(split.test_idx)), BATCH_SIZE):
        rank = _rank(model, users, split.test_idx[users.user_idx], split.negatives[users.user_idx])
        is_hit = rank < CUTOFF
        hits.append(is_hit)
        gains.append(is_hit / np.log2(rank + 2))
    return float(np.concatenate(hits).mean()), float(np.concatenate(gains).mean())


def validation_split(split: PaperSplit, seed: int = 0) -> PaperSplit:
    """
    Cut the same protocol out of the train part: one interaction of each user, and as many items that the user lacks.

    Users with a single interaction are left out. Who holds which row changes; nothing of the test part is looked at
    but how many negatives there are.
    """
    rng = np.random.default_rng(seed)
    whole = split.train[np.flatnonzero(np.diff(split.train.indptr) > 1)]
    held_out = whole.indptr[:-1] + (rng.random(whole.shape[0]) * np.diff(whole.indptr)).astype(np.int64)
    draw = rng.random(whole.shape, dtype=np.float32)  # below 1
    draw[whole.nonzero()] = 1
    negatives = np.argsort(draw, axis=1)[:, : split.negatives.shape[1]]
    is_unmet = np.take_along_axis(draw, negatives, axis=1) < 1
    train = whole.copy()
    train.data[held_out] = 0
    train.eliminate_zeros()
    return PaperSplit(train, whole.indices[held_out].astype(np.int64), np.where(is_unmet, negatives, NO_IDX))


def chosen_on_validation(contender: Contender, split: PaperSplit) -> Contender:
    """Return the contender or that of its alternatives which has the best NDCG@10 on validation data, with seed 0."""
    if not contender.alternatives:
        return contender
    validation = validation_split(split)
    return max(
        (contender, *contender.alternatives),
        key=lambda candidate: sampled_metrics(candidate.fit(validation.train, 0), validation)[1],
    )


def _rank(model: Scorer, users: UserBatch, positive: IdxVector, negatives: IdxMatrix) -> npt.NDArray[np.int64]:
    """Return the 0-based rank of each user's held-out item."""
    score = model.score(users)
    at_positive = np.take_along_axis(score, positive[:, None], axis=1)
    at_negatives = np.take_along_axis(score, np.maximum(negatives, 0), axis=1)
    above = ~(at_negatives < at_positive) & (negatives != NO_IDX)
    return np.asarray(above.sum(axis=1), dtype=np.int64)


def contenders(params: NCFParams) -> list[Contender]:
    """Return the baselines with a choice of settings, and NCF with its MLP alone, its GMF alone and both."""
    return [
        *baselines([EASEParams(l2=l2) for l2 in EASE_CHOICE], ALS_CHOICE),
        ncf("gmf", params.model_copy(update={"variant": NCFVariant.GMF})),
        ncf("mlp", params.model_copy(update={"variant": NCFVariant.MLP, **MLP_ALONE}), shown(MLP_ALONE)),
        ncf("neumf", params),
    ]


def run(
    directory: Path,
    *,
    seeds: int,
    only: list[str] | None = None,
    params: NCFParams | None = None,
    on_row: Callable[[PaperRow], None] | None = None,
) -> list[dict[str, object]]:
    """
    Fit every contender on the train part and rank each user's held-out item among the given negatives.

    Parameters
    ----------
    directory
        Folder of the three files.
    seeds
        Fits of each model that depends on a seed; the table has the means.
    only
        Names of contenders; all by default.
    params
        Settings of NCF; the defaults if omitted.
    on_row
        Called as soon as a row is known.

    Raises
    ------
    ConfigurationError
        If files are missing or a name is unknown.
    """
    split = read_paper_split(directory)
    rows: list[PaperRow] = []
    for row in _rows(split, seeds, chosen(contenders(params or NCFParams()), only)):
        rows.append(row)
        if on_row:
            on_row(row)
    return [asdict(row) for row in [*rows, *PUBLISHED]]


def _rows(split: PaperSplit, seeds: int, everyone: list[Contender]) -> Iterator[PaperRow]:
    for entrant in everyone:
        reason = entrant.reason_to_skip(split.train.shape[1])
        if reason:
            yield PaperRow(entrant.name, skipped=reason)
            continue
        contender = chosen_on_validation(entrant, split)
        values, seconds = [], []
        for fitted in fits(contender, split.train, seeds):
            values.append(sampled_metrics(fitted.model, split))
            seconds.append(fitted.seconds)
        hit_rates, ndcgs = zip(*values, strict=True)
        yield PaperRow(
            contender.name,
            fmean(hit_rates),
            fmean(ndcgs),
            stdev(hit_rates) if len(values) > 1 else None,
            stdev(ndcgs) if len(values) > 1 else None,
            len(values),
            fmean(seconds),
            contender.settings,
        )

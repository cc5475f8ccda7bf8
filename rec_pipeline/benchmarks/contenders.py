"""Who stands in a benchmark's table: the baselines, a peer library's matrix factorisation, and the NCF family."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from rec_pipeline.engine.data.batches import ScoreMatrix, UserBatch
from rec_pipeline.engine.errors import ConfigurationError
from rec_pipeline.engine.models.ease import EASEModel, EASEParams
from rec_pipeline.engine.models.item_knn import ItemKNNModel, ItemKNNParams
from rec_pipeline.engine.models.popularity import PopularityModel
from rec_pipeline.engine.models.scorer import Scorer

if TYPE_CHECKING:
    from rec_pipeline.engine.models.ncf_params import NCFParams


@dataclass(frozen=True)
class Contender:
    """
    A way to fit a model.

    Attributes
    ----------
    name
        Row of the table.
    fit
        Train matrix and seed to a fitted model.
    is_seeded
        Whether the seed changes the result; if not, one fit is enough.
    unavailable
        Why it cannot take part; None if it can.
    max_items
        Largest catalogue it can be fitted on; None for any.
    settings
        What a table says of how it is fitted.
    alternatives
        The same model with other settings, for a benchmark that chooses on validation data.
    """

    name: str
    fit: Callable[[sp.csr_matrix, int], Scorer]
    is_seeded: bool = False
    unavailable: str | None = None
    max_items: int | None = None
    settings: str | None = None
    alternatives: tuple["Contender", ...] = ()

    def reason_to_skip(self, n_items: int) -> str | None:
        """Return why it cannot be fitted on a catalogue of that size; None if it can."""
        if self.max_items is not None and n_items > self.max_items:
            return f"at most {self.max_items} items fit, found {n_items}"
        return self.unavailable


@dataclass(frozen=True)
class Fitted:
    """A fitted model and the seconds its fit took."""

    model: Scorer
    seconds: float
    seed: int


def fits(contender: Contender, train: sp.csr_matrix, seeds: int) -> Iterator[Fitted]:
    """Yield a model for each seed from 0, or one where the seed changes nothing."""
    for seed in range(seeds if contender.is_seeded else 1):
        started = time.perf_counter()
        model = contender.fit(train, seed)
        yield Fitted(model, time.perf_counter() - started, seed)


@dataclass(frozen=True)
class FactorModel:
    """Scores by the inner product of a user's and an item's factors, float32 of shape (n, dim)."""

    users: npt.NDArray[np.float32]
    items: npt.NDArray[np.float32]

    def score(self, users: UserBatch) -> ScoreMatrix:
        """Return float32 scores of shape (n_users, n_items)."""
        return np.asarray(self.users[users.user_idx] @ self.items.T, dtype=np.float32)


def chosen(everyone: list[Contender], only: list[str] | None) -> list[Contender]:
    """
    Return those contenders whose names are given, or all.

    Raises
    ------
    ConfigurationError
        If a name is unknown.
    """
    names = [contender.name for contender in everyone]
    unknown = set(only or []) - set(names)
    if unknown:
        raise ConfigurationError(f"--only {', '.join(sorted(unknown))}: expected some of {', '.join(names)}")
    return [contender for contender in everyone if not only or contender.name in only]


def choice(contenders: Sequence[Contender]) -> Contender:
    """Return the first, with the others as alternatives."""
    return replace(contenders[0], alternatives=tuple(contenders[1:]))


def baselines(ease: Sequence[EASEParams], als: Sequence[Mapping[str, Any]]) -> list[Contender]:
    """Return popularity, item-kNN, EASE and implicit's ALS, the last two with a choice of settings."""
    return [
        Contender("popularity", lambda train, _: PopularityModel.fit(train)),
        Contender("item_knn", lambda train, _: ItemKNNModel.fit(train, ItemKNNParams())),
        choice([_ease(params) for params in ease]),
        choice([_als(settings) for settings in als]),
    ]


def _ease(params: EASEParams) -> Contender:
    return Contender(
        "ease",
        lambda train, _: EASEModel.fit(train, params),
        max_items=params.max_items,
        settings=shown({"l2": params.l2}),
    )


def _als(settings: Mapping[str, Any]) -> Contender:
    return Contender(
        "als",
        lambda train, seed: implicit_als(train, seed, **settings),
        is_seeded=True,
        unavailable=None if find_spec("implicit") else "package implicit is absent: pip install -e '.[bench]'",
        settings=shown(settings),
    )


def shown(settings: Mapping[str, Any]) -> str:
    """Return the settings as a table shows them."""
    return ", ".join(f"{name} {value:g}" for name, value in settings.items())


def implicit_als(train: sp.csr_matrix, seed: int, **settings: Any) -> FactorModel:
    """Fit implicit's ALS (Hu, Koren & Volinsky, 2008) on interactions of weight 1."""
    from implicit.cpu.als import AlternatingLeastSquares
    from threadpoolctl import threadpool_limits

    user_item = sp.csr_matrix((np.ones(train.nnz, np.float32), train.indices, train.indptr), train.shape)
    with threadpool_limits(limits=1, user_api="blas"):  # its own threads call BLAS, whose threads would fight them
        model = AlternatingLeastSquares(random_state=seed, **settings)
        model.fit(user_item, show_progress=False)
    return FactorModel(np.asarray(model.user_factors), np.asarray(model.item_factors))


def ncf(name: str, params: "NCFParams", settings: str | None = None, *, held_out: float = 0.0) -> Contender:
    """
    Return NCF with ``params``, trained without looking at anything but the train matrix.

    Parameters
    ----------
    held_out : float
        Share of the train matrix by which early stopping finds the numbers of epochs, before a fit on all of it: as
        ``ncf_model`` does with the validation part. 0: all epochs are run.
    """

    def fit(train: sp.csr_matrix, seed: int) -> Scorer:
        from rec_pipeline.engine.models.ncf_params import TrainingOptions
        from rec_pipeline.engine.models.ncf_training import fit_ncf

        options, fitted = TrainingOptions(seed=seed), params
        if held_out:
            rest, validation = parted(train, held_out, seed)
            fitted = fit_ncf(rest, params, options, validation=validation).refit_params
        return fit_ncf(train, fitted, options).model

    return Contender(name, fit, is_seeded=True, settings=settings)


def parted(matrix: sp.csr_matrix, share: float, seed: int) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """
    Part the stored entries of a matrix at random, and return those that stay and those taken out.

    Examples
    --------
    >>> stay, taken = parted(sp.csr_matrix(np.ones((4, 5))), share=0.25, seed=0)
    >>> stay.nnz, taken.nnz, (stay + taken).nnz
    (15, 5, 20)
    """
    taken = np.random.default_rng(seed).permutation(matrix.nnz) < round(share * matrix.nnz)
    parts = []
    for chosen_entries in (~taken, taken):
        part = matrix.copy()
        part.data = np.where(chosen_entries, part.data, 0)
        part.eliminate_zeros()
        parts.append(part)
    return parts[0], parts[1]

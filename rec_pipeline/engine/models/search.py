"""
Search for hyper-parameters of NCF on validation data, resumable and with hopeless trials cut short.

Trials are drawn by the tree-structured Parzen estimator (Bergstra et al., 2011) and pruned by Hyperband (Li et al.,
2018) on validation ndcg@10 after each epoch. The first trial is the starting point itself, so what is found is never
worse on the validation part. The test part is not looked at.
"""

import fcntl
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from pydantic import BaseModel, Field

from rec_pipeline.engine.data.split import InteractionSplit
from rec_pipeline.engine.errors import ConfigurationError, TrainingDivergedError
from rec_pipeline.engine.models.ncf_params import NCFParams, TrainingOptions

if TYPE_CHECKING:
    import optuna

    from rec_pipeline.engine.models.training import EpochMetrics

COMPLETE, PRUNED, DIVERGED = "complete", "pruned", "diverged"
IS_START, HAS_DIVERGED = "is_start", "has_diverged"  # notes on a trial; one that failed without was interrupted

SPACE: Final[Mapping[str, tuple[Any, ...]]] = {
    "embedding_dim": (32, 64, 128, 256),
    "linear_dim": (0, 64, 128, 256),
    "gmf_learning_rate": (0.03, 0.05, 0.1, 0.2),
    "gmf_weight_decay": (1.0, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0),
    "dropout": (0.3, 0.5, 0.7),
    "learning_rate": (5e-4, 1e-3, 2e-3, 3e-3),
    "weight_decay": (1e-4, 1e-3, 1e-2),
    "batch_size": (32, 64, 128, 256),
}
"""Values tried for each hyper-parameter; what is not here stays as it was."""


class SearchParams(BaseModel, frozen=True, extra="forbid"):
    """How long to search."""

    n_trials: int = Field(
        20,
        ge=1,
        description="Trials in all; those of an earlier search on the same data count unless they were interrupted.",
    )
    seed: int = Field(0, ge=0, description="Decides which values are drawn.")


class TrialLog(Protocol):
    """Follows one trial."""

    def on_epoch(self, metrics: "EpochMetrics") -> None:
        """Take note of an epoch."""

    def finish(self, state: str, value: float | None) -> None:
        """Take note of how it ended, ``complete``, ``pruned`` or ``diverged``, and of its best validation ndcg@10."""


@dataclass(frozen=True)
class SearchResult:
    """
    What a search found.

    Attributes
    ----------
    params
        The best hyper-parameters.
    value
        Their validation ndcg@10: on the data they were chosen by, so an optimistic one.
    first_value
        That of the starting point; None if it diverged.
    counts
        Trials by how they ended: complete, pruned, diverged.
    """

    params: NCFParams
    value: float
    first_value: float | None
    counts: Mapping[str, int]


def search_ncf(
    split: InteractionSplit,
    start: NCFParams,
    params: SearchParams,
    *,
    training: TrainingOptions,
    folder: Path,
    name: str,
    observe: Callable[[int, NCFParams], AbstractContextManager[TrialLog]],
) -> SearchResult:
    """
    Find better hyper-parameters than ``start``, by fitting on ``split.train`` and looking at ``split.validation``.

    Parameters
    ----------
    split
        Its test part is not used.
    start
        The first trial, and what stays fixed.
    params, training
        Length and seed of the search; seed, device and threads of each fit.
    folder
        Holds ``search.db`` (SQLite), from which a killed search goes on.
    name
        Names the search; it must tell apart what must not be mixed, such as data and fixed settings.
    observe
        Entered with number and settings of each trial, left when it has ended.

    Raises
    ------
    ConfigurationError
        If another process searches in ``folder``.
    TrainingDivergedError
        If no trial came to its end.
    """
    import optuna
    from optuna.trial import TrialState

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    n_epochs = start.pretrain_epochs + start.epochs
    with _alone(folder):
        study = optuna.create_study(
            storage=f"sqlite:///{folder.absolute() / 'search.db'}",
            study_name=name,
            load_if_exists=True,
            direction="maximize",
            pruner=optuna.pruners.HyperbandPruner(min_resource=min(3, n_epochs), max_resource=n_epochs),
        )
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            study.tell(trial.number, state=TrialState.FAIL)  # it was interrupted
        done = _ended(study)
        # A sampler's state is not kept: seeded by what is there, equal searches draw alike wherever they resume.
        study.sampler = optuna.samplers.TPESampler(seed=params.seed + len(study.trials), multivariate=True)
        waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        if not any(IS_START in trial.user_attrs for trial in (*done, *waiting)):
            study.enqueue_trial({key: getattr(start, key) for key in SPACE}, user_attrs={IS_START: True})

        def objective(trial: "optuna.Trial") -> float:
            candidate = start.model_copy(update={key: _suggest(trial, key, start) for key in SPACE})
            with observe(trial.number, candidate) as log:
                return _fit(split, candidate, training, trial, log)

        study.optimize(objective, n_trials=max(0, params.n_trials - len(done)), catch=(TrainingDivergedError,))
        done = _ended(study)
        states = [trial.state.name for trial in done]
        if "COMPLETE" not in states:
            raise TrainingDivergedError(f"none of {len(done)} trials came to its end: start from a lower learning rate")
        return SearchResult(
            params=NCFParams(**start.model_copy(update=study.best_params).model_dump()),
            value=float(study.best_value),
            first_value=next((trial.value for trial in done if IS_START in trial.user_attrs), None),
            counts={COMPLETE: states.count("COMPLETE"), PRUNED: states.count("PRUNED"), DIVERGED: states.count("FAIL")},
        )


def _suggest(trial: "optuna.Trial", key: str, start: NCFParams) -> Any:
    values = {*SPACE[key], getattr(start, key)}
    return trial.suggest_categorical(key, sorted(values, key=lambda value: (value is not None, value or 0)))


def _fit(
    split: InteractionSplit, candidate: NCFParams, training: TrainingOptions, trial: "optuna.Trial", log: TrialLog
) -> float:
    """Return the validation ndcg@10 of what a fit keeps; leave it when the pruner sees no hope."""
    import optuna

    from rec_pipeline.engine.models.ncf_training import fit_ncf

    best: float | None = None

    def on_epoch(metrics: "EpochMetrics") -> None:
        nonlocal best
        value = float(metrics.validation_ndcg or 0.0)
        best = value if best is None else max(best, value)
        log.on_epoch(metrics)
        trial.report(value, metrics.epoch)
        # The starting point is what the others are held against, so it runs to its end.
        if IS_START not in trial.user_attrs and trial.should_prune():
            raise optuna.TrialPruned

    try:
        fitted = fit_ncf(
            split.by_user.train.user_item,
            candidate,
            training,
            validation=split.by_user.validation.user_item,
            on_epoch=on_epoch,
        )
    except optuna.TrialPruned:
        log.finish(PRUNED, best)
        raise
    except TrainingDivergedError:
        trial.set_user_attr(HAS_DIVERGED, True)
        log.finish(DIVERGED, None)
        raise
    value = float(fitted.history[fitted.best_epoch - 1].validation_ndcg or 0.0)
    log.finish(COMPLETE, value)
    return value


def _ended(study: "optuna.Study") -> "list[optuna.trial.FrozenTrial]":
    """Return the trials that count: all that have ended but those that were interrupted."""
    return [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.state.is_finished() and (trial.state.name != "FAIL" or HAS_DIVERGED in trial.user_attrs)
    ]


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "search.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigurationError(f"another search is at work in {folder}: wait for it or stop it") from error
        yield

"""
What a source recommends to the users of a part of the time before the test part, knowing only what came before it.

A model is fitted twice: on train, to stop it in time, and on train and validation, to be evaluated. The first fit's
lists are kept beside the second fit, so that weights for the merge are tuned on lists whose models never saw what they
are judged by. The epoch to stop at was chosen on the same part, which flatters a trained source a little; nothing of
the test part is touched.

Where the validation part holds too few users to tell one weight from another, earlier windows of time are looked at as
well, each with models that know what came before it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self, TypeAlias

import numpy as np

from rec_pipeline.engine import columns as c
from rec_pipeline.engine.artifacts import Storable, read_array, write_array
from rec_pipeline.engine.compute import LOCAL, Compute
from rec_pipeline.engine.data.batches import IdxVector, Ranking, at_most, iterate_users
from rec_pipeline.engine.data.split import InteractionSplit, SplitStrategy
from rec_pipeline.engine.recommenders.ranker import Ranker

if TYPE_CHECKING:
    from rec_pipeline.engine.models.ncf_params import TrainingOptions
    from rec_pipeline.engine.models.ncf_training import NCFFit
    from rec_pipeline.engine.models.sequence_training import SequenceFit

KEPT_ITEMS: Final = 200
MAX_USERS: Final = 2000  # a weight is known to a few percent from so many users
ENOUGH_USERS: Final = 200  # with a history: no earlier window is looked at
MAX_WINDOWS: Final = 4
BATCH_SIZE: Final = 256

# Makes a source that knows the train part of a window and nothing later.
FitsWindow: TypeAlias = Callable[[InteractionSplit], Ranker]


def tuning_windows(split: InteractionSplit) -> list[InteractionSplit]:
    """
    Return the parts of the time before the test part that a merge is tuned on, the latest first.

    The first is ``split`` itself, whose validation part is held out. Earlier ones follow where time decides the parts
    and the users with a history are fewer than ``ENOUGH_USERS``: as many interactions before it are held out and what
    came before them is known, on the same id maps. They leave half of the train part to learn from.
    """
    windows = [split]
    train, n_held_out = split.train, len(split.validation)
    end = split.validation[c.TIMESTAMP].min()
    n_users = _n_with_history(split)
    while split.strategy == SplitStrategy.time and n_users < ENOUGH_USERS and len(windows) < MAX_WINDOWS:
        n_known = len(train) - len(windows) * n_held_out
        if n_known < len(train) / 2:
            break
        begin = train[c.TIMESTAMP].iloc[n_known]
        known, held_out = train[train[c.TIMESTAMP] < begin], train[train[c.TIMESTAMP].between(begin, end, "left")]
        if not known[c.USER_IDX].duplicated().any() or held_out.empty:  # nobody has a second event to learn from
            break
        windows.append(split.with_known(known, held_out))
        n_users += _n_with_history(windows[-1])
        end = begin
    return windows


def _n_with_history(split: InteractionSplit) -> int:
    is_known, is_held_out = (np.diff(part.starts) > 0 for part in (split.by_user.train, split.by_user.validation))
    return int((is_known & is_held_out).sum())


@dataclass(frozen=True)
class WindowRanking:
    """
    Lists for the users of one window.

    Attributes
    ----------
    user_idx
        int64 of shape (n_users,): rows of the split's users, ascending.
    ranking
        Their lists, ``KEPT_ITEMS`` long, without what they have in the train part.
    """

    user_idx: IdxVector
    ranking: Ranking

    @classmethod
    def of(cls, source: Ranker, window: InteractionSplit) -> Self:
        """Ask ``source``, fitted on ``window.train``, with what the train part holds of each user."""
        user_idx = validation_users(window)
        known = window.by_user.train
        batches = iterate_users(known.user_item, user_idx, BATCH_SIZE, sequences=known.sequences)
        return cls(user_idx, Ranking.joined([source.recommend(batch, KEPT_ITEMS) for batch in batches]))


@dataclass(frozen=True)
class ValidationRanking:
    """Lists of one source for the users of each of the ``tuning_windows``, in their order."""

    windows: tuple[WindowRanking, ...]

    @classmethod
    def of(cls, fit: FitsWindow, split: InteractionSplit) -> Self:
        """Ask what ``fit`` returns for each of the windows of ``split``, the earliest first."""
        in_order = [WindowRanking.of(fit(window), window) for window in reversed(tuning_windows(split))]
        return cls(tuple(reversed(in_order)))

    def save(self, directory: Path) -> None:
        """Write four arrays, ``validation_*.npy``."""
        n_users = [len(window.user_idx) for window in self.windows]
        write_array(directory / "validation_n_users.npy", np.array(n_users))
        for name, values in (
            ("user_idx", [window.user_idx for window in self.windows]),
            ("item_idx", [window.ranking.item_idx for window in self.windows]),
            ("score", [window.ranking.score for window in self.windows]),
        ):
            write_array(directory / f"validation_{name}.npy", np.concatenate(values))

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read what ``save`` wrote; other files beside it do not matter."""
        n_users, *arrays = (
            read_array(directory / f"validation_{name}.npy") for name in ("n_users", "user_idx", "item_idx", "score")
        )
        parts = (np.split(values, np.cumsum(n_users)[:-1]) for values in arrays)
        return cls(
            tuple(
                WindowRanking(user_idx, Ranking(item_idx, score))
                for user_idx, item_idx, score in zip(*parts, strict=True)
            )
        )


def collaborative_lists(
    first: "NCFFit", split: InteractionSplit, options: "TrainingOptions | None" = None, compute: Compute = LOCAL
) -> ValidationRanking:
    """Return the lists of ``first``, fitted on ``split.train``, and in earlier windows those of like fits."""
    from rec_pipeline.engine.models.ncf_training import fit_ncf
    from rec_pipeline.engine.recommenders.collaborative import CollaborativeRanker

    def fit(window: InteractionSplit) -> Ranker:
        if window is split:
            return CollaborativeRanker(first.model)
        return CollaborativeRanker(
            fit_ncf(window.by_user.train.user_item, first.refit_params, options, compute=compute).model
        )

    return ValidationRanking.of(fit, split)


def sequence_lists(
    first: "SequenceFit", split: InteractionSplit, options: "TrainingOptions | None" = None, compute: Compute = LOCAL
) -> ValidationRanking:
    """
    Return the lists of ``first``, fitted on ``split.train``, and in earlier windows those of one like it.

    That one is fitted on what the earliest window knows and trained on from window to window, as what is served is.
    """
    from rec_pipeline.engine.models.sequence import SequenceModel
    from rec_pipeline.engine.models.sequence_training import continue_sequence, fit_sequence
    from rec_pipeline.engine.recommenders.sequence import SequenceRanker

    earlier: SequenceModel | None = None

    def fit(window: InteractionSplit) -> Ranker:
        nonlocal earlier
        if window is split:
            return SequenceRanker(first.model)
        known = window.by_user.train.sequences
        if earlier is None:
            earlier = fit_sequence(known, len(window.items), first.refit_params, options, compute=compute).model
        else:
            earlier = continue_sequence(earlier, known, options, compute=compute)
        return SequenceRanker(earlier)

    return ValidationRanking.of(fit, split)


@dataclass(frozen=True)
class FittedTwice:
    """A model fitted on train and validation, and the lists that its fit on train alone gave."""

    model: Storable
    validation: ValidationRanking

    def save(self, directory: Path) -> None:
        """Write both into one directory; each class loads its own from it."""
        self.model.save(directory)
        self.validation.save(directory)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Refuse: the model's class is not known here."""
        raise TypeError(f"open {directory} as the model or as {ValidationRanking.__name__}")


def validation_users(split: InteractionSplit) -> IdxVector:
    """Return the users with something held out in the validation part, ``MAX_USERS`` of them at most, ascending."""
    return at_most(np.flatnonzero(np.diff(split.by_user.validation.starts)), MAX_USERS, seed=0)

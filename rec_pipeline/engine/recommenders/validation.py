"""
What a source recommends to the users of the validation part, knowing the train part only.

A model is fitted twice: on train, to stop it in time, and on train and validation, to be evaluated. The first fit's
lists are kept beside the second fit, so that weights for the merge are tuned on lists whose models never saw what they
are judged by, without a third fit. The epoch to stop at was chosen on the same part, which flatters a trained source a
little; nothing of the test part is touched.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np

from rec_pipeline.engine.artifacts import Storable, read_array, write_array
from rec_pipeline.engine.data.batches import IdxVector, Ranking, at_most, iterate_users
from rec_pipeline.engine.data.split import InteractionSplit
from rec_pipeline.engine.recommenders.ranker import Ranker

KEPT_ITEMS: Final = 200
MAX_USERS: Final = 2000  # a weight is known to a few percent from so many users
BATCH_SIZE: Final = 256


@dataclass(frozen=True)
class ValidationRanking:
    """
    Lists for the users of the validation part.

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
    def of(cls, source: Ranker, split: InteractionSplit) -> Self:
        """Ask ``source``, fitted on ``split.train``, with what the train part holds of each user."""
        user_idx = validation_users(split)
        history, sequences = split.user_item(split.train), split.sequences(split.train)
        batches = iterate_users(history, user_idx, BATCH_SIZE, sequences=sequences)
        lists = [source.recommend(batch, KEPT_ITEMS) for batch in batches]
        return cls(
            user_idx,
            Ranking(np.concatenate([part.item_idx for part in lists]), np.concatenate([part.score for part in lists])),
        )

    def save(self, directory: Path) -> None:
        """Write three arrays, ``validation_*.npy``."""
        write_array(directory / "validation_user_idx.npy", self.user_idx)
        write_array(directory / "validation_item_idx.npy", self.ranking.item_idx)
        write_array(directory / "validation_score.npy", self.ranking.score)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read what ``save`` wrote; other files beside it do not matter."""
        user_idx, item_idx, score = (
            read_array(directory / f"validation_{name}.npy") for name in ("user_idx", "item_idx", "score")
        )
        return cls(user_idx, Ranking(item_idx, score))


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
    return at_most(np.flatnonzero(np.diff(split.user_item(split.validation).indptr)), MAX_USERS, seed=0)

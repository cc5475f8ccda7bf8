"""The one thing every model can do."""

from typing import Protocol

from rec_pipeline.engine.data.batches import ScoreMatrix, UserBatch


class Scorer(Protocol):
    """A fitted model that scores the whole catalogue for a batch of users."""

    def score(self, users: UserBatch) -> ScoreMatrix:
        """
        Return float32 scores of shape (n_users, n_items), higher is better, all finite.

        A user whom the model cannot tell apart from any other (unknown, no history) gets a row of equal scores.
        """

"""The protocol that all recommenders share inside: rows in, rows out; external ids are converted at the door."""

from typing import Protocol

from rec_pipeline.engine.data.batches import BoolVector, Ranking, UserBatch


class Ranker(Protocol):
    """Ranks catalogue items for a batch of users."""

    @property
    def name(self) -> str:
        """Name in reports, in fusion weights and in the ``sources`` of a recommendation."""

    def recommend(self, users: UserBatch, top_k: int, *, eligible: BoolVector | None = None) -> Ranking:
        """
        Return each user's ``top_k`` best items that are eligible and not in the user's history.

        Parameters
        ----------
        users
            Whom to recommend to; their history is excluded from the result.
        top_k : int
            List length, >= 1.
        eligible : bool of shape (n_items,), optional
            Items that may be returned (available, not expired); all by default.

        Returns
        -------
        Ranking
            A row of ``-1`` for a user about whom this recommender knows nothing.
        """

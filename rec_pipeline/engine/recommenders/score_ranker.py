"""Any scorer as a recommender: score the whole catalogue, keep the best."""

from dataclasses import dataclass

import numpy as np

from rec_pipeline.engine.data.batches import BoolVector, Ranking, ScoreMatrix, UserBatch
from rec_pipeline.engine.models.scorer import Scorer


@dataclass(frozen=True)
class ScoreRanker:
    """
    Ranks by the scores of a model, over the full catalogue.

    Memory and time grow with users in the batch times items in the catalogue.

    Attributes
    ----------
    name
        Name in reports and in the sources of a recommendation.
    scorer
        Fitted model.
    serves_everyone
        Whether a row of equal scores is an answer (popularity: every item equally popular) or says that the model knows
        nothing about the user (all personal models), who then gets a row of ``-1``.
    """

    name: str
    scorer: Scorer
    serves_everyone: bool = False

    def recommend(self, users: UserBatch, top_k: int, *, eligible: BoolVector | None = None) -> Ranking:
        """Rank all eligible, unseen items by their score; ties by item row."""
        score = np.array(self.scorer.score(users), dtype=np.float32)  # (n_users, n_items)
        if not self.serves_everyone:
            score[rows_of_equal_scores(score)] = -np.inf
        if eligible is not None:
            score[:, ~eligible] = -np.inf
        return Ranking.from_scores(score, top_k, excluded=users.history)


def rows_of_equal_scores(score: ScoreMatrix) -> BoolVector:
    """Return bool of shape (n_users,): rows that say nothing, as every item has the same score."""
    return np.asarray(score.max(axis=1) == score.min(axis=1))

"""What every model that scores the catalogue keeps; subclass it once a model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

from rec_pipeline.engine.data.batches import UserBatch
from rec_pipeline.engine.models.scorer import Scorer
from rec_pipeline.engine.recommenders.score_ranker import ScoreRanker

N_USERS, N_ITEMS = 40, 30


def planted_history() -> sp.csr_matrix:
    """Users like items of their own parity; the last user has no history, the last item no user."""
    rng = np.random.default_rng(11)
    seen = (np.arange(N_USERS)[:, None] % 2 == np.arange(N_ITEMS) % 2) & (rng.random((N_USERS, N_ITEMS)) < 0.5)
    seen[-1] = False
    seen[:, -1] = False
    return sp.csr_matrix(seen.astype(np.float32))


class ScorerContract:
    """Tests of one model class; ``kind`` has ``save`` and ``load``."""

    kind: Any

    @classmethod
    def fit(cls, history: sp.csr_matrix) -> Any:
        """Return a model fitted on ``history`` with a fixed seed."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def history(cls) -> sp.csr_matrix:
        return planted_history()

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls, history: sp.csr_matrix) -> Scorer:
        fitted: Scorer = cls.fit(history)
        return fitted

    @pytest.fixture
    def users(self, history: sp.csr_matrix) -> UserBatch:
        return UserBatch(np.arange(N_USERS), history)

    def test_scores_are_finite_float32_of_the_whole_catalogue(self, model: Scorer, users: UserBatch) -> None:
        score = model.score(users)

        assert score.shape == (N_USERS, N_ITEMS)
        assert score.dtype == np.float32
        assert np.isfinite(score).all()

    def test_a_second_fit_scores_the_same(self, model: Scorer, history: sp.csr_matrix, users: UserBatch) -> None:
        np.testing.assert_array_equal(self.fit(history).score(users), model.score(users))

    def test_saving_and_loading_changes_no_score(self, model: Any, users: UserBatch, tmp_path: Path) -> None:
        model.save(tmp_path)

        np.testing.assert_array_equal(self.kind.load(tmp_path).score(users), model.score(users))

    def test_fitting_and_scoring_leave_their_inputs_alone(self, users: UserBatch) -> None:
        history = planted_history()
        before = history.copy()

        self.fit(history).score(UserBatch(users.user_idx, history))

        for name in ("data", "indices", "indptr"):
            np.testing.assert_array_equal(getattr(history, name), getattr(before, name))

    def test_a_score_does_not_depend_on_who_else_is_in_the_batch(
        self, model: Scorer, history: sp.csr_matrix, users: UserBatch
    ) -> None:
        some = np.array([7, 3])

        np.testing.assert_allclose(
            model.score(UserBatch(some, history[some])), model.score(users)[some], rtol=1e-5, atol=1e-6
        )

    def test_an_unknown_user_with_history_is_scored_by_it(self, model: Scorer, history: sp.csr_matrix) -> None:
        score = model.score(UserBatch(np.array([-1]), history[:1]))

        assert np.isfinite(score).all()
        assert len(np.unique(score)) > 1

    def test_seen_items_are_never_ranked_and_long_lists_are_padded(self, model: Scorer, users: UserBatch) -> None:
        ranking = ScoreRanker("model", model, serves_everyone=True).recommend(users, N_ITEMS + 5)

        for user, row in enumerate(ranking.item_idx):
            listed, seen = set(row[row >= 0]), set(users.history[user].indices)
            assert not listed & seen
            assert len(listed) == N_ITEMS - len(seen)


class PersonalScorerContract(ScorerContract):
    """Tests of a model that tells users apart."""

    def test_a_user_without_history_gets_equal_scores_and_others_do_not(self, model: Scorer, users: UserBatch) -> None:
        n_different = [len(np.unique(row)) for row in model.score(users)]

        assert n_different[-1] == 1
        assert min(n_different[:-1]) > 1

    def test_what_users_like_is_ranked_above_what_they_do_not(self, model: Scorer, users: UserBatch) -> None:
        score = model.score(users)
        is_liked = np.arange(N_USERS)[:, None] % 2 == np.arange(N_ITEMS) % 2

        mean_liked = np.where(is_liked, score, np.nan)[:-1, :-1]
        mean_other = np.where(is_liked, np.nan, score)[:-1, :-1]

        assert (np.nanmean(mean_liked, axis=1) > np.nanmean(mean_other, axis=1)).mean() > 0.95

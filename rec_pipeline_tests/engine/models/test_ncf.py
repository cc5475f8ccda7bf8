"""NCF on planted data: users like the items of their own parity, and some of those are withheld."""

import copy
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import scipy.sparse as sp
from pydantic import ValidationError

from rec_pipeline.engine.data.batches import Ranking, UserBatch
from rec_pipeline.engine.errors import TrainingDivergedError
from rec_pipeline.engine.models import ncf_training
from rec_pipeline.engine.models.ncf import NCFModel
from rec_pipeline.engine.models.ncf_params import (
    LEAST_EPOCHS,
    LINEAR_WEIGHTS,
    SHRINKAGES,
    NCFLoss,
    NCFParams,
    NCFVariant,
    TrainingOptions,
)
from rec_pipeline.engine.models.ncf_training import NCFFit, fit_ncf
from rec_pipeline.engine.models.training import CHECKPOINT, EpochMetrics

N_USERS, N_ITEMS = 60, 40
OPTIONS = TrainingOptions(seed=3, n_threads=1, device="cpu", checkpoint_seconds=0)
SMALL = NCFParams(
    embedding_dim=8,
    mlp_dim=4,
    layers=[8, 4],
    batch_size=16,
    learning_rate=0.03,
    pretrain_epochs=8,
    epochs=8,
    patience=8,
)


@pytest.fixture(scope="module")
def parity() -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """Train and held-out parts of a board where user u has every item i with u + i even, two of each user held out."""
    liked = (np.arange(N_USERS)[:, None] + np.arange(N_ITEMS)) % 2 == 0
    held_out = np.zeros_like(liked)
    rng = np.random.default_rng(0)
    for user, row in enumerate(liked):
        held_out[user, rng.choice(np.flatnonzero(row), 2, replace=False)] = True
    return sp.csr_matrix((liked & ~held_out).astype(np.float32)), sp.csr_matrix(held_out.astype(np.float32))


@pytest.fixture(scope="module")
def fitted(parity: tuple[sp.csr_matrix, sp.csr_matrix]) -> NCFFit:
    train, held_out = parity
    return fit_ncf(train, SMALL, OPTIONS, validation=held_out)


def everyone(history: sp.csr_matrix) -> UserBatch:
    return UserBatch(np.arange(history.shape[0]), history)


def precision_at_two(model: NCFModel, train: sp.csr_matrix, held_out: sp.csr_matrix) -> float:
    ranking = Ranking.from_scores(model.score(everyone(train)), top_k=2, excluded=train)
    return float(np.take_along_axis(held_out.toarray(), ranking.item_idx, axis=1).mean())


@pytest.mark.parametrize("loss", list(NCFLoss))
@pytest.mark.parametrize("variant", list(NCFVariant))
def test_withheld_items_of_the_users_parity_come_first(
    parity: tuple[sp.csr_matrix, sp.csr_matrix], variant: NCFVariant, loss: NCFLoss
) -> None:
    params = SMALL.model_copy(
        update={
            "variant": variant,
            "loss": loss,
            "n_negatives": 5,
            "mlp_negatives": 25,
            "weight_decay": 0.05,
            "epochs": 16,
        }
    )

    model = fit_ncf(parity[0], params, OPTIONS).model

    assert precision_at_two(model, *parity) == 1


def test_the_scores_of_binary_cross_entropy_are_log_odds_and_those_of_the_softmax_are_not() -> None:
    is_liked = sp.csr_matrix(np.ones((N_USERS, N_ITEMS), dtype=np.float32) * (np.arange(N_ITEMS) < N_ITEMS // 2))
    params = SMALL.model_copy(update={"variant": NCFVariant.GMF, "linear_dim": 0, "gmf_weight_decay": 0.0})

    scores = {
        loss: fit_ncf(is_liked, params.model_copy(update={"loss": loss}), OPTIONS).model.score(everyone(is_liked))
        for loss in NCFLoss
    }
    probability = {loss: 1 / (1 + np.exp(-score)) for loss, score in scores.items()}

    cross_entropy = probability[NCFLoss.BINARY_CROSS_ENTROPY]
    assert cross_entropy[:, : N_ITEMS // 2].mean() > 0.95
    assert cross_entropy[:, N_ITEMS // 2 :].mean() < 0.05
    assert probability[NCFLoss.SOFTMAX][:, : N_ITEMS // 2].mean() < 0.9


def test_same_seed_gives_the_same_scores_bit_for_bit_and_another_seed_does_not(
    parity: tuple[sp.csr_matrix, sp.csr_matrix], fitted: NCFFit
) -> None:
    users = everyone(parity[0])

    again = fit_ncf(parity[0], SMALL, OPTIONS, validation=parity[1])
    other = fit_ncf(parity[0], SMALL, OPTIONS.model_copy(update={"seed": 4}), validation=parity[1])

    np.testing.assert_array_equal(again.model.score(users), fitted.model.score(users))
    assert not np.array_equal(other.model.score(users), fitted.model.score(users))


def test_saving_and_loading_keeps_scores_and_vectors(
    parity: tuple[sp.csr_matrix, sp.csr_matrix], fitted: NCFFit, tmp_path: Path
) -> None:
    users = everyone(parity[0])

    fitted.model.save(tmp_path)
    loaded = NCFModel.load(tmp_path)

    np.testing.assert_array_equal(loaded.score(users), fitted.model.score(users))
    np.testing.assert_array_equal(loaded.user_vectors(users), fitted.model.user_vectors(users))
    assert loaded.params == fitted.model.params
    assert (loaded.n_users, loaded.n_items) == (N_USERS, N_ITEMS)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("killed_after", [3, 8, 11])
def test_a_run_that_was_killed_resumes_to_the_scores_of_an_uninterrupted_one(
    parity: tuple[sp.csr_matrix, sp.csr_matrix], fitted: NCFFit, tmp_path: Path, killed_after: int
) -> None:
    def kill(metrics: EpochMetrics) -> None:
        if metrics.epoch == killed_after:
            raise Killed

    with pytest.raises(Killed):
        fit_ncf(parity[0], SMALL, OPTIONS, validation=parity[1], on_epoch=kill, checkpoint_dir=tmp_path)
    seen: list[int] = []
    resumed = fit_ncf(
        parity[0],
        SMALL,
        OPTIONS,
        validation=parity[1],
        on_epoch=lambda metrics: seen.append(metrics.epoch),
        checkpoint_dir=tmp_path,
    )

    assert seen[0] == killed_after + 1
    assert [entry.train_loss for entry in resumed.history] == [entry.train_loss for entry in fitted.history]
    assert resumed.best_epoch == fitted.best_epoch
    np.testing.assert_array_equal(resumed.model.score(everyone(parity[0])), fitted.model.score(everyone(parity[0])))


def test_a_checkpoint_of_other_data_or_a_torn_one_is_ignored(
    parity: tuple[sp.csr_matrix, sp.csr_matrix], tmp_path: Path
) -> None:
    train, held_out = parity
    fit_ncf(held_out, SMALL, OPTIONS, checkpoint_dir=tmp_path)
    epochs: list[int] = []

    fit_ncf(train, SMALL, OPTIONS, checkpoint_dir=tmp_path, on_epoch=lambda metrics: epochs.append(metrics.epoch))
    (tmp_path / CHECKPOINT).write_bytes((tmp_path / CHECKPOINT).read_bytes()[:100])
    fit_ncf(train, SMALL, OPTIONS, checkpoint_dir=tmp_path, on_epoch=lambda metrics: epochs.append(metrics.epoch))

    assert epochs == [*range(1, 17), *range(1, 17)]


def test_candidate_scores_equal_full_scores_at_the_candidates(
    parity: tuple[sp.csr_matrix, sp.csr_matrix], fitted: NCFFit, rng: np.random.Generator
) -> None:
    users = everyone(parity[0])
    candidates = rng.integers(0, N_ITEMS, size=(N_USERS, 7))
    candidates[:, -1] = -1

    at_candidates = fitted.model.score_candidates(users, candidates)

    full = np.take_along_axis(fitted.model.score(users), candidates, axis=1)
    np.testing.assert_allclose(at_candidates[:, :-1], full[:, :-1], rtol=1e-5, atol=1e-5)
    assert np.isneginf(at_candidates[:, -1]).all()
    alone = fitted.model.score_candidates(UserBatch(users.user_idx[[5]], users.history[[5]]), candidates[[5]])
    np.testing.assert_allclose(alone, at_candidates[[5]], rtol=1e-5, atol=1e-5)
    retrieved, scores = fitted.model.retrieve_and_score(users, lambda queries: (candidates[: len(queries)], None))
    np.testing.assert_array_equal(retrieved, candidates)
    np.testing.assert_array_equal(scores, at_candidates)
    product = np.take_along_axis(fitted.model.user_vectors(users) @ fitted.model.item_vectors().T, candidates, axis=1)
    _, scores = fitted.model.retrieve_and_score(users, lambda _: (candidates, product))
    np.testing.assert_allclose(scores, at_candidates, rtol=1e-5, atol=1e-5)
    _, shifted = fitted.model.retrieve_and_score(users, lambda _: (candidates, product + np.float32(1)))
    np.testing.assert_allclose(shifted, at_candidates + 1, rtol=1e-5, atol=1e-5)  # so it is not computed again


def test_gmf_scores_are_the_inner_product_of_the_vectors(parity: tuple[sp.csr_matrix, sp.csr_matrix]) -> None:
    users = everyone(parity[0])

    model = fit_ncf(parity[0], SMALL.model_copy(update={"variant": NCFVariant.GMF}), OPTIONS).model

    product = model.user_vectors(users) @ model.item_vectors().T
    np.testing.assert_allclose(product, model.score(users), rtol=1e-5, atol=1e-5)
    assert model.item_vectors().dtype == np.float32


def test_a_batch_of_one_user_scores_like_the_whole_batch(
    parity: tuple[sp.csr_matrix, sp.csr_matrix], fitted: NCFFit
) -> None:
    whole = fitted.model.score(everyone(parity[0]))

    one = fitted.model.score(UserBatch(np.array([5]), parity[0][[5]]))

    np.testing.assert_allclose(one, whole[[5]], rtol=1e-5, atol=1e-5)


def test_a_user_without_history_gets_equal_scores_and_zero_vectors(fitted: NCFFit) -> None:
    users = UserBatch(np.array([-1, 3]), sp.csr_matrix(np.zeros((2, N_ITEMS), dtype=np.float32)))

    scores = fitted.model.score(users)

    assert scores.shape == (2, N_ITEMS)
    assert (scores == 0).all()
    assert (fitted.model.user_vectors(users) == 0).all()
    assert fitted.model.score(UserBatch(np.array([], dtype=np.int64), users.history[:0])).shape == (0, N_ITEMS)


def test_a_user_who_came_after_the_fit_is_scored_by_history(fitted: NCFFit) -> None:
    history = np.zeros((2, N_ITEMS), dtype=np.float32)
    history[0, [0, 2, 4]] = 1
    history[1, [1, 3, 5]] = 1

    ranking = Ranking.from_scores(
        fitted.model.score(UserBatch(np.array([-1, -1]), sp.csr_matrix(history))), 10, sp.csr_matrix(history)
    )

    assert (ranking.item_idx % 2 == [[0], [1]]).all()


def test_best_weights_and_refit_epochs_come_from_the_best_validation_value(fitted: NCFFit) -> None:
    values = [entry.validation_ndcg or 0 for entry in fitted.history]

    assert fitted.history[fitted.best_epoch - 1].validation_ndcg == max(values)
    assert fitted.refit_params.epochs <= SMALL.epochs
    assert fitted.refit_params.linear_shrinkage in SHRINKAGES
    assert [entry.epoch for entry in fitted.history] == list(range(1, len(fitted.history) + 1))


def test_a_refit_runs_exactly_the_epochs_that_it_is_given(parity: tuple[sp.csr_matrix, sp.csr_matrix]) -> None:
    params = SMALL.model_copy(update={"pretrain_epochs": 2, "epochs": 3, "patience": 1})

    history = fit_ncf(parity[0], params, OPTIONS).history

    assert [entry.phase for entry in history] == ["gmf"] * 2 + ["network"] * 3
    assert all(entry.validation_ndcg is None for entry in history)


def test_the_penalty_counts_the_more_the_fewer_interactions_there_are() -> None:
    is_liked = np.arange(N_USERS)[:, None] % 2 == np.arange(N_ITEMS) % 2
    draw = np.random.default_rng(0).random((N_USERS, N_ITEMS))
    params = SMALL.model_copy(update={"variant": NCFVariant.GMF, "linear_dim": 0, "gmf_weight_decay": 2.0})

    few, many = (
        fit_ncf(sp.csr_matrix((is_liked & (draw < share)).astype(np.float32)), params, OPTIONS).model.network
        for share in (0.2, 0.9)
    )

    sizes = [float(network.users.data.norm(dim=1).mean()) for network in (few, many)]
    assert sizes[0] < 0.5 * sizes[1]


def test_early_stopping_ranks_the_best_by_the_inner_product_where_the_catalogue_is_large(
    parity: tuple[sp.csr_matrix, sp.csr_matrix], fitted: NCFFit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ncf_training, "EXACT_SCORING_ITEMS", 0)
    values: dict[int, list[float]] = {}
    for n_candidates in (N_ITEMS, 1):
        monkeypatch.setattr(ncf_training, "N_CANDIDATES", n_candidates)
        history = fit_ncf(parity[0], SMALL, OPTIONS, validation=parity[1]).history
        values[n_candidates] = [entry.validation_ndcg or 0 for entry in history if entry.phase == "network"]

    exact = [entry.validation_ndcg or 0 for entry in fitted.history if entry.phase == "network"]
    np.testing.assert_allclose(values[N_ITEMS], exact, rtol=1e-5)
    assert max(values[1]) < max(exact)


@pytest.mark.parametrize(("n_users", "epochs"), [(1, 16), (6_040, 16), (30_000, 16), (100_000, 7), (1_000_000, 4)])
def test_many_users_are_gone_through_less_often(n_users: int, epochs: int) -> None:
    assert NCFParams().gmf_epochs(n_users) == epochs
    assert NCFParams(pretrain_epochs=2).gmf_epochs(n_users) == 2


def test_the_epochs_of_the_first_phase_follow_from_the_users_who_have_something(
    parity: tuple[sp.csr_matrix, sp.csr_matrix], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rec_pipeline.engine.models.ncf_params.GMF_STEPS", 1)
    nobody = sp.csr_matrix((300, parity[0].shape[1]))

    history = fit_ncf(sp.vstack([parity[0], nobody]).tocsr(), SMALL.model_copy(update={"epochs": 0}), OPTIONS).history

    assert [entry.phase for entry in history] == ["gmf"] * LEAST_EPOCHS


def test_the_fit_does_not_change_its_input(parity: tuple[sp.csr_matrix, sp.csr_matrix]) -> None:
    train = sp.csr_matrix(parity[0], copy=True)
    before: npt.NDArray[np.float32] = train.toarray()

    fit_ncf(train, SMALL, OPTIONS)

    np.testing.assert_array_equal(train.toarray(), before)


def test_a_loss_that_is_not_finite_stops_the_training(parity: tuple[sp.csr_matrix, sp.csr_matrix]) -> None:
    with pytest.raises(TrainingDivergedError, match="the loss became"):
        fit_ncf(parity[0], SMALL.model_copy(update={"learning_rate": 1e30}), OPTIONS)


def test_f17_a_weight_that_is_not_finite_is_never_saved(fitted: NCFFit, tmp_path: Path) -> None:
    model = copy.deepcopy(fitted.model)
    next(model.network.parameters()).data[0] = float("nan")

    with pytest.raises(TrainingDivergedError, match="is not finite") as refused:
        model.save(tmp_path)

    assert refused.value.exit_code == 4
    assert list(tmp_path.iterdir()) == []


def test_a_user_row_beyond_the_fit_and_an_empty_training_set_are_refused(fitted: NCFFit) -> None:
    with pytest.raises(ValueError, match="knows 60 users"):
        fitted.model.score(UserBatch(np.array([60]), sp.csr_matrix(np.zeros((1, N_ITEMS), dtype=np.float32))))
    with pytest.raises(ValueError, match="no training interactions"):
        fit_ncf(sp.csr_matrix(np.zeros((3, 4), dtype=np.float32)), SMALL)


def test_misspelt_and_out_of_range_settings_are_refused() -> None:
    with pytest.raises(ValidationError):
        NCFParams.model_validate({"embeding_dim": 8})
    with pytest.raises(ValidationError, match="at least one unit"):
        NCFParams(layers=[8, 0])


def test_closed_form_gets_a_larger_weight_where_learned_vectors_are_noise_and_a_refit_keeps_it(
    parity: tuple[sp.csr_matrix, sp.csr_matrix],
) -> None:
    noisy = SMALL.model_copy(update={"gmf_weight_decay": 0.0, "gmf_learning_rate": 10.0, "linear_dim": 2, "epochs": 0})

    first = fit_ncf(parity[0], noisy, OPTIONS, validation=parity[1])
    again = fit_ncf(parity[0], first.refit_params, OPTIONS)
    unasked = fit_ncf(parity[0], noisy, OPTIONS)

    assert first.refit_params.linear_weight in LINEAR_WEIGHTS
    np.testing.assert_array_equal(again.model.score(everyone(parity[0])), first.model.score(everyone(parity[0])))
    assert unasked.refit_params.linear_weight == 1

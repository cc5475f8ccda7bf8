from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from rec_pipeline.engine.data.batches import BoolVector, IdxVector, UserBatch
from rec_pipeline.engine.data.sequences import UserSequences
from rec_pipeline.engine.errors import TrainingDivergedError
from rec_pipeline.engine.models import sequence_training
from rec_pipeline.engine.models.ncf_params import TrainingOptions
from rec_pipeline.engine.models.sequence import SequenceModel, known_events
from rec_pipeline.engine.models.sequence_params import SequenceParams
from rec_pipeline.engine.models.sequence_training import (
    SequenceFit,
    continue_sequence,
    fit_sequence,
    have_any,
    pieces_of_epoch,
)

N_USERS, N_ITEMS, CYCLE = 120, 24, 20
PARAMS = SequenceParams(
    embedding_dim=16, n_layers=2, n_heads=2, max_length=8, dropout=0.1, batch_events=256, learning_rate=1e-2, epochs=40
)
OPTIONS = TrainingOptions(device="cpu", seed=3, n_threads=1)


def walks(n_users: int = N_USERS, seed: int = 0) -> UserSequences:
    """Each user goes round the items 0 to 19 in order from anywhere; items 20 to 23 are new."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 13, n_users)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    first = rng.integers(CYCLE, size=n_users)
    items = [(first[user] + np.arange(length)) % CYCLE for user, length in enumerate(lengths)]
    return UserSequences(starts, np.concatenate(items))


def users_of(recent: list[list[int]]) -> UserBatch:
    """Return users who have come after the fit and are known by their last events alone."""
    width = max(map(len, recent))
    padded = [[-1] * (width - len(row)) + row for row in recent]
    history = sp.csr_matrix((len(recent), N_ITEMS), dtype=np.float32)
    return UserBatch(np.full(len(recent), -1), history, np.array(padded, dtype=np.int64))


def held_out(sequences: UserSequences) -> tuple[UserSequences, sp.csr_matrix]:
    """Take the last event of each user away."""
    last = sequences.starts[1:] - 1
    shape = (len(sequences), N_ITEMS)
    validation = sp.csr_matrix(
        (np.ones(len(last), np.float32), (np.arange(len(last)), sequences.item_idx[last])), shape
    )
    return UserSequences(sequences.starts - np.arange(len(last) + 1), np.delete(sequences.item_idx, last)), validation


@pytest.fixture(scope="module")
def fitted() -> SequenceFit:
    train, validation = held_out(walks())
    return fit_sequence(train, N_ITEMS, PARAMS, OPTIONS, validation=validation)


@pytest.mark.parametrize("n_negatives", [N_ITEMS, 6])
def test_what_follows_in_every_sequence_is_expected_next(n_negatives: int) -> None:
    params = PARAMS.model_copy(update={"n_negatives": n_negatives, "epochs": 20})
    recent = [[4, 5, 6], [17, 18, 19], [8, 9], [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]]

    score = fit_sequence(walks(), N_ITEMS, params, OPTIONS).model.score(users_of(recent))

    assert score.dtype == np.float32
    assert score.argmax(axis=1).tolist() == [7, 0, 10, 13]


def test_epochs_of_much_data_share_it_and_take_each_piece_once_a_time_around() -> None:
    goes_first = np.arange(50) % 10 == 3

    first, second = ([pieces_of_epoch(goes_first, 4, epoch, seed=1) for epoch in range(at, at + 4)] for at in (0, 4))

    assert all(sorted(np.concatenate(parts)) == list(range(50)) for parts in (first, second))
    assert all(set(np.flatnonzero(goes_first)) <= set(parts[0]) for parts in (first, second))
    assert not np.array_equal(first[0], second[0])
    assert np.array_equal(pieces_of_epoch(goes_first, 1, 7, seed=1), np.arange(50))


def test_a_part_of_the_data_suffices_to_learn_what_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequence_training, "MAX_EPOCH_EVENTS", 250)

    score = fit_sequence(walks(), N_ITEMS, PARAMS, OPTIONS).model.score(users_of([[4, 5, 6], [17, 18, 19]]))

    assert score.argmax(axis=1).tolist() == [7, 0]


def test_training_on_takes_what_has_a_new_item_first(fitted: SequenceFit, monkeypatch: pytest.MonkeyPatch) -> None:
    known, news = walks(), np.array([20, 21, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13])
    train = UserSequences(np.append(known.starts, known.starts[-1] + len(news)), np.append(known.item_idx, news))
    asked: list[list[int]] = []

    def recorded(goes_first: BoolVector, n_parts: int, epoch: int, seed: int) -> IdxVector:
        asked.append(np.flatnonzero(goes_first).tolist())
        return pieces_of_epoch(goes_first, n_parts, epoch, seed)

    monkeypatch.setattr(sequence_training, "pieces_of_epoch", recorded)

    continue_sequence(fitted.model, train, OPTIONS)

    n_pieces = sum(-(-(length - 1) // PARAMS.max_length) for length in known.lengths)
    assert asked == [[n_pieces + 1]]  # of the last user's two pieces, from the newest event back, the older


def test_training_stops_early_and_keeps_the_best_weights(fitted: SequenceFit) -> None:
    values = [entry.validation_ndcg or 0 for entry in fitted.history]

    assert values[fitted.best_epoch - 1] == max(values) > 0.9
    assert len(fitted.history) == min(PARAMS.epochs, fitted.best_epoch + PARAMS.patience)
    assert all(later.train_loss < earlier.train_loss for earlier, later in pairwise(fitted.history[:5]))


def test_the_same_seed_gives_the_same_scores_and_another_does_not() -> None:
    params = PARAMS.model_copy(update={"epochs": 2, "n_negatives": 10})
    users = users_of([[1, 2], [5]])

    scores = [
        fit_sequence(walks(), N_ITEMS, params, OPTIONS.model_copy(update={"seed": seed})).model.score(users)
        for seed in (3, 3, 4)
    ]

    np.testing.assert_array_equal(scores[0], scores[1])
    assert not np.array_equal(scores[0], scores[2])


def test_a_killed_run_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    train, validation = held_out(walks())
    params = PARAMS.model_copy(update={"epochs": 4})
    options = OPTIONS.model_copy(update={"checkpoint_seconds": 0})
    epochs: list[int] = []

    def die_after_two(metrics: Any) -> None:
        epochs.append(metrics.epoch)
        if len(epochs) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_sequence(
            train, N_ITEMS, params, options, validation=validation, on_epoch=die_after_two, checkpoint_dir=tmp_path
        )
    resumed = fit_sequence(
        train,
        N_ITEMS,
        params,
        options,
        validation=validation,
        on_epoch=lambda metrics: epochs.append(metrics.epoch),
        checkpoint_dir=tmp_path,
    )
    whole = fit_sequence(train, N_ITEMS, params, options, validation=validation)

    assert epochs == [1, 2, 3, 4]
    users = users_of([[1, 2, 3], [7]])
    np.testing.assert_array_equal(resumed.model.score(users), whole.model.score(users))


def test_storing_keeps_every_score(fitted: SequenceFit, tmp_path: Path) -> None:
    users = users_of([[1, 2, 3], [7]])
    fitted.model.save(tmp_path)

    np.testing.assert_array_equal(SequenceModel.load(tmp_path).score(users), fitted.model.score(users))


def test_scores_are_inner_products_of_user_and_item_vectors(fitted: SequenceFit) -> None:
    users = users_of([[1, 2, 3], [7]])

    product = fitted.model.user_vectors(users) @ fitted.model.item_vectors().T

    np.testing.assert_allclose(product, fitted.model.score(users), rtol=1e-6)


def test_a_score_depends_neither_on_padding_nor_on_who_else_is_in_the_batch(fitted: SequenceFit) -> None:
    alone = fitted.model.score(users_of([[4, 5]]))
    among = fitted.model.score(users_of([[9, 10, 11, 12, 13], [4, 5], [1]]))[1:2]
    padded = fitted.model.score(users_of([[-1, -1, 4, 5]]))

    np.testing.assert_allclose(among, alone, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(padded, alone, rtol=1e-4, atol=1e-5)


def test_only_the_last_events_count(fitted: SequenceFit) -> None:
    tail = [3, 4, 5, 6, 7, 8, 9, 10]

    np.testing.assert_allclose(
        fitted.model.score(users_of([[15, 11, *tail]])), fitted.model.score(users_of([tail])), rtol=1e-4, atol=1e-5
    )


def test_events_the_model_never_saw_are_passed_over(fitted: SequenceFit) -> None:
    score = fitted.model.score(users_of([[20, 4, 21, 5], [4, 5], [22, 23], [-1]]))

    np.testing.assert_allclose(score[0], score[1], rtol=1e-4, atol=1e-5)
    assert not score[2:].any()
    assert fitted.model.is_fitted_item.tolist() == [True] * CYCLE + [False] * (N_ITEMS - CYCLE)


def test_a_batch_without_recent_events_or_users_is_scored_zero(fitted: SequenceFit) -> None:
    history = sp.csr_matrix(np.ones((2, N_ITEMS), dtype=np.float32))

    assert not fitted.model.score(UserBatch(np.array([0, 1]), history)).any()
    assert fitted.model.score(UserBatch(np.array([], dtype=np.int64), history[:0])).shape == (0, N_ITEMS)


def test_a_batch_of_another_catalogue_is_refused(fitted: SequenceFit) -> None:
    with pytest.raises(ValueError, match="knows 24 items, but the batch has 3"):
        fitted.model.score(UserBatch(np.array([0]), sp.csr_matrix((1, 3), dtype=np.float32)))


def test_a_later_event_changes_nothing_before_it(fitted: SequenceFit) -> None:
    first = torch.tensor([[3, 4, 5, 6]])
    second = torch.tensor([[3, 4, 11, 2]])

    expected = [fitted.model.network.encode(items) for items in (first, second)]

    torch.testing.assert_close(expected[0][:, :2], expected[1][:, :2])
    assert not torch.allclose(expected[0][:, 2:], expected[1][:, 2:])


def test_the_last_position_alone_is_what_all_positions_say_of_it(fitted: SequenceFit) -> None:
    items = torch.tensor([[3, 4, 5], [9, 10, 0]])

    every = fitted.model.network.encode(items)
    last = fitted.model.network.encode(items, torch.tensor([2, 1]))

    torch.testing.assert_close(last[:, 0], every[[0, 1], [2, 1]])


def test_histories_longer_than_the_window_are_learned_from_as_a_whole() -> None:
    n_repeats = 6
    once = np.arange(CYCLE)
    sequences = UserSequences(np.array([0, n_repeats * CYCLE]), np.tile(once, n_repeats))

    fit = fit_sequence(sequences, N_ITEMS, PARAMS.model_copy(update={"epochs": 60}), OPTIONS)

    recent = [[item - 2, item - 1, item] for item in range(2, CYCLE - 1)]
    assert fit.model.score(users_of(recent)).argmax(axis=1).tolist() == list(range(3, CYCLE))


def test_a_model_trained_on_knows_what_came_since_and_forgets_nothing(fitted: SequenceFit) -> None:
    new_item, asked = 21, users_of([[2, 3], [17, 18, 19], [9, 10]])
    before = fitted.model.score(asked)
    old = walks()
    visits = np.tile([18, 19, new_item], 200)  # what follows 19 has changed
    train = UserSequences(
        np.concatenate([old.starts, old.starts[-1] + 3 * np.arange(1, 201)]), np.concatenate([old.item_idx, visits])
    )

    in_small_steps = replace(fitted.model, params=PARAMS.model_copy(update={"batch_events": 32}))
    continued = continue_sequence(in_small_steps, train, OPTIONS)

    assert continued.score(asked).argmax(axis=1).tolist() == [4, new_item, 11]
    assert continued.is_fitted_item[new_item]
    assert not fitted.model.is_fitted_item[new_item]
    np.testing.assert_array_equal(fitted.model.score(asked), before)


def test_in_another_catalogue_an_item_keeps_its_score_and_a_new_one_has_none(fitted: SequenceFit) -> None:
    rows = np.array([5, -1, 3, 4, 6])

    moved = fitted.model.for_catalogue(rows)

    asked = UserBatch(np.array([-1]), sp.csr_matrix((1, len(rows)), dtype=np.float32), np.array([[2, 3]]))
    np.testing.assert_allclose(
        moved.score(asked)[0, [0, 2, 3, 4]], fitted.model.score(users_of([[3, 4]]))[0, [5, 3, 4, 6]], rtol=1e-5
    )
    assert moved.is_fitted_item.tolist() == [True, False, True, True, True]


def test_a_loss_that_is_not_finite_stops_training() -> None:
    with pytest.raises(TrainingDivergedError, match="lower the learning rate"):
        fit_sequence(walks(), N_ITEMS, PARAMS.model_copy(update={"learning_rate": 1e30}), OPTIONS)


def test_users_with_one_event_each_are_refused() -> None:
    with pytest.raises(ValueError, match="no user has two events"):
        fit_sequence(UserSequences(np.array([0, 1, 2]), np.array([3, 4])), N_ITEMS, PARAMS, OPTIONS)


def test_fitting_leaves_its_input_alone() -> None:
    sequences = walks()
    before = replace(sequences, item_idx=sequences.item_idx.copy(), starts=sequences.starts.copy())

    fit_sequence(sequences, N_ITEMS, PARAMS.model_copy(update={"epochs": 1}), OPTIONS)

    np.testing.assert_array_equal(sequences.item_idx, before.item_idx)
    np.testing.assert_array_equal(sequences.starts, before.starts)


def test_a_width_that_the_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="found 3 and 16"):
        SequenceParams(embedding_dim=16, n_heads=3)


def test_the_width_follows_from_the_number_of_events_where_it_is_not_given() -> None:
    assert [SequenceParams().for_events(n).embedding_dim for n in (200_000, 200_001)] == [64, 128]
    assert PARAMS.for_events(200_001) == PARAMS
    with pytest.raises(ValueError, match="found 3 and 64"):
        SequenceParams(n_heads=3)


def test_the_newest_known_events_are_kept() -> None:
    recent = np.array([[0, 1, 2, 3, 4, 5]])

    items, counts = known_events(recent, np.array([True, True, True, False, True, True]), max_length=3)

    assert items.tolist() == [[2, 4, 5]]
    assert counts.tolist() == [3]


def test_stretches_with_an_item_that_is_sought_are_found_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequence_training, "PIECES_AT_ONCE", 2)
    item_idx, is_sought = np.array([0, 1, 0, 2, 0, 2]), np.array([False, True, False])
    starts, ends = np.array([1, 0, 2, 4, 3]), np.array([3, 2, 4, 6, 4])

    found = have_any(item_idx, is_sought, starts, ends)

    assert found.tolist() == [True, True, False, False, False]
    assert have_any(item_idx, ~is_sought, starts, ends).all()

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import scipy.sparse as sp

from rec_pipeline.engine.data.batches import Ranking, UserBatch
from rec_pipeline.engine.data.space import Space
from rec_pipeline.engine.models import item_knn
from rec_pipeline.engine.models.item_knn import ItemKNNModel, ItemKNNParams

# Items 0 and 1 share users 0 and 1; item 2 shares user 1 with both; item 3 has no users.
TRAIN = sp.csr_matrix(np.array([[5, 1, 0, 0], [1, 1, 1, 0], [0, 0, 2, 0]], dtype=np.float32))


def batch(history: npt.ArrayLike) -> UserBatch:
    matrix = sp.csr_matrix(np.asarray(history, dtype=np.float32))
    return UserBatch(user_idx=np.full(matrix.shape[0], -1), history=matrix)


def reference(train: sp.csr_matrix, n_neighbours: int, shrinkage: float) -> npt.NDArray[np.float64]:
    binary = (train.toarray() != 0).astype(np.float64)
    n_users = binary.sum(axis=0)
    similarity = (binary.T @ binary) / np.maximum(np.sqrt(np.outer(n_users, n_users)) + shrinkage, 1e-12)
    np.fill_diagonal(similarity, 0)
    for item in range(len(similarity)):
        order = np.argsort(-similarity[:, item], kind="stable")
        similarity[order[n_neighbours:], item] = 0
    return similarity


def test_similarity_is_the_shrunk_cosine() -> None:
    model = ItemKNNModel.fit(TRAIN, ItemKNNParams(n_neighbours=4, shrinkage=3))

    shared_01, shared_02 = 2 / (np.sqrt(2 * 2) + 3), 1 / (np.sqrt(2 * 2) + 3)
    expected = [
        [0, shared_01, shared_02, 0],
        [shared_01, 0, shared_02, 0],
        [shared_02, shared_02, 0, 0],
        [0, 0, 0, 0],
    ]
    np.testing.assert_allclose(model.similarity.toarray(), expected, rtol=1e-6)


def test_only_the_nearest_neighbours_of_the_scored_item_count() -> None:
    model = ItemKNNModel.fit(TRAIN, ItemKNNParams(n_neighbours=1, shrinkage=0))

    # Item 2 is equally near to 0 and 1 and keeps the lower row; item 2 is nobody's nearest.
    expected = [[0, 2 / 2, 1 / 2, 0], [2 / 2, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(model.similarity.toarray(), expected, rtol=1e-6)


@pytest.mark.parametrize("block_cells", [1, 70, 10**6])
def test_agrees_with_dense_arithmetic_whatever_the_block(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, block_cells: int
) -> None:
    train = sp.random(60, 25, density=0.2, rng=rng, format="csr", dtype=np.float32)
    monkeypatch.setattr(item_knn, "BLOCK_CELLS", block_cells)

    model = ItemKNNModel.fit(train, ItemKNNParams(n_neighbours=5, shrinkage=7))

    np.testing.assert_allclose(
        np.sort(model.similarity.toarray(), axis=0), np.sort(reference(train, 5, 7), axis=0), rtol=1e-5, atol=1e-7
    )
    assert np.diff(model.similarity.tocsc().indptr).max() == 5
    assert model.similarity.diagonal().max() == 0


def test_score_sums_over_the_history_whatever_its_weights() -> None:
    model = ItemKNNModel.fit(TRAIN, ItemKNNParams(n_neighbours=4, shrinkage=0))

    score = model.score(batch([[0.1, 0, 7, 0]]))

    np.testing.assert_allclose(score, [[1 / 2, 2 / 2 + 1 / 2, 1 / 2, 0]], rtol=1e-6)
    assert score.dtype == np.float32


def test_a_user_without_history_gets_equal_scores() -> None:
    score = ItemKNNModel.fit(TRAIN, ItemKNNParams()).score(batch([[0, 0, 0, 0]]))

    assert score.tolist() == [[0, 0, 0, 0]]


def test_planted_taste_is_found() -> None:
    # Everybody likes the items of their own parity; each withholds one.
    likes = np.array([[(user + item) % 2 == 0 for item in range(20)] for user in range(20)], dtype=np.float32)
    withheld = np.array([(user + 2 * (user // 2)) % 20 for user in range(20)])
    likes[np.arange(20), withheld] = 0
    users = batch(likes)

    score = ItemKNNModel.fit(users.history, ItemKNNParams()).score(users)

    assert Ranking.from_scores(score, top_k=1, excluded=users.history).item_idx[:, 0].tolist() == withheld.tolist()


def test_a_fit_in_files_is_that_in_memory(
    rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = sp.random(60, 25, density=0.2, rng=rng, format="csr", dtype=np.float32)
    train.data[::9] = 0
    in_memory = ItemKNNModel.fit(train, ItemKNNParams(n_neighbours=5)).similarity
    monkeypatch.setattr(item_knn, "USERS_AT_ONCE", 7)
    monkeypatch.setattr("rec_pipeline.engine.data.space.PART_ROWS", 50)

    in_files = ItemKNNModel.fit(train, ItemKNNParams(n_neighbours=5), Space(tmp_path)).similarity

    np.testing.assert_array_equal(in_files.toarray(), in_memory.toarray())
    assert in_memory.nnz == 5 * 25


def test_fit_changes_nothing_of_its_input() -> None:
    train = TRAIN.copy()

    ItemKNNModel.fit(train, ItemKNNParams())

    assert (train != TRAIN).nnz == 0


def test_a_stored_zero_is_no_interaction() -> None:
    train = TRAIN.copy()
    train.data[3] = 0
    dense = sp.csr_matrix(train.toarray())

    fitted = ItemKNNModel.fit(train, ItemKNNParams()).similarity.toarray()

    np.testing.assert_array_equal(fitted, ItemKNNModel.fit(dense, ItemKNNParams()).similarity.toarray())


def test_survives_save_and_load(tmp_path: Path) -> None:
    model = ItemKNNModel.fit(TRAIN, ItemKNNParams(n_neighbours=2, shrinkage=1))
    users = batch(TRAIN.toarray())

    model.save(tmp_path)
    loaded = ItemKNNModel.load(tmp_path)

    np.testing.assert_array_equal(loaded.score(users), model.score(users))
    assert loaded.params == model.params


def test_beats_popularity_on_real_ratings(shared_data: Callable[[str], Path]) -> None:
    ratings = pd.read_csv(shared_data("ml-100k") / "u.data", sep="\t", names=["user", "item", "rating", "time"])
    ratings = ratings.sort_values(["time", "user", "item"])
    last = ratings.drop_duplicates("user", keep="last")
    train_rows = ratings.drop(last.index)
    train = sp.csr_matrix(
        (np.ones(len(train_rows), dtype=np.float32), (train_rows["user"] - 1, train_rows["item"] - 1)),
        shape=(943, 1682),
    )
    users = UserBatch(user_idx=last["user"].to_numpy() - 1, history=train[last["user"].to_numpy() - 1])
    truth = last["item"].to_numpy()[:, np.newaxis] - 1

    knn = Ranking.from_scores(ItemKNNModel.fit(train, ItemKNNParams()).score(users), 10, users.history)
    popular = Ranking.from_scores(
        np.tile(np.bincount(train.indices, minlength=1682).astype(np.float32), (943, 1)), 10, users.history
    )

    assert (knn.item_idx == truth).any(axis=1).mean() > 1.3 * (popular.item_idx == truth).any(axis=1).mean()

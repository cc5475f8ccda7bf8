import numpy as np
import pytest
import scipy.sparse as sp

from rec_pipeline.engine.recommenders import reasons
from rec_pipeline.engine.recommenders.fusion import Explained, fuse
from rec_pipeline.engine.recommenders.reasons import heaviest_items, nearest_in_history, reason_rows, reason_texts
from rec_pipeline_tests.engine.recommenders.planted import embeddings, ranking

# Items 0 and 1 are alike for "a"; 0 and 2 are alike for "b".
SPACES = {
    "a": embeddings([[1, 0], [1, 0.1], [0, 1], [0.2, 1], [0, 0]]).vectors,
    "b": embeddings([[1, 0], [0, 1], [1, 0.1], [0.1, 1], [0, 0]]).vectors,
}


def explained_by(a: list[int], b: list[int], weights: dict[str, float]) -> Explained:
    return fuse({"a": ranking([a]), "b": ranking([b])}, weights, rank_constant=60, top_k=2)


def history(*items: int) -> sp.csr_matrix:
    row = np.zeros((1, 5), dtype=np.float32)
    row[0, list(items)] = 1
    return sp.csr_matrix(row)


def test_the_nearest_item_is_sought_in_the_space_of_the_source_with_the_largest_share() -> None:
    for weights, expected in (({"a": 2.0, "b": 1.0}, 1), ({"a": 1.0, "b": 2.0}, 2)):
        nearest = nearest_in_history(explained_by([0, -1], [0, -1], weights), history(1, 2), SPACES)

        assert nearest.tolist() == [[expected, -1]]


def test_items_of_one_list_are_explained_in_the_space_of_their_own_source() -> None:
    explained = explained_by([0, -1], [3, -1], {"a": 2.0, "b": 1.0})

    assert explained.ranking.item_idx.tolist() == [[0, 3]]
    assert nearest_in_history(explained, history(1, 2), SPACES).tolist() == [[1, 1]]


def test_an_item_without_a_vector_has_no_nearest_item() -> None:
    nearest = nearest_in_history(explained_by([4, 0], [-1, -1], {"a": 1.0, "b": 1.0}), history(1), SPACES)

    assert nearest.tolist() == [[-1, 1]]


def test_a_source_without_a_space_and_a_user_without_history_have_no_nearest_item() -> None:
    explained = explained_by([0, 1], [-1, -1], {"a": 1.0, "b": 1.0})

    assert nearest_in_history(explained, history(1, 2), {"b": SPACES["b"]}).tolist() == [[-1, -1]]
    assert nearest_in_history(explained, history(), SPACES).tolist() == [[-1, -1]]


def test_slices_of_users_give_what_one_batch_gives(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    vectors = embeddings(rng.standard_normal((30, 4)).astype(np.float32)).vectors
    lists = ranking([rng.permutation(30)[:5].tolist() for _ in range(20)])
    explained = fuse({"a": lists}, {"a": 1.0}, rank_constant=60, top_k=5)
    seen = sp.csr_matrix((rng.random((20, 30)) < 0.3).astype(np.float32))

    whole = nearest_in_history(explained, seen, {"a": vectors})
    monkeypatch.setattr(reasons, "GATHERED_NUMBERS", 1)
    sliced = nearest_in_history(explained, seen, {"a": vectors})

    assert np.array_equal(whole, sliced)
    cosine = vectors[lists.item_idx] @ vectors.T  # (20, 5, 30)
    cosine[~np.broadcast_to(seen.toarray()[:, None, :] > 0, cosine.shape)] = -np.inf
    assert np.array_equal(whole, np.where(cosine.max(axis=2) > 0, cosine.argmax(axis=2), -1))


def test_heaviest_items_keeps_the_largest_weights() -> None:
    weights = sp.csr_matrix(np.array([[0.5, 3, 0, 2], [0, 0, 0, 0], [0, 0, 1, 0]], dtype=np.float32))

    assert heaviest_items(weights, 2).tolist() == [[1, 3], [-1, -1], [2, -1]]


def test_reasons_name_the_liked_item_popularity_or_taste() -> None:
    texts = reason_texts(np.array(["A", 'B "2" 🦁', "C", "D", "E"], dtype=object))
    merged = explained_by([0, 4], [-1, -1], {"a": 1.0, "b": 1.0})
    explained = Explained(
        merged.ranking, merged.sources, merged.rank, merged.share, is_fallback=np.array([[False, False]])
    )
    popular = Explained(merged.ranking, merged.sources, merged.rank, merged.share, is_fallback=np.array([[True, True]]))

    assert texts[reason_rows(explained, history(1), SPACES)].tolist() == [
        ['Because you liked "B "2" 🦁"', "Matches your taste"]
    ]
    assert texts[reason_rows(popular, history(1), SPACES)].tolist() == [["Popular right now"] * 2]

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rec_pipeline.engine.data.id_map import IdMap
from rec_pipeline.engine.embeddings import item_embeddings
from rec_pipeline.engine.embeddings.encoder import OnProgress, SentenceTransformerEncoder, Vectors
from rec_pipeline.engine.embeddings.item_embeddings import EmbeddingCache, EmbeddingCounts, ItemEmbeddings, embed_items


class HashEncoder:
    """Deterministic unit vectors of no meaning, with a record of what was asked and a failure on demand."""

    def __init__(self, model_id: str = "hash", embedding_dim: int = 4, dies_after: int = 10**9) -> None:
        self.model_id = model_id
        self.embedding_dim = embedding_dim
        self.encoded: list[str] = []
        self.dies_after = dies_after

    def encode(self, texts: Sequence[str], on_progress: OnProgress | None = None) -> Vectors:
        if len(self.encoded) + len(texts) > self.dies_after:
            raise KeyboardInterrupt
        self.encoded += texts
        if on_progress is not None:
            on_progress(len(texts), len(texts))
        return np.array([self.vector(text) for text in texts], dtype=np.float32).reshape(-1, self.embedding_dim)

    def vector(self, text: str) -> Vectors:
        seed = int.from_bytes(hashlib.sha256((self.model_id + text).encode()).digest()[:8])
        vector = np.random.default_rng(seed).standard_normal(self.embedding_dim).astype(np.float32)
        return vector / np.linalg.norm(vector)


@pytest.fixture
def cache(tmp_path: Path) -> EmbeddingCache:
    return EmbeddingCache(tmp_path / "cache")


def catalogue(*titles: str | None) -> pd.DataFrame:
    return pd.DataFrame({"item_id": [f"i{row}" for row in range(len(titles))], "title": pd.Series(titles, dtype="str")})


def embeddings_of(vectors: list[list[float]], has_vector: list[bool] | None = None) -> ItemEmbeddings:
    return ItemEmbeddings(
        item_ids=IdMap(np.array([f"i{row}" for row in range(len(vectors))], dtype=object)),
        vectors=np.array(vectors, dtype=np.float32),
        has_vector=np.ones(len(vectors), dtype=bool) if has_vector is None else np.array(has_vector),
        space="test",
    )


def test_items_get_the_vectors_of_their_texts_in_table_order(cache: EmbeddingCache) -> None:
    encoder = HashEncoder()

    embeddings, counts = embed_items(catalogue("B", "A"), encoder, cache)

    assert embeddings.item_ids.ids.tolist() == ["i0", "i1"]
    np.testing.assert_array_equal(embeddings.vectors, [encoder.vector("B."), encoder.vector("A.")])
    assert embeddings.space == "hash"
    assert counts == EmbeddingCounts(n_encoded=2, n_reused=0, n_without_text=0)


def test_items_without_text_have_no_vector(cache: EmbeddingCache) -> None:
    embeddings, counts = embed_items(catalogue("A", None, " "), HashEncoder(), cache)

    assert embeddings.has_vector.tolist() == [True, False, False]
    assert not embeddings.vectors[1:].any()
    assert counts == EmbeddingCounts(n_encoded=1, n_reused=0, n_without_text=2)


def test_only_new_and_changed_texts_are_encoded(cache: EmbeddingCache) -> None:
    embed_items(catalogue("A", "B", "C"), HashEncoder(), cache)
    encoder = HashEncoder()

    embeddings, counts = embed_items(catalogue("C", "B changed", "A", "D"), encoder, cache)

    assert encoder.encoded == ["B changed.", "D."]
    assert counts == EmbeddingCounts(n_encoded=2, n_reused=2, n_without_text=0)
    expected = [encoder.vector(text) for text in ("C.", "B changed.", "A.", "D.")]
    np.testing.assert_array_equal(embeddings.vectors, expected)


def test_equal_texts_are_encoded_once(cache: EmbeddingCache) -> None:
    encoder = HashEncoder()

    embeddings, counts = embed_items(catalogue("A", "A", "B", "A"), encoder, cache)

    assert encoder.encoded == ["A.", "B."]
    assert counts == EmbeddingCounts(n_encoded=2, n_reused=2, n_without_text=0)
    np.testing.assert_array_equal(embeddings.vectors, [encoder.vector(f"{title}.") for title in "AABA"])


def test_another_model_shares_nothing(cache: EmbeddingCache) -> None:
    embed_items(catalogue("A"), HashEncoder("one", 4), cache)

    embeddings, counts = embed_items(catalogue("A"), HashEncoder("two", 6), cache)

    assert counts.n_encoded == 1
    assert embeddings.embedding_dim == 6


def test_a_killed_run_keeps_what_it_had_encoded(cache: EmbeddingCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_embeddings, "CHUNK_SIZE", 2)
    items = catalogue("A", "B", "C", "D", "E")
    with pytest.raises(KeyboardInterrupt):
        embed_items(items, HashEncoder(dies_after=4), cache)
    encoder = HashEncoder()

    embeddings, counts = embed_items(items, encoder, cache)

    assert encoder.encoded == ["E."]
    assert counts == EmbeddingCounts(n_encoded=1, n_reused=4, n_without_text=0)
    np.testing.assert_array_equal(embeddings.vectors, [encoder.vector(f"{title}.") for title in "ABCDE"])


def test_a_damaged_shard_is_dropped_and_encoded_again(cache: EmbeddingCache, caplog: pytest.LogCaptureFixture) -> None:
    embed_items(catalogue("A"), HashEncoder(), cache)
    [shard] = cache.directory.rglob("*.npy")
    shard.write_bytes(shard.read_bytes()[:-1])

    embeddings, counts = embed_items(catalogue("A"), HashEncoder(), cache)

    assert counts.n_encoded == 1
    np.testing.assert_array_equal(embeddings.vectors, [HashEncoder().vector("A.")])
    assert "damaged cache shard" in caplog.text
    assert embed_items(catalogue("A"), HashEncoder(), cache)[1].n_encoded == 0


def test_progress_counts_texts_to_encode(cache: EmbeddingCache, monkeypatch: pytest.MonkeyPatch) -> None:
    embed_items(catalogue("A"), HashEncoder(), cache)
    monkeypatch.setattr(item_embeddings, "CHUNK_SIZE", 2)
    reports: list[tuple[int, int]] = []

    embed_items(catalogue(*"ABCDEF"), HashEncoder(), cache, lambda done, total: reports.append((done, total)))

    assert reports == [(2, 5), (4, 5), (5, 5)]


@pytest.mark.parametrize("items", [catalogue(), catalogue(None, None)])
def test_a_catalogue_without_any_text_has_no_vectors(cache: EmbeddingCache, items: pd.DataFrame) -> None:
    embeddings, counts = embed_items(items, HashEncoder(), cache)

    assert embeddings.vectors.shape == (len(items), 4)
    assert not embeddings.has_vector.any()
    assert counts == EmbeddingCounts(n_encoded=0, n_reused=0, n_without_text=len(items))


def test_a_full_cache_never_loads_the_model(cache: EmbeddingCache) -> None:
    encoder = SentenceTransformerEncoder()
    first, _ = embed_items(catalogue("A heist", None), encoder, cache)
    fresh = SentenceTransformerEncoder()

    second, counts = embed_items(catalogue("A heist", None), fresh, cache)

    assert counts == EmbeddingCounts(n_encoded=0, n_reused=1, n_without_text=1)
    assert "_model" not in fresh.__dict__
    np.testing.assert_array_equal(first.vectors, second.vectors)


def test_aligned_to_reorders_and_leaves_unknown_items_without_vector() -> None:
    embeddings = embeddings_of([[1, 0], [0, 0], [0, 2]], [True, False, True])

    aligned = embeddings.aligned_to(IdMap(np.array(["i2", "new", "i1", "i0"], dtype=object)))

    assert aligned.vectors.tolist() == [[0, 2], [0, 0], [0, 0], [1, 0]]
    assert aligned.has_vector.tolist() == [True, False, False, True]
    assert aligned.item_ids.ids.tolist() == ["i2", "new", "i1", "i0"]
    assert aligned.space == "test"


def test_survives_save_and_load(tmp_path: Path) -> None:
    embeddings = embeddings_of([[1, 0], [0, 0]], [True, False])

    embeddings.save(tmp_path)
    loaded = ItemEmbeddings.load(tmp_path)

    np.testing.assert_array_equal(loaded.vectors, embeddings.vectors)
    assert loaded.has_vector.tolist() == [True, False]
    assert loaded.item_ids.ids.tolist() == ["i0", "i1"]
    assert loaded.space == "test"


def test_vectors_of_any_layout_become_contiguous() -> None:
    ids = IdMap(np.array(["a", "b"], dtype=object))

    embeddings = ItemEmbeddings(ids, np.ones((3, 2), dtype=np.float32).T, np.ones(2, dtype=bool), "test")

    assert embeddings.vectors.flags.c_contiguous


@pytest.mark.parametrize(
    ("vectors", "has_vector", "message"),
    [
        (np.ones((1, 3), np.float32), np.ones(2, bool), "2 items need one vector"),
        (np.ones(2, np.float32), np.ones(2, bool), "2 items need one vector"),
        (np.ones((2, 3), np.float32), np.ones(3, bool), "2 items need one vector"),
        (np.ones((2, 3), np.float64), np.ones(2, bool), "expected float32"),
        (np.ones((2, 3), np.float32), np.ones(2, np.int64), "expected float32"),
        (np.array([[1], [np.nan]], np.float32), np.ones(2, bool), "'b' is not finite"),
    ],
)
def test_wrong_arrays_are_refused(vectors: Vectors, has_vector: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ItemEmbeddings(IdMap(np.array(["a", "b"], dtype=object)), vectors, has_vector, "test")

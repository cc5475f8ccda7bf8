from pathlib import Path

import faiss
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from rec_pipeline.engine.data.batches import Ranking
from rec_pipeline.engine.data.id_map import IdMap
from rec_pipeline.engine.embeddings.encoder import Vectors
from rec_pipeline.engine.embeddings.item_embeddings import ItemEmbeddings
from rec_pipeline.engine.errors import ConfigurationError
from rec_pipeline.engine.index.vector_index import IndexParams, VectorIndex, build_index, factory_for

APPROXIMATE = ["HNSW8", "IVF16,Flat", "IVF16,PQ4x4,RFlat"]
FACTORIES = ["Flat", *APPROXIMATE]
N_ITEMS, DIM = 700, 8


def id_map(n_items: int) -> IdMap:
    return IdMap(np.array([f"i{row}" for row in range(n_items)], dtype=object))


def embeddings_of(vectors: Vectors, has_vector: np.ndarray | None = None) -> ItemEmbeddings:
    has_vector = np.ones(len(vectors), dtype=bool) if has_vector is None else has_vector
    vectors = np.where(has_vector[:, np.newaxis], vectors, np.float32(0))
    return ItemEmbeddings(id_map(len(vectors)), vectors.astype(np.float32), has_vector, "test")


@pytest.fixture(scope="module")
def embeddings() -> ItemEmbeddings:
    rng = np.random.default_rng(1)
    return embeddings_of(rng.standard_normal((N_ITEMS, DIM), dtype=np.float32), rng.random(N_ITEMS) < 0.9)


@pytest.fixture(scope="module", params=FACTORIES)
def index(request: pytest.FixtureRequest, embeddings: ItemEmbeddings) -> VectorIndex:
    return build_index(embeddings, IndexParams(factory=request.param, cutoff=20))


@pytest.fixture(scope="module")
def queries() -> Vectors:
    return np.random.default_rng(2).standard_normal((70, DIM), dtype=np.float32)


def exact_ranking(
    embeddings: ItemEmbeddings,
    queries: Vectors,
    top_k: int,
    eligible: np.ndarray | None = None,
    excluded: sp.csr_matrix | None = None,
) -> Ranking:
    score = queries @ embeddings.vectors.T
    score[:, ~embeddings.has_vector] = -np.inf
    if eligible is not None:
        score[:, ~eligible] = -np.inf
    return Ranking.from_scores(score, top_k, excluded)


def assert_same_but_for_ties(found: Ranking, exact: Ranking, embeddings: ItemEmbeddings, queries: Vectors) -> None:
    np.testing.assert_allclose(found.score, exact.score, rtol=1e-5, atol=1e-5)
    assert ((found.item_idx == -1) == np.isneginf(found.score)).all()
    for query, items, score in zip(queries, found.item_idx, found.score, strict=True):
        items = items[items >= 0]
        assert len(set(items.tolist())) == len(items)
        np.testing.assert_allclose(embeddings.vectors[items] @ query, score[: len(items)], rtol=1e-4, atol=1e-5)


def test_flat_search_is_exact_search(embeddings: ItemEmbeddings, queries: Vectors) -> None:
    found = build_index(embeddings, IndexParams()).search(queries, top_k=50)

    assert_same_but_for_ties(found, exact_ranking(embeddings, queries, 50), embeddings, queries)


@pytest.mark.parametrize(
    ("factory", "is_exact"), [*((factory, True) for factory in FACTORIES), ("IVF16,SQ8", False), ("IVF16,PQ4x4", False)]
)
def test_an_index_knows_whether_its_scores_are_inner_products(
    embeddings: ItemEmbeddings, queries: Vectors, factory: str, is_exact: bool
) -> None:
    index = build_index(embeddings, IndexParams(factory=factory, cutoff=20))

    found = index.search(queries, 20)

    product = np.einsum("qd,qkd->qk", queries, embeddings.vectors[found.item_idx])
    assert index.scores_exactly == is_exact == np.allclose(found.score, product, rtol=1e-5, atol=1e-5)


def test_every_factory_reaches_the_recall_it_was_tuned_to(
    index: VectorIndex, embeddings: ItemEmbeddings, queries: Vectors
) -> None:
    assert index.recall_at(embeddings, queries, cutoff=20) >= 0.98
    assert index.recall_at(embeddings, embeddings.vectors[embeddings.has_vector], cutoff=20) >= 0.98


def test_lists_are_full_and_permitted_whatever_is_filtered(
    index: VectorIndex, embeddings: ItemEmbeddings, queries: Vectors, rng: np.random.Generator
) -> None:
    eligible = rng.random(N_ITEMS) < 0.5
    excluded = sp.random(len(queries), N_ITEMS, density=0.3, rng=rng, format="csr", dtype=np.float32)

    found = index.search(queries, 40, eligible, excluded)

    assert (found.item_idx >= 0).all()
    assert (eligible & embeddings.has_vector)[found.item_idx].all()
    assert excluded.toarray()[np.arange(len(queries))[:, np.newaxis], found.item_idx].max() == 0
    assert (np.diff(found.score, axis=1) <= 0).all()
    assert all(len(set(row.tolist())) == 40 for row in found.item_idx)


def test_lists_are_as_long_as_items_qualify(
    index: VectorIndex, embeddings: ItemEmbeddings, queries: Vectors, rng: np.random.Generator
) -> None:
    eligible = np.zeros(N_ITEMS, dtype=bool)
    eligible[rng.permutation(np.flatnonzero(embeddings.has_vector))[:9]] = True
    excluded = sp.csr_matrix(np.tile(np.arange(N_ITEMS) == np.flatnonzero(eligible)[0], (len(queries), 1)).astype("f4"))

    found = index.search(queries, 12, eligible, excluded)

    assert_same_but_for_ties(found, exact_ranking(embeddings, queries, 12, eligible, excluded), embeddings, queries)
    assert (found.item_idx >= 0).sum(axis=1).tolist() == [8] * len(queries)


def test_asking_for_more_than_there_is_pads_with_minus_one(
    index: VectorIndex, embeddings: ItemEmbeddings, queries: Vectors
) -> None:
    found = index.search(queries, N_ITEMS + 5)

    n_vectors = int(embeddings.has_vector.sum())
    assert index.n_vectors == n_vectors
    assert_same_but_for_ties(found, exact_ranking(embeddings, queries, N_ITEMS + 5), embeddings, queries)
    assert (found.item_idx[:, n_vectors:] == -1).all()


def test_exclusion_of_everything_leaves_an_empty_list(index: VectorIndex, queries: Vectors) -> None:
    excluded = sp.csr_matrix(np.ones((len(queries), N_ITEMS), dtype=np.float32))

    found = index.search(queries, 3, excluded=excluded)

    assert (found.item_idx == -1).all()
    assert np.isneginf(found.score).all()


def test_nobody_eligible_leaves_an_empty_list(index: VectorIndex, queries: Vectors) -> None:
    assert (index.search(queries, 3, eligible=np.zeros(N_ITEMS, dtype=bool)).item_idx == -1).all()


def test_one_query_is_enough(index: VectorIndex, queries: Vectors) -> None:
    alone, together = index.search(queries[:1], 5), index.search(queries, 5)

    assert alone.item_idx.shape == (1, 5)
    np.testing.assert_allclose(alone.score[0], together.score[0], rtol=1e-5)


def test_no_query_gives_no_list(index: VectorIndex) -> None:
    assert index.search(np.zeros((0, DIM), dtype=np.float32), 5).item_idx.shape == (0, 5)


def test_a_query_of_zeros_scores_everything_zero(index: VectorIndex) -> None:
    found = index.search(np.zeros((1, DIM), dtype=np.float32), 5)

    assert found.score.tolist() == [[0] * 5]
    assert len(set(found.item_idx[0].tolist())) == 5


def test_queries_of_other_types_are_converted(index: VectorIndex, queries: Vectors) -> None:
    converted = index.search(np.asfortranarray(queries.astype(np.float64)), 5)

    np.testing.assert_array_equal(converted.item_idx, index.search(queries, 5).item_idx)


def test_survives_save_and_load(
    index: VectorIndex, embeddings: ItemEmbeddings, queries: Vectors, rng: np.random.Generator, tmp_path: Path
) -> None:
    eligible = rng.random(N_ITEMS) < 0.5
    excluded = sp.random(len(queries), N_ITEMS, density=0.1, rng=rng, format="csr", dtype=np.float32)

    index.save(tmp_path)
    loaded = VectorIndex.load(tmp_path)

    assert (tmp_path / "index.faiss").stat().st_size == index.n_bytes == loaded.n_bytes
    assert (loaded.factory, loaded.space, loaded.embedding_dim) == (index.factory, "test", DIM)
    assert loaded.recall_at(embeddings, queries, 20) == index.recall_at(embeddings, queries, 20)
    for filters in ({}, {"eligible": eligible}, {"eligible": eligible, "excluded": excluded}):
        before, after = index.search(queries, 30, **filters), loaded.search(queries, 30, **filters)
        np.testing.assert_array_equal(after.item_idx, before.item_idx)
        np.testing.assert_array_equal(after.score, before.score)


def test_aligned_to_answers_in_rows_of_the_other_catalogue(
    index: VectorIndex, embeddings: ItemEmbeddings, queries: Vectors, rng: np.random.Generator
) -> None:
    # The other catalogue has a new item, lacks some, and has another order.
    known = rng.permutation(N_ITEMS)[: N_ITEMS - 50]
    other = IdMap(np.append(embeddings.item_ids.ids[known], "new"))

    found = index.aligned_to(other).search(queries, 10)

    aligned = embeddings.aligned_to(other)
    assert_same_but_for_ties(found, found, aligned, queries)
    assert (found.item_idx >= 0).all()
    assert index.aligned_to(other).recall_at(aligned, queries, 10) >= 0.97


@given(
    seed=st.integers(0, 2**32 - 1),
    n_items=st.integers(1, 40),
    top_k=st.integers(1, 50),
    eligible_share=st.sampled_from([0.05, 0.5, 1.0]),
    density=st.sampled_from([0.0, 0.2, 0.9]),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_flat_search_agrees_with_a_dense_ranking_for_many_queries_and_for_one(
    seed: int, n_items: int, top_k: int, eligible_share: float, density: float
) -> None:
    rng = np.random.default_rng(seed)
    # Small integers make many exact ties.
    embeddings = embeddings_of(rng.integers(-1, 2, (n_items, 3)).astype(np.float32), rng.random(n_items) < 0.8)
    queries = rng.integers(-2, 3, (9, 3)).astype(np.float32)
    eligible = rng.random(n_items) < eligible_share
    excluded = sp.random(len(queries), n_items, density=density, rng=rng, format="csr", dtype=np.float32)

    found = build_index(embeddings, IndexParams()).search(queries, top_k, eligible, excluded)

    exact = exact_ranking(embeddings, queries, top_k, eligible, excluded)
    assert np.array_equal(found.item_idx, exact.item_idx)  # products of small integers are exact, ties by row
    assert np.array_equal(found.score, exact.score)
    alone = build_index(embeddings, IndexParams()).search(queries[:1], top_k, eligible, excluded[:1])
    assert_same_but_for_ties(alone, Ranking(exact.item_idx[:1], exact.score[:1]), embeddings, queries[:1])
    assert not np.isin(alone.item_idx, excluded[0].indices).any()


@pytest.mark.parametrize("factory", ["auto", "HNSW8"])
def test_an_empty_index_finds_nothing_and_misses_nothing(factory: str, queries: Vectors, tmp_path: Path) -> None:
    embeddings = embeddings_of(np.ones((3, DIM), dtype=np.float32), np.zeros(3, dtype=bool))

    index = build_index(embeddings, IndexParams(factory=factory))
    index.save(tmp_path)
    excluded = sp.csr_matrix(np.ones((len(queries), 3), dtype=np.float32))

    for made in (index, VectorIndex.load(tmp_path)):
        assert (made.search(queries, 4).item_idx == -1).all()
        assert (made.search(queries, 4, np.ones(3, dtype=bool), excluded).item_idx == -1).all()
        assert made.recall_at(embeddings, queries) == 1.0


def test_recall_counts_what_is_missing(embeddings: ItemEmbeddings) -> None:
    # An index over half of the items finds, of each item's own neighbourhood of 1, itself or nothing near.
    half = np.flatnonzero(embeddings.has_vector)[::2]
    present = np.isin(np.arange(N_ITEMS), half)
    unit = embeddings.vectors / np.maximum(np.linalg.norm(embeddings.vectors, axis=1, keepdims=True), 1e-9)
    whole = ItemEmbeddings(embeddings.item_ids, unit, embeddings.has_vector, "test")
    index = build_index(
        ItemEmbeddings(embeddings.item_ids, unit * present[:, np.newaxis], present, "test"), IndexParams()
    )

    recall = index.recall_at(whole, whole.vectors[whole.has_vector], cutoff=1)

    assert recall == len(half) / whole.has_vector.sum()


def test_equal_scores_count_as_found() -> None:
    # 40 equal items: whichever 10 come back are right.
    embeddings = embeddings_of(np.ones((40, 4), dtype=np.float32))

    assert build_index(embeddings, IndexParams()).recall_at(embeddings, embeddings.vectors[:3], cutoff=10) == 1.0


def test_recall_without_queries_is_refused(index: VectorIndex, embeddings: ItemEmbeddings) -> None:
    with pytest.raises(ValueError, match="at least one query"):
        index.recall_at(embeddings, np.zeros((0, DIM), dtype=np.float32))


def test_recall_against_other_items_is_refused(
    index: VectorIndex, embeddings: ItemEmbeddings, queries: Vectors
) -> None:
    with pytest.raises(ValueError, match="aligned_to"):
        index.recall_at(embeddings.aligned_to(id_map(3)), queries)


def test_a_graph_is_widened_until_it_finds_enough(rng: np.random.Generator) -> None:
    embeddings = embeddings_of(rng.standard_normal((3000, 32), dtype=np.float32))
    queries = rng.standard_normal((100, 32), dtype=np.float32)

    narrow = build_index(embeddings, IndexParams(factory="HNSW16", min_recall=0.1), queries)
    wide = build_index(embeddings, IndexParams(factory="HNSW16", min_recall=0.99), queries)

    assert narrow.recall_at(embeddings, queries, 100) < 0.95
    assert wide.recall_at(embeddings, queries, 100) >= 0.99


def test_a_filter_does_not_narrow_the_search_again(rng: np.random.Generator) -> None:
    embeddings = embeddings_of(rng.standard_normal((3000, 32), dtype=np.float32))
    queries = rng.standard_normal((100, 32), dtype=np.float32)
    eligible = rng.random(3000) < 0.9
    index = build_index(embeddings, IndexParams(factory="HNSW16", cutoff=10), queries)

    found = index.search(queries, 10, eligible)

    exact = exact_ranking(embeddings, queries, 10, eligible)
    assert (found.score >= exact.score[:, -1:] - 1e-5).mean() >= 0.98


def test_inverted_lists_left_out_of_the_search_still_fill_a_list(embeddings: ItemEmbeddings, queries: Vectors) -> None:
    index = build_index(embeddings, IndexParams(factory="IVF16,Flat", min_recall=0.01))
    top_k = int(embeddings.has_vector.sum())

    assert (index.search(queries, top_k).item_idx >= 0).all()


def test_equal_vectors_give_an_equal_graph(embeddings: ItemEmbeddings, tmp_path: Path) -> None:
    n_threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(4)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        build_index(embeddings, IndexParams(factory="HNSW8")).save(tmp_path / name)

    assert (tmp_path / "one" / "index.faiss").read_bytes() == (tmp_path / "two" / "index.faiss").read_bytes()
    assert faiss.omp_get_max_threads() == 4
    faiss.omp_set_num_threads(n_threads)


def test_factory_follows_the_size_of_the_catalogue() -> None:
    assert factory_for(0, 384) == "Flat"
    assert factory_for(199_999, 384) == "Flat"
    assert factory_for(200_000, 384) == "HNSW32"
    assert factory_for(5_000_000, 384) == "HNSW32"
    assert factory_for(5_000_001, 50) == f"IVF{4 * 2236},PQ10,RFlat"
    assert factory_for(9_000_000, 7) == "IVF12000,PQ1,RFlat"


def test_a_factory_that_cannot_be_built_says_so(embeddings: ItemEmbeddings) -> None:
    with pytest.raises(ConfigurationError, match="cannot build 'IVF4096,Flat' over"):
        build_index(embeddings, IndexParams(factory="IVF4096,Flat"))


@pytest.mark.parametrize("factory", ["flat", "LSH", "PCA8,Flat", "HNSW", "Flat,RFlat"])
def test_unknown_factories_are_refused(factory: str) -> None:
    with pytest.raises(ValidationError, match="factory"):
        IndexParams(factory=factory)


def test_item_rows_must_match_the_index(embeddings: ItemEmbeddings) -> None:
    index = build_index(embeddings, IndexParams())

    with pytest.raises(ValueError, match="item rows of shape"):
        VectorIndex(index.index, index.item_ids, index.item_idx[1:], "Flat", "test")

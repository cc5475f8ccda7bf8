import numpy as np

from rec_pipeline.engine.data.id_map import IdMap
from rec_pipeline.engine.embeddings.item_embeddings import ItemEmbeddings
from rec_pipeline.engine.index.queries import index_recall, sample_queries
from rec_pipeline.engine.index.vector_index import IndexParams, build_index


def embeddings_of(vectors: np.ndarray, has_vector: list[bool]) -> ItemEmbeddings:
    ids = IdMap.from_ids([f"i{row}" for row in range(len(vectors))])
    return ItemEmbeddings(ids, vectors.astype(np.float32), np.array(has_vector), "test")


def test_only_items_with_a_vector_are_asked_for_each_once() -> None:
    embeddings = embeddings_of(np.diag([1.0, 2.0, 0.0]), [True, True, False])

    queries = sample_queries(embeddings, n_queries=10)

    assert queries.tolist() == [[1, 0, 0], [0, 2, 0]]


def test_an_exact_index_finds_everything_and_an_empty_one_misses_nothing(rng: np.random.Generator) -> None:
    full = embeddings_of(rng.normal(size=(50, 8)), [True] * 50)
    empty = embeddings_of(np.zeros((2, 8)), [False, False])

    assert index_recall(build_index(full, IndexParams()), full, cutoff=10) == 1.0
    assert index_recall(build_index(empty, IndexParams()), empty, cutoff=10) == 1.0

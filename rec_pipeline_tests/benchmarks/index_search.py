"""
Time of a search through ``VectorIndex`` against the bare FAISS call, on the same index and queries.

Run with ``OMP_NUM_THREADS=1 python -m rec_pipeline_tests.benchmarks.index_search``; prints JSON. Timed are processor
seconds, which other work on the machine changes little, in turn, and the best of each is taken. ``permuted`` is an
index whose rows are not those of the catalogue, so that the wrapper has labels to translate.
"""

import json
import time
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
import typer

from rec_pipeline.engine.data.id_map import IdMap
from rec_pipeline.engine.embeddings.item_embeddings import ItemEmbeddings
from rec_pipeline.engine.index.vector_index import IndexParams, VectorIndex, build_index


def main(n_vectors: int = 50_000, dim: int = 64, n_queries: int = 1024, top_k: int = 100, repeats: int = 9) -> None:
    """Search ``n_queries`` at once in a Flat and an HNSW index of ``n_vectors``, and one query at a time."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(n_vectors, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = IdMap(np.array([f"i{row:07d}" for row in range(n_vectors)], dtype=object))
    embeddings = ItemEmbeddings(ids, vectors, np.ones(n_vectors, dtype=bool), "random")
    queries = rng.normal(size=(n_queries, dim)).astype(np.float32)
    flat = build_index(embeddings, IndexParams(factory="Flat"))
    indexes = {
        "Flat": flat,
        "Flat, permuted": flat.aligned_to(IdMap(rng.permutation(ids.ids))),
        # Random vectors are the worst case of a graph; recall is not what is measured here.
        "HNSW32": build_index(embeddings, IndexParams(factory="HNSW32", min_recall=0.2, reproducible=False)),
    }
    rows = []
    for name, index in indexes.items():
        for n_at_once in (n_queries, 1):
            asked = queries[:n_at_once]
            rows.append({"index": name, "queries": n_at_once, **compared(index, asked, top_k, repeats)})
    typer.echo(json.dumps({"n_vectors": n_vectors, "dim": dim, "top_k": top_k, "rows": rows}, indent=2))


def compared(index: VectorIndex, queries: np.ndarray, top_k: int, repeats: int) -> dict[str, float]:
    """Return the best seconds of either call, out of ``repeats`` and more of a short one, and their ratio."""
    bare_index = faiss.downcast_index(index.index)

    def seconds(call: Callable[[], Any]) -> float:
        start = time.process_time()
        call()
        return time.process_time() - start

    pairs = [
        (seconds(lambda: bare_index.search(queries, top_k)), seconds(lambda: index.search(queries, top_k)))
        for _ in range(max(repeats, 1000 // len(queries)))
    ]
    bare, ours = (min(times) for times in zip(*pairs, strict=True))
    return {"bare_seconds": bare, "ours_seconds": ours, "ratio": ours / bare}


if __name__ == "__main__":
    typer.run(main)

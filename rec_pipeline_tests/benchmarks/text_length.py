"""
How much of an item's text is worth reading: the content recommender's accuracy by the number of word pieces.

Run with ``python -m rec_pipeline_tests.benchmarks.text_length DATA_DIR``, where something was run; prints JSON. Uses
only what comes before the test part of that run's split: three in ten interactions of each user are hidden at random
and ranked for, among the whole catalogue.
"""

import json
import time
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import typer

from rec_pipeline.engine.data.batches import UserBatch
from rec_pipeline.engine.data.split import InteractionSplit
from rec_pipeline.engine.data.validation import ValidatedTable
from rec_pipeline.engine.embeddings.encoder import DEFAULT_MODEL, SentenceTransformerEncoder
from rec_pipeline.engine.embeddings.item_embeddings import ItemEmbeddings
from rec_pipeline.engine.embeddings.item_text import item_texts
from rec_pipeline.engine.evaluation.metrics import accuracy_metrics
from rec_pipeline.engine.index.vector_index import IndexParams, build_index
from rec_pipeline.engine.recommenders.content import ContentRanker
from rec_pipeline.resources.artifacts import Artifacts

HIDDEN_SHARE = 0.3


def main(data_dir: Path, lengths: list[int] = [16, 32, 48, 64, 96, 256], model: str = DEFAULT_MODEL) -> None:  # noqa: B006
    """Encode the catalogue anew at each of ``lengths`` and measure."""
    artifacts = Artifacts(root=str(data_dir / "artifacts"))
    split = artifacts.load("interaction_split", InteractionSplit)
    items = artifacts.load("items", ValidatedTable).table.set_index("item_id").reindex(split.items.ids)
    texts = item_texts(items)
    known = split.by_user.fitting.user_item.tocoo()
    is_hidden = np.random.default_rng(0).random(known.nnz) < HIDDEN_SHARE
    history, hidden = (
        sp.csr_matrix((known.data[part], (known.row[part], known.col[part])), shape=known.shape, dtype=np.float32)
        for part in (~is_hidden, is_hidden)
    )
    user_idx = np.flatnonzero((np.diff(history.indptr) > 0) & (np.diff(hidden.indptr) > 0))
    users = UserBatch(user_idx=user_idx, history=history[user_idx])
    rows = []
    for n_tokens in lengths:
        encoder = SentenceTransformerEncoder(model, max_tokens=n_tokens)
        encoder.encode(texts[:1])
        start = time.perf_counter()
        vectors = encoder.encode(texts)
        seconds = time.perf_counter() - start
        embeddings = ItemEmbeddings(split.items, vectors, np.array([bool(text) for text in texts]), encoder.model_id)
        ranker = ContentRanker(embeddings, build_index(embeddings, IndexParams(factory="Flat")))
        metrics = accuracy_metrics(ranker.recommend(users, 50).item_idx, hidden[user_idx], [10, 50])
        means = {name: float(metrics[name].mean()) for name in ("ndcg@10", "recall@50")}
        rows.append({"max_tokens": n_tokens, **means, "texts_per_second": len(texts) / seconds})
    typer.echo(json.dumps({"n_users": len(user_idx), "n_texts": len(texts), "rows": rows}, indent=2))


if __name__ == "__main__":
    typer.run(main)

"""Vectors of the items' text."""

from dataclasses import asdict
from typing import Any

import dagster as dg

from rec_pipeline.engine.compute import Compute
from rec_pipeline.engine.data.validation import ValidatedTable
from rec_pipeline.engine.embeddings.item_embeddings import embed_items
from rec_pipeline.resources.artifacts import Artifacts
from rec_pipeline.resources.progress_log import progress_log
from rec_pipeline.resources.text_encoder import Encoder


@dg.asset(kinds={"huggingface", "numpy"})
def content_embeddings(
    context: dg.AssetExecutionContext,
    items: ValidatedTable,
    encoder: Encoder,
    artifacts: dg.ResourceParam[Artifacts],
    compute: dg.ResourceParam[Compute],
) -> dg.MaterializeResult[Any]:
    """
    Unit vectors of title, categories and description, one row an item, by a sentence-transformers model.

    Only texts that are new or changed are encoded. Items without text have no vector and are not in the content index.
    """
    embeddings, counts = embed_items(
        items.table,
        encoder.open(),
        encoder.cache(),
        on_progress=progress_log(context, "encoded {done:,} of {of:,} texts"),
        compute=compute,
    )
    sizes = {"dagster/row_count": len(embeddings.item_ids), "embedding_dim": embeddings.embedding_dim}
    return artifacts.keep(context, embeddings, {**sizes, **asdict(counts), "model": embeddings.space})

"""What tables and plots look like in the Dagster UI."""

import base64
from typing import TYPE_CHECKING, Any

import dagster as dg
import pandas as pd

from rec_pipeline.engine import columns as c
from rec_pipeline.engine.compute import Compute
from rec_pipeline.engine.data.table import Table
from rec_pipeline.engine.data.validation import ValidatedTable
from rec_pipeline.engine.embeddings.item_embeddings import ItemEmbeddings
from rec_pipeline.engine.index.queries import index_recall
from rec_pipeline.engine.index.vector_index import VectorIndex
from rec_pipeline.engine.recommenders.list_schema import LIST_SCHEMA
from rec_pipeline.engine.store.generation import Generation

if TYPE_CHECKING:
    from rec_pipeline.engine.recommenders.tuning import FusionWeights

PREVIEW_ROWS = 5
PREVIEW_ITEMS = 3


def table_metadata(table: pd.DataFrame | Table) -> dict[str, Any]:
    """Return row count, column schema and a preview of ``table``."""
    first = table.part(0) if isinstance(table, Table) else table
    schema = dg.TableSchema(
        columns=[dg.TableColumn(name=str(name), type=str(dtype)) for name, dtype in first.dtypes.items()]
    )
    return {
        "dagster/row_count": len(table),
        "dagster/column_schema": schema,
        "preview": dg.MetadataValue.md(first.head(PREVIEW_ROWS).to_markdown(index=False)),
    }


def lists_metadata(lists: Generation) -> dict[str, Any]:
    """Return row count and column schema of everybody's lists, and the beginning of the first ones."""
    first = next(lists.iterate(PREVIEW_ROWS)).to_pandas()
    shown = [c.ITEM_ID, c.SCORE, c.REASON]
    first[shown] = first[shown].map(lambda values: ", ".join(map(str, values[:PREVIEW_ITEMS])) + ", ...")
    columns = [dg.TableColumn(name=field.name, type=str(field.type)) for field in LIST_SCHEMA]
    return {
        "dagster/row_count": lists.n_users,
        "dagster/column_schema": dg.TableSchema(columns=columns),
        "n_items": lists.n_items,
        "preview": dg.MetadataValue.md(first[[c.USER_ID, c.ORIGIN, *shown]].to_markdown(index=False)),
    }


def validation_metadata(context: dg.AssetExecutionContext, validated: ValidatedTable) -> dict[str, Any]:
    """Log the warnings; return what became of the rows of a raw table, and the valid ones as a table."""
    for warning in validated.warnings:
        context.log.warning(warning)
    reasons = (
        validated.refused.read([c.REASON])[c.REASON].value_counts().rename_axis(c.REASON).reset_index(name="n_rows")
    )
    return {
        **table_metadata(validated.kept),
        "n_rows_in": validated.n_rows_in,
        "n_duplicates": validated.n_duplicates,
        "n_quarantined": len(validated.refused),
        "warnings": dg.MetadataValue.md("\n".join(f"- {text}" for text in validated.warnings) or "none"),
        "quarantine": dg.MetadataValue.md(reasons.to_markdown(index=False) if len(reasons) else "no row was refused"),
    }


def index_metadata(index: VectorIndex, embeddings: ItemEmbeddings, compute: Compute) -> dict[str, Any]:
    """Return size and factory of an index and what it finds of what exact search finds."""
    return {
        "dagster/row_count": index.n_vectors,
        "embedding_dim": index.embedding_dim,
        "factory": index.factory,
        "index_bytes": index.n_bytes,
        "recall_at_100": index_recall(index, embeddings, cutoff=100, compute=compute),
    }


def fusion_metadata(tuned: "FusionWeights") -> dict[str, Any]:
    """Return the weights, how they merge, and what tuning brought on the users it was done on."""
    table = tuned.trials
    everybody = table[table[c.SEGMENT] == table[c.SEGMENT].iloc[0]]
    return {
        "dagster/row_count": len(table),
        "method": str(tuned.params.method),
        "rank_constant": tuned.params.rank_constant,
        "new_item_rank": tuned.params.new_item_rank,
        **{f"weight_{name}": weight for name, weight in tuned.params.weights.items()},
        "validation_ndcg_10": float(everybody[c.AFTER].max()),
        "trials": dg.MetadataValue.md(table.round(4).to_markdown(index=False)),
    }


def image(png: bytes) -> dg.MarkdownMetadataValue:
    """Return a PNG as an image shown inline."""
    return dg.MetadataValue.md(f"![](data:image/png;base64,{base64.b64encode(png).decode()})")

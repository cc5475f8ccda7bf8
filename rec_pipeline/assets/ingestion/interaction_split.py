"""Train, validation and test parts."""

from typing import Any

import dagster as dg

from rec_pipeline.engine.data.split import SplitParams, split_interactions
from rec_pipeline.engine.data.validation import ValidatedTable
from rec_pipeline.resources.artifacts import Artifacts
from rec_pipeline.resources.metadata import table_metadata


class SplitConfig(dg.Config, SplitParams):
    """How the interactions are split."""


@dg.asset(kinds={"pandas", "parquet"})
def interaction_split(
    context: dg.AssetExecutionContext,
    config: SplitConfig,
    interactions: ValidatedTable,
    items: ValidatedTable,
    artifacts: dg.ResourceParam[Artifacts],
) -> dg.MaterializeResult[Any]:
    """
    Tables of interactions for training, validation and test, disjoint in (user, item), with the id maps.

    One row an interaction by row numbers of the id maps. By default one instant separates train from validation and
    another validation from test, as in use: what is tested lies in the future of what was learnt.
    """
    with artifacts.scratch("interaction_split") as scratch:
        split = split_interactions(interactions.kept, items.table, config, scratch)
        rows = {f"n_{name}": len(getattr(split, name)) for name in ("train", "validation", "test")}
        sizes = {"n_users": len(split.users), "n_items": len(split.items)}
        return artifacts.keep(
            context,
            split,
            {
                **table_metadata(split.train),
                "dagster/row_count": sum(rows.values()),
                "strategy": split.strategy,
                **rows,
                **sizes,
                **split.boundaries,
            },
        )

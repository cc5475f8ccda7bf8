"""The neighbourhood baseline."""

from typing import Any

import dagster as dg

from rec_pipeline.engine.data.split import InteractionSplit
from rec_pipeline.engine.models.item_knn import ItemKNNModel, ItemKNNParams
from rec_pipeline.resources.artifacts import Artifacts


class ItemKNNConfig(dg.Config, ItemKNNParams):
    """Hyper-parameters of item-kNN."""


@dg.asset(kinds={"scipy"})
def item_knn_model(
    context: dg.AssetExecutionContext,
    config: ItemKNNConfig,
    interaction_split: InteractionSplit,
    artifacts: dg.ResourceParam[Artifacts],
) -> dg.MaterializeResult[Any]:
    """
    Similarities between items that the same users interacted with, nearest neighbours only.

    One row an item. A strong baseline that also serves users newer than the fit; consumed by the evaluation.
    """
    model = ItemKNNModel.fit(interaction_split.user_item(interaction_split.fitting), config)
    return artifacts.keep(context, model, {"n_items": len(interaction_split.items)})

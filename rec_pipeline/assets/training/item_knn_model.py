"""The neighbourhood baseline."""

from typing import Any

import dagster as dg

from rec_pipeline.engine.data.space import Space
from rec_pipeline.engine.data.split import InteractionSplit
from rec_pipeline.engine.models.item_knn import ItemKNNModel, ItemKNNParams
from rec_pipeline.resources.artifacts import Artifacts
from rec_pipeline.resources.mlflow_tracker import MLflowTracker


class ItemKNNConfig(dg.Config, ItemKNNParams):
    """Hyper-parameters of item-kNN."""


@dg.asset(kinds={"scipy", "mlflow"})
def item_knn_model(
    context: dg.AssetExecutionContext,
    config: ItemKNNConfig,
    interaction_split: InteractionSplit,
    artifacts: dg.ResourceParam[Artifacts],
    tracker: MLflowTracker,
) -> dg.MaterializeResult[Any]:
    """
    Similarities between items that the same users interacted with, nearest neighbours only.

    One row an item. A strong baseline that also serves users newer than the fit; consumed by the evaluation.
    """
    split = interaction_split
    with tracker.child(context, "item_knn") as run, artifacts.scratch("item_knn_model") as scratch:
        run.log_params(config.model_dump())
        run.log_dataset("interaction_split", artifacts.version("interaction_split"), "training", len(split.fitting))
        known = split.by_user.fitting.user_item
        model = ItemKNNModel.fit(known, config, Space.for_rows(known.nnz, scratch))
        sizes = {"n_items": len(split.items), "n_similarities": model.similarity.nnz}
        run.log_metrics(sizes)
        return artifacts.keep(context, model, sizes | {"mlflow_run": run.link})

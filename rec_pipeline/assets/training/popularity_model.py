"""The baseline every report shows."""

from typing import Any

import dagster as dg

from rec_pipeline.engine.data.split import InteractionSplit
from rec_pipeline.engine.models.popularity import PopularityModel
from rec_pipeline.resources.artifacts import Artifacts
from rec_pipeline.resources.mlflow_tracker import MLflowTracker


@dg.asset(kinds={"numpy", "mlflow"})
def popularity_model(
    context: dg.AssetExecutionContext,
    interaction_split: InteractionSplit,
    artifacts: dg.ResourceParam[Artifacts],
    tracker: MLflowTracker,
) -> dg.MaterializeResult[Any]:
    """
    Counts of interactions per item before the test part: the baseline every report shows beside the models.

    One number an item. Consumed by the evaluation, and the fallback for users about whom nothing is known.
    """
    split = interaction_split
    with tracker.child(context, "popularity") as run:
        run.log_dataset("interaction_split", artifacts.version("interaction_split"), "training", len(split.fitting))
        model = PopularityModel.fit(split.by_user.fitting.user_item)
        sizes = {"n_items": len(split.items), "most_users_of_an_item": int(model.n_interactions.max())}
        run.log_metrics(sizes)
        return artifacts.keep(context, model, sizes | {"mlflow_run": run.link})

"""The baseline every report shows."""

from typing import Any

import dagster as dg

from rec_pipeline.engine.data.split import InteractionSplit
from rec_pipeline.engine.models.popularity import PopularityModel
from rec_pipeline.resources.artifacts import Artifacts


@dg.asset(kinds={"numpy"})
def popularity_model(
    context: dg.AssetExecutionContext, interaction_split: InteractionSplit, artifacts: dg.ResourceParam[Artifacts]
) -> dg.MaterializeResult[Any]:
    """
    Counts of interactions per item before the test part: the baseline every report shows beside the models.

    One number an item. Consumed by the evaluation, and the fallback for users about whom nothing is known.
    """
    model = PopularityModel.fit(interaction_split.user_item(interaction_split.fitting))
    return artifacts.keep(context, model, {"n_items": len(interaction_split.items)})

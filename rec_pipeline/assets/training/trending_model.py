"""What is popular lately."""

from typing import Any

import dagster as dg

from rec_pipeline.engine.data.split import InteractionSplit
from rec_pipeline.resources.artifacts import Artifacts


@dg.asset(kinds={"numpy"})
def trending_model(
    context: dg.AssetExecutionContext, interaction_split: InteractionSplit, artifacts: dg.ResourceParam[Artifacts]
) -> dg.MaterializeResult[Any]:
    """
    Counts of users per item before the test part, each counting less the older it is.

    One number an item. The half-life is the one that foresees the validation part best from the train part. A source of
    the hybrid, the only one that answers for users without history; consumed by the evaluation and the merge.
    """
    from rec_pipeline.engine.recommenders.tuning import fit_trending
    from rec_pipeline.engine.recommenders.validation import FittedTwice

    model, validation = fit_trending(interaction_split)
    facts = {"n_items": len(interaction_split.items), "half_life_days": model.half_life_days}
    return artifacts.keep(context, FittedTwice(model, validation), facts)

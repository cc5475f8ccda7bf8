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

    Two numbers an item. One half-life foresees the validation part best from the train part: a source of the hybrid.
    The other foresees best what newcomers took when they came: the list of users without history. Consumed by the
    evaluation and the merge.
    """
    from rec_pipeline.engine.recommenders.tuning import fit_trending
    from rec_pipeline.engine.recommenders.validation import FittedTwice

    model, validation = fit_trending(interaction_split)
    facts = {
        "n_items": len(interaction_split.items),
        "half_life_days": model.half_life_days,
        "newcomer_half_life_days": model.newcomer_half_life_days,
    }
    return artifacts.keep(context, FittedTwice(model, validation), facts)

"""
The champion: what is live, in the form in which it can be compared with a newer model.

What is served was refitted on everything there was, so it has seen what a new test part holds and would win by
remembering. Compared is therefore the model that was *evaluated* before that refit: it knows nothing later than the
beginning of its own test part. Its settings are those of what is live, and its parameters are as old as they would be
for a user who is served today and comes back. It is kept as a bundle beside the generation that was published from it,
and ranks for the test users of the new split as one recommender among the others: histories as of the new test part,
parameters as of its own. What it was fitted on must end before the new test part begins, or be the very same split.
"""

from typing import Any

import pandas as pd

from rec_pipeline.engine import columns as c
from rec_pipeline.engine.data.split import InteractionSplit, SplitStrategy
from rec_pipeline.engine.recommenders.bundle import ServingBundle
from rec_pipeline.engine.recommenders.ranker import Ranker
from rec_pipeline.engine.recommenders.translated import TranslatedRanker

CHAMPION = "champion"
FITTED_UNTIL, SPLIT_VERSION = "fitted_until", "split_version"


def provenance(split: InteractionSplit, version: str) -> dict[str, Any]:
    """Return what an evaluated bundle must remember of the split (of content digest ``version``) it was fitted on."""
    return {FITTED_UNTIL: split.fitting[c.TIMESTAMP].max().isoformat(), SPLIT_VERSION: version}


def incomparable(champion: ServingBundle, split: InteractionSplit, version: str) -> str | None:
    """Return why the evaluated bundle ``champion`` cannot be tested on ``split``, or None if it can."""
    if champion.metadata[SPLIT_VERSION] == version:
        return None
    if split.strategy != SplitStrategy.time:
        return f"it was evaluated on another split, and a {split.strategy} split may test what it was fitted on"
    begins, fitted_until = split.test[c.TIMESTAMP].min(), pd.Timestamp(champion.metadata[FITTED_UNTIL])
    if fitted_until >= begins:
        return f"it was fitted on interactions until {fitted_until}, the test part begins {begins}"
    if (split.items.to_idx(champion.items.ids) < 0).all():
        return "it knows no item of this catalogue"
    return None


def champion_ranker(champion: ServingBundle, split: InteractionSplit) -> Ranker:
    """Return ``champion`` as the recommender ``champion`` in the rows of ``split``."""
    return TranslatedRanker(
        champion.recommender(), champion.users, champion.items, split.users, split.items, name=CHAMPION
    )

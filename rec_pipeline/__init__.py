"""A recommendation engine and the Dagster lineage that keeps it fresh."""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rec_pipeline.serving.metrics import RecommenderMetrics
    from rec_pipeline.serving.recommenders import (
        CollaborativeFilter,
        ContentBasedRecommender,
        HybridRecommender,
        RealtimeRecommender,
    )

__all__ = [
    "CollaborativeFilter",
    "ContentBasedRecommender",
    "HybridRecommender",
    "RealtimeRecommender",
    "RecommenderMetrics",
]

# OpenMP's threads wait for each other in a loop, by default so long that beside another program, which has the core of
# the one waited for, training takes more than ten times as long. Read once, when torch is loaded.
if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "10000"


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that the package itself stays quick to import."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "rec_pipeline.serving.metrics" if name == "RecommenderMetrics" else "rec_pipeline.serving.recommenders"
    return getattr(import_module(module), name)

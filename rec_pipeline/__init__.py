"""A recommendation engine and the Dagster lineage that keeps it fresh."""

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


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that the package itself stays quick to import."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "rec_pipeline.serving.metrics" if name == "RecommenderMetrics" else "rec_pipeline.serving.recommenders"
    return getattr(import_module(module), name)

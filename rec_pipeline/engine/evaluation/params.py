"""What an evaluation measures and how sure it wants to be."""

from typing import Self

from pydantic import BaseModel, Field, model_validator

from rec_pipeline.engine.evaluation.metrics import ACCURACY_METRICS, label


class EvaluationParams(BaseModel, frozen=True, extra="forbid"):
    """Cutoffs, intervals, comparisons and slices of an evaluation report."""

    cutoffs: list[int] = Field(
        default=[5, 10, 20, 50], min_length=1, description="List lengths at which metrics are computed, ascending."
    )
    compared_metrics: list[str] = Field(
        default=["ndcg@10", "recall@20"],
        min_length=1,
        description="Accuracy metrics that are sliced and tested between every two recommenders; the first is the "
        "headline of the report.",
    )
    challenger: str = Field(
        default="hybrid",
        description="Recommender whose comparisons the report puts into words; the best one if it does not take part.",
    )
    baseline: str = Field(
        default="popularity", description="Recommender that must take part, shown beside every other one."
    )
    sources: list[str] = Field(
        default=["ncf", "content", "sequence", "trending"],
        description="Names under which the sources of the challenger may take part alone; the challenger must hold "
        "against the best of those that do.",
    )
    n_resamples: int = Field(
        default=2000,
        ge=100,
        description="Bootstrap resamples of the users, and sign assignments of the permutation tests; the smallest p "
        "value is 1 / (n_resamples + 1).",
    )
    confidence: float = Field(
        default=0.95,
        gt=0.5,
        lt=1.0,
        description="Coverage of the intervals; a corrected p value below 1 - confidence is called significant.",
    )
    user_segments: list[int] = Field(
        default=[1, 5, 20],
        description="Bounds between groups of users by known interactions: 0, 1-4, 5-19, 20+ by default.",
    )
    item_segments: list[int] = Field(
        default=[1, 10],
        description="Bounds between groups of held-out items by users who know them: 0, 1-9, 10+ by default.",
    )
    max_users: int = Field(
        default=20_000,
        ge=1,
        description="Users evaluated at most, a random sample where more have held-out items: keeps the time of an "
        "evaluation from growing with users times items, while the intervals stay narrow (half a percent of ndcg).",
    )
    min_gain: float = Field(
        default=0.0,
        description="The gate: the interval of challenger minus baseline on the headline must lie above this. 0: "
        "better, by however little, but beyond doubt.",
    )
    max_loss: float = Field(
        default=0.0,
        ge=0.0,
        description="The gate: what the challenger may surely lose against the champion on the headline. 0: refused as "
        "soon as it is significantly worse.",
    )
    batch_size: int = Field(default=1024, ge=1, description="Users ranked at once; bounds memory, changes no result.")
    seed: int = Field(default=0, ge=0, description="Seed of the resamples and sign assignments.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("cutoffs", "user_segments", "item_segments"):
            bounds: list[int] = getattr(self, name)
            if bounds != sorted(set(bounds)) or min(bounds, default=1) < 1:
                raise ValueError(f"{name} must be positive and ascending, found {bounds}")
        known = [label(metric, cutoff) for metric in ACCURACY_METRICS for cutoff in self.cutoffs]
        if unknown := [metric for metric in self.compared_metrics if metric not in known]:
            raise ValueError(f"compared_metrics must be accuracy metrics at one of the cutoffs, found {unknown}")
        return self

    @property
    def headline(self) -> str:
        """The metric that is named first, e.g. ``ndcg@10``."""
        return self.compared_metrics[0]

    @property
    def headline_cutoff(self) -> int:
        """Cutoff of the headline."""
        return int(self.headline.rpartition("@")[2])

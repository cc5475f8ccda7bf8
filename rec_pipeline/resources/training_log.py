"""What a training run tells while it goes: a line an epoch, MLflow metrics by epoch, the curve at its end."""

import time
from typing import TYPE_CHECKING, Any

import dagster as dg

from rec_pipeline.engine import crash_points
from rec_pipeline.resources.tracked_run import TrackedRun

if TYPE_CHECKING:
    from rec_pipeline.engine.models.training import EpochMetrics

METRICS = ("train_loss", "validation_ndcg", "samples_per_second")


class TrainingLog:
    """Collects the epochs of one training run."""

    def __init__(self, context: dg.AssetExecutionContext, run: TrackedRun) -> None:
        self._context = context
        self._run = run
        self._started_at = time.perf_counter()
        self._history: list[EpochMetrics] = []
        self._best: EpochMetrics | None = None

    def on_epoch(self, metrics: "EpochMetrics") -> None:
        """Tell of an epoch."""
        self._history.append(metrics)
        crash_points.reach("epoch", metrics.epoch)
        values = {name: getattr(metrics, name) for name in METRICS}
        self._run.log_metrics({name: value for name, value in values.items() if value is not None}, step=metrics.epoch)
        ndcg = "" if metrics.validation_ndcg is None else f", validation ndcg@10 {metrics.validation_ndcg:.4f}"
        rate = "" if metrics.rate_share == 1 else f", at {metrics.rate_share:.0%} of the rate at which it diverged"
        self._context.log.info(
            f"epoch {metrics.epoch} ({metrics.phase}): loss {metrics.train_loss:.4f}{ndcg}, "
            f"{metrics.samples_per_second / 1e6:.1f} M samples/s{rate}"
        )

    def finish(self, best_epoch: int) -> bytes:
        """Log the best epoch and the curve; return the curve as PNG."""
        from rec_pipeline.engine.evaluation.plots import training_curve

        self._best = next((entry for entry in self._history if entry.epoch == best_epoch), None)
        curve = training_curve(self._history, best_epoch)
        self._run.log_metrics(self.metadata())
        self._run.log_bytes("plots/training_curve.png", curve)
        return curve

    def metadata(self) -> dict[str, Any]:
        """Return numbers that draw history: the best epoch and what it reached, seconds."""
        best = self._best
        ndcg = {} if best is None or best.validation_ndcg is None else {"validation_ndcg_10": best.validation_ndcg}
        return {
            **ndcg,
            "best_epoch": best.epoch if best else 0,
            "n_epochs": len(self._history),
            "train_seconds": time.perf_counter() - self._started_at,
        }

"""
Walk-forward backtest: the same recommenders fitted and evaluated at several points in time.

One test part says how good a recommender was in one period; several say whether it is reliably so. Every period is
evaluated by the one protocol (full ranking, the same metrics and intervals) with models that know nothing later than
its beginning. Nothing is chosen from the result.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, Self

import pandas as pd
from pydantic import BaseModel, Field

from rec_pipeline.engine import columns as c
from rec_pipeline.engine.artifacts import read_json, read_table, write_json, write_table
from rec_pipeline.engine.data.split import InteractionSplit
from rec_pipeline.engine.evaluation.metrics import ACCURACY_METRICS
from rec_pipeline.engine.evaluation.params import EvaluationParams
from rec_pipeline.engine.evaluation.protocol import evaluate_recommenders
from rec_pipeline.engine.evaluation.rendering import Plot, Section, to_html, to_markdown
from rec_pipeline.engine.recommenders.ranker import Ranker

TITLE: Final = "Walk-forward backtest"


class BacktestParams(BaseModel, frozen=True, extra="forbid"):
    """How far a backtest looks back."""

    n_periods: int = Field(4, ge=2, le=52, description="Periods tested, one after the other.")
    period_share: float = Field(
        0.1, gt=0, le=0.3, description="Share of all interactions that one period holds; the last period is the latest."
    )
    validation_share: float = Field(
        0.1, gt=0, lt=0.5, description="Share of the interactions before a period on which training is stopped early."
    )


@dataclass(frozen=True)
class BacktestReport:
    """
    Every metric of every recommender by period.

    Attributes
    ----------
    periods
        One row a period: ``period`` (from 1, oldest first), ``begins``, ``ends`` (ISO instants of its first and last
        interaction), ``n_users`` evaluated, ``n_held_out``.
    metrics
        One row a period, recommender and metric: ``mean`` with its bootstrap interval ``low``, ``high`` (NaN for
        aggregates) over ``n_users``.
    params
        What was measured.
    """

    periods: pd.DataFrame
    metrics: pd.DataFrame
    params: EvaluationParams

    @cached_property
    def recommenders(self) -> list[str]:
        """Names, the baseline first, then the challenger."""
        first = [self.params.baseline, self.params.challenger]
        names = map(str, self.metrics[c.RECOMMENDER].unique())
        return sorted(names, key=lambda name: first.index(name) if name in first else len(first))

    @cached_property
    def plots(self) -> dict[str, Plot]:
        """One plot an accuracy metric at the headline cutoff: a line with intervals for each recommender."""
        from rec_pipeline.engine.evaluation import plots

        look = plots.looks(self.recommenders, self.params.baseline)
        labels = [f"{row[c.PERIOD]}\nfrom {row[c.BEGINS][:10]}" for row in self.periods.to_dict("records")]
        return {
            metric.replace("@", "_"): Plot(
                f"{metric} by period with {self.params.confidence * 100:g} % intervals.",
                plots.metric_over_time(self.metrics[self.metrics[c.METRIC] == metric], metric, labels, look),
            )
            for metric in self._shown
        }

    def to_markdown(self) -> str:
        """Return the backtest as Markdown, without plots."""
        return to_markdown(TITLE, self._sections())

    def to_html(self) -> str:
        """Return the backtest as one HTML page with the plots inside that loads nothing else."""
        return to_html(TITLE, self._sections(self.plots))

    def save(self, directory: Path) -> None:
        """Write both tables as Parquet, ``backtest.json``, ``report.md``, ``report.html`` and ``plots/*.png``."""
        write_table(directory / "periods.parquet", self.periods)
        write_table(directory / "metrics.parquet", self.metrics)
        write_json(directory / "backtest.json", {"params": self.params.model_dump()})
        (directory / "report.md").write_text(self.to_markdown(), encoding="utf-8")
        (directory / "report.html").write_text(self.to_html(), encoding="utf-8")
        (directory / "plots").mkdir()
        for name, plot in self.plots.items():
            (directory / "plots" / f"{name}.png").write_bytes(plot.png)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read what ``save`` wrote."""
        return cls(
            periods=read_table(directory / "periods.parquet"),
            metrics=read_table(directory / "metrics.parquet"),
            params=EvaluationParams(**read_json(directory / "backtest.json")["params"]),
        )

    @property
    def _shown(self) -> list[str]:
        accuracy = {f"{metric}@{self.params.headline_cutoff}" for metric in ACCURACY_METRICS}
        return [
            str(name) for name in self.metrics[c.METRIC].unique() if name in {*accuracy, *self.params.compared_metrics}
        ]

    def table(self, metric: str) -> pd.DataFrame:
        """Return one row a period with ``mean [low, high]`` of each recommender, as text."""
        rows = self.metrics[self.metrics[c.METRIC] == metric]
        cells = rows.assign(
            cell=[
                f"{mean:.4f} [{low:.4f}, {high:.4f}]"
                for mean, low, high in zip(rows[c.MEAN], rows[c.LOW], rows[c.HIGH], strict=True)
            ]
        )
        return cells.pivot_table(index=c.PERIOD, columns=c.RECOMMENDER, values="cell", aggfunc="first")[
            self.recommenders
        ].reset_index()

    def _sections(self, plots: dict[str, Plot] | None = None) -> list[Section]:
        drawn = plots or {}
        return [
            Section(
                "Periods",
                [
                    "Each period is tested with models fitted on what came before it; the next period learns from it. "
                    "Candidates are the full catalogue minus what the user has seen; nothing is sampled."
                ],
                table=self.periods,
            ),
            *(
                Section(
                    f"{metric} by period",
                    table=self.table(metric),
                    plots=[drawn[name] for name in [metric.replace("@", "_")] if name in drawn],
                )
                for metric in self._shown
            ),
        ]


def backtest(
    splits: Iterable[InteractionSplit],
    fit: Callable[[InteractionSplit], Sequence[Ranker]],
    params: EvaluationParams | None = None,
    on_period: Callable[[int, InteractionSplit], None] | None = None,
) -> BacktestReport:
    """
    Fit and evaluate at every split.

    Parameters
    ----------
    splits
        In order of time, e.g. from ``walk_forward``.
    fit
        Returns the recommenders of one split, fitted on nothing later than its validation part.
    params
        What is measured; the defaults if omitted.
    on_period
        Called before each period with its number, from 1, and its split.

    Raises
    ------
    ValueError
        As ``evaluate_recommenders``.
    """
    params = params or EvaluationParams()
    periods, summaries = [], []
    for period, split in enumerate(splits, start=1):
        if on_period is not None:
            on_period(period, split)
        report = evaluate_recommenders(fit(split), split, params=params)
        times = split.test[c.TIMESTAMP]
        periods.append(
            {
                c.PERIOD: period,
                c.BEGINS: times.min().isoformat(),
                c.ENDS: times.max().isoformat(),
                c.N_USERS: report.data["n_users_evaluated"],
                c.N_HELD_OUT: report.data["n_held_out"],
            }
        )
        summaries.append(report.summary.assign(**{c.PERIOD: period}))
    return BacktestReport(pd.DataFrame(periods), pd.concat(summaries, ignore_index=True), params)

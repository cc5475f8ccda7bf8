"""What an evaluation found: tables, the words for them, and the files they are kept in."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import pandas as pd

from rec_pipeline.engine import columns as c
from rec_pipeline.engine.artifacts import read_json, read_table, write_json, write_table
from rec_pipeline.engine.evaluation.metrics import (
    ACCURACY_METRICS,
    AGGREGATE_METRICS,
    DEFINITIONS,
    LIST_METRICS,
    FloatVector,
    label,
)
from rec_pipeline.engine.evaluation.params import EvaluationParams
from rec_pipeline.engine.evaluation.rendering import Plot, Section, to_html, to_markdown
from rec_pipeline.engine.evaluation.significance import Interval, PairedComparison, bootstrap_intervals

TITLE: Final = "Evaluation of the recommenders"
TABLES: Final = ("summary", "slices", "comparisons", "exposure", "item_exposure", "per_user")
OPTIONAL_TABLES: Final = ("retrieval", "variety", "context")
HELD_OUT: Final = "held-out items"


@dataclass(frozen=True)
class EvaluationReport:
    """
    Every recommender's metrics on the test part, how sure they are, and where they come from.

    Attributes
    ----------
    summary
        One row a recommender and metric: ``recommender``, ``metric`` (``ndcg@10``), ``mean``, ``low``, ``high``,
        ``n_users``. Aggregates (coverage, exposure_gini) have no interval: NaN.
    slices
        The compared metrics by ``slice`` (``user_activity``, ``item_popularity``) and ``bucket``, else as ``summary``.
        Under ``item_popularity`` only the bucket's items count as held out.
    comparisons
        One row a compared metric and pair: ``first``, ``second``, ``difference`` (first minus second), ``low``,
        ``high``, ``p``, ``p_holm``, ``significant``.
    exposure
        ``share`` of the recommended places at the headline cutoff that go to the ``top_percent`` most popular items,
        by recommender and for the held-out items themselves.
    item_exposure
        ``share`` of the recommended places at the headline cutoff that go to the items of each ``bucket`` of known
        interactions (0: cold items), and the ``catalogue_share`` of these items; by recommender and for the held-out
        items themselves.
    per_user
        One row a recommender and evaluated user: ``user_id``, ``n_history``, ``recommender`` and a float64 column a
        metric, NaN where undefined; users in the same order for each recommender.
    retrieval
        Retrieval quality, one row an index, given by the caller; None if none was.
    variety, context
        What re-ranking for variety costs and brings, and what context does (see ``reranked``); None if not measured.
    params
        What was measured.
    data
        Split, boundaries and counts, and what the caller noted (who the champion is), JSON-serialisable.
    """

    summary: pd.DataFrame
    slices: pd.DataFrame
    comparisons: pd.DataFrame
    exposure: pd.DataFrame
    item_exposure: pd.DataFrame
    per_user: pd.DataFrame
    retrieval: pd.DataFrame | None
    variety: pd.DataFrame | None
    context: pd.DataFrame | None
    params: EvaluationParams
    data: dict[str, Any]

    @cached_property
    def recommenders(self) -> list[str]:
        """Names in the order of the report: the baseline, the challenger, the others."""
        names = self.summary[c.RECOMMENDER].unique()
        first = [self.params.baseline, self.params.challenger]
        return sorted(map(str, names), key=lambda name: first.index(name) if name in first else len(first))

    @cached_property
    def challenger(self) -> str:
        """The recommender the report is about: ``params.challenger``, or the best one if it took no part."""
        if self.params.challenger in self.recommenders:
            return self.params.challenger
        return max(self.recommenders, key=lambda name: self.value(name, self.params.headline))

    @cached_property
    def best_source(self) -> str | None:
        """The source of the challenger with the best headline metric alone; None if no source took part."""
        present = [name for name in self.params.sources if name in self.recommenders and name != self.challenger]
        return max(present, key=lambda name: self.value(name, self.params.headline), default=None)

    @cached_property
    def metrics(self) -> list[str]:
        """Names of all metrics with their cutoffs."""
        return [str(name) for name in self.summary[c.METRIC].unique()]

    def interval(self, recommender: str, metric: str) -> Interval:
        """
        Return mean, interval and number of users of one metric.

        Raises
        ------
        KeyError
            If the report has no such recommender or metric.
        """
        if (recommender, metric) not in self._intervals:
            raise KeyError(f"no {metric!r} of {recommender!r}; there are {self.metrics} of {self.recommenders}")
        return self._intervals[recommender, metric]

    def value(self, recommender: str, metric: str) -> float:
        """Return the mean of one metric, e.g. ``report.value("hybrid", "ndcg@10")``."""
        return self.interval(recommender, metric).mean

    def user_values(self, recommender: str, metric: str) -> FloatVector:
        """Return one metric of each evaluated user, float64 of shape (n_users_evaluated,), NaN where undefined."""
        self.interval(recommender, metric)
        rows = self.per_user.loc[self.per_user[c.RECOMMENDER] == recommender, metric]
        return rows.to_numpy(dtype=np.float64)

    def comparison(self, first: str, second: str, metric: str | None = None) -> PairedComparison:
        """
        Return ``first`` minus ``second`` on a compared metric (the headline by default), in either order.

        Raises
        ------
        KeyError
            If the report did not compare them.
        """
        metric = metric or self.params.headline
        table = self.comparisons[self.comparisons[c.METRIC] == metric]
        for a, b, sign in ((first, second, 1.0), (second, first, -1.0)):
            rows = table[(table[c.FIRST] == a) & (table[c.SECOND] == b)]
            if len(rows):
                row = rows.iloc[0]
                low, high = sorted((sign * float(row[c.LOW]), sign * float(row[c.HIGH])))
                difference, p, p_holm = sign * float(row[c.DIFFERENCE]), float(row[c.P]), float(row[c.P_HOLM])
                return PairedComparison(first, second, difference, low, high, p, p_holm)
        raise KeyError(
            f"no comparison of {first!r} and {second!r} on {metric!r}; on {self.params.compared_metrics} only"
        )

    def difference(self, first: str, second: str, metric: str) -> Interval:
        """Return the mean and interval of ``first`` minus ``second`` over the same users, on any per-user metric."""
        values = self.user_values(first, metric) - self.user_values(second, metric)
        resampling = self.params.model_dump(include={"n_resamples", "confidence", "seed"})
        return bootstrap_intervals(values[:, None], **resampling)[0]

    def verdicts(self) -> list[str]:
        """Say for each compared metric and other recommender whether the challenger is better, and how sure that is."""
        sentences = self._against_best_source()
        for metric in self.params.compared_metrics:
            for other in self.recommenders:
                if other == self.challenger:
                    continue
                pair = self.comparison(self.challenger, other, metric)
                is_significant = pair.p_holm < 1 - self.params.confidence
                side = "better" if pair.difference > 0 else "worse"
                verdict = f"significantly {side} than" if is_significant else "not significantly different from"
                sentences.append(
                    f"{metric}: {self.challenger} is **{verdict} {other}** "
                    f"({self.value(self.challenger, metric):.4f} against {self.value(other, metric):.4f}, difference "
                    f"{pair.difference:+.4f}, {self._percent} interval {pair.low:+.4f} to {pair.high:+.4f}, "
                    f"p = {pair.p_holm:.2g} after Holm's correction)."
                )
        return sentences

    def _against_best_source(self) -> list[str]:
        if self.best_source is None:
            return []
        metric, best = self.params.headline, self.best_source
        interval = self.difference(self.challenger, best, metric)
        value = self.value(best, metric)
        undecided = "not significantly different from"
        relation = undecided if interval.low <= 0 <= interval.high else ("better" if interval.mean > 0 else "worse")
        relation = relation if relation == undecided else f"significantly {relation} than"
        relative = f"{interval.mean / value:+.1%}, " if value > 0 else ""
        return [
            f"{metric}: {self.challenger} is **{relation} its best source alone**, {best} ({relative}difference "
            f"{interval.mean:+.4f}, {self._percent} interval {interval.low:+.4f} to {interval.high:+.4f})."
        ]

    @cached_property
    def plots(self) -> dict[str, Plot]:
        """The plots of the report by file stem, drawn when first asked for."""
        from rec_pipeline.engine.evaluation import plots  # matplotlib takes half a second, tables do not need it

        look = plots.looks(self.recommenders, self.params.baseline)
        headline, cutoff = self.params.headline, self.params.headline_cutoff
        shown = [label(metric, cutoff) for metric in ACCURACY_METRICS]
        tradeoffs = [name for name in (label("coverage", cutoff), label("diversity", cutoff)) if name in self.metrics]
        family = headline.partition("@")[0]
        activity = self.slices[self.slices[c.SLICE] == "user_activity"]
        popularity = self.slices[self.slices[c.SLICE] == "item_popularity"]
        variety = {}
        if self.variety is not None:
            variety["variety"] = Plot(
                "ndcg@10 against diversity@10 of the hybrid by `mmr_trade_off`; 1 is the list as merged.",
                plots.variety_line(self.variety),
            )
        return variety | {
            "accuracy": Plot(
                f"Accuracy at {cutoff} with {self._percent} intervals.", plots.metric_bars(self.summary, shown, look)
            ),
            "by_cutoff": Plot(
                f"{family} by cutoff with {self._percent} intervals.",
                plots.metric_by_cutoff(self.summary, family, self.params.cutoffs, look),
            ),
            "by_user_activity": Plot(
                f"{headline} by the number of known interactions of the user.",
                plots.slice_bars(activity, headline, look),
            ),
            "by_item_popularity": Plot(
                f"{headline} where only held-out items known to that many users count.",
                plots.slice_bars(popularity, headline, look),
            ),
            "tradeoff": Plot(
                f"{headline} against {' and '.join(tradeoffs)}: up and to the right is better.",
                plots.tradeoff_scatter(self.summary, headline, tradeoffs, look),
            ),
            "exposure": Plot(
                f"Share of the first {cutoff} places that goes to the most popular items.",
                plots.exposure_curve(self.exposure, look, HELD_OUT),
            ),
        }

    def to_markdown(self) -> str:
        """Return the report as Markdown, without plots."""
        return to_markdown(TITLE, self._sections())

    def to_html(self) -> str:
        """Return the report as one HTML page with the plots inside that loads nothing else."""
        return to_html(TITLE, self._sections(self.plots))

    def save(self, directory: Path) -> None:
        """Write the tables as Parquet, ``report.json``, ``report.md``, ``report.html`` and ``plots/*.png``."""
        for name in TABLES:
            write_table(directory / f"{name}.parquet", getattr(self, name))
        for name in OPTIONAL_TABLES:
            if (table := getattr(self, name)) is not None:
                write_table(directory / f"{name}.parquet", table)
        words = {"params": self.params.model_dump(), "data": self.data, "verdicts": self.verdicts()}
        write_json(directory / "report.json", words)
        (directory / "report.md").write_text(self.to_markdown(), encoding="utf-8")
        (directory / "report.html").write_text(self.to_html(), encoding="utf-8")
        (directory / "plots").mkdir()
        for name, plot in self.plots.items():
            (directory / "plots" / f"{name}.png").write_bytes(plot.png)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read what ``save`` wrote."""
        words = read_json(directory / "report.json")
        found: dict[str, Any] = {name: read_table(directory / f"{name}.parquet") for name in TABLES}
        for name in OPTIONAL_TABLES:
            path = directory / f"{name}.parquet"
            found[name] = read_table(path) if path.is_file() else None
        return cls(
            **found,
            params=EvaluationParams(**words["params"]),
            data=words["data"],
        )

    @cached_property
    def _intervals(self) -> dict[tuple[str, str], Interval]:
        columns = [c.RECOMMENDER, c.METRIC, c.MEAN, c.LOW, c.HIGH, c.N_USERS]
        rows = zip(*(self.summary[column].tolist() for column in columns), strict=True)
        return {(recommender, metric): Interval(*numbers) for recommender, metric, *numbers in rows}

    @property
    def _who(self) -> str:
        n_evaluated, n_in_all = self.data["n_users_evaluated"], self.data["n_users_with_held_out"]
        if n_evaluated == n_in_all:
            return f"all {n_in_all:,} users"
        return f"{n_evaluated:,} users, drawn at random from the {n_in_all:,}"

    @property
    def _percent(self) -> str:
        return f"{self.params.confidence * 100:g} %"

    def _sections(self, plots: dict[str, Plot] | None = None) -> list[Section]:
        def drawn(*names: str) -> list[Plot]:
            return [plots[name] for name in names] if plots else []

        cutoff = self.params.headline_cutoff
        at_cutoff = [name for name in self.metrics if name.endswith(f"@{cutoff}")]
        sections = [
            Section(f"Is {self.challenger} better?", points=self.verdicts()),
            Section(
                f"Metrics at {cutoff}",
                [
                    f"Mean over the users with its {self._percent} bootstrap interval, {self.params.baseline} first. "
                    "Coverage and exposure describe all lists together and have no interval."
                ],
                table=self._metric_table(at_cutoff),
                plots=drawn("accuracy", "by_cutoff"),
            ),
            Section(
                "Every pair compared",
                [
                    f"Difference of the first and the second over the same users, with its paired {self._percent} "
                    f"bootstrap interval ({self.params.n_resamples:,} resamples); p by a sign-flip permutation test, "
                    "two-sided, and after Holm's correction over all pairs of the metric."
                ],
                table=self._comparison_table(),
            ),
            Section(
                "By user activity",
                ["Users grouped by their known interactions when the test part begins."],
                table=self._slice_table("user_activity"),
                plots=drawn("by_user_activity"),
            ),
            Section(
                "By item popularity",
                ["Only held-out items known to that many users count, for users who have one; the lists are the same."],
                table=self._slice_table("item_popularity"),
                plots=drawn("by_item_popularity"),
            ),
            Section("Beyond accuracy", plots=drawn("tradeoff", "exposure"), table=self._exposure_table()),
            Section(
                "Exposure of new and rare items",
                [
                    f"Share of the first {cutoff} places that goes to items by the number of users who know them when "
                    "the test part begins: 0 are cold items, which only their text can recommend."
                ],
                table=self._item_exposure_table(),
            ),
        ]
        if self.variety is not None:
            sections.append(
                Section(
                    "Accuracy and diversity",
                    ["What `mmr_trade_off` costs and brings; 1 leaves the merged lists as they are."],
                    table=_formatted(self.variety),
                    plots=drawn("variety"),
                )
            )
        if self.context is not None:
            sections.append(
                Section(
                    "Context",
                    [
                        "Each held-out event ranked in its own time, device and location: 1 / log2(1 + rank) among the "
                        f"first ten, mean over users, with the {self._percent} interval of the difference."
                    ],
                    table=_formatted(self.context),
                )
            )
        if self.retrieval is not None:
            sections.append(
                Section(
                    "Retrieval quality",
                    ["How much of the work before ranking is lost; no later ranking can bring it back."],
                    table=_formatted(self.retrieval),
                )
            )
        return [
            *sections,
            Section("All cutoffs", table=self._metric_table(self.metrics, with_interval=False)),
            Section("Data and protocol", points=self._data_points()),
            Section("Definitions", ["Averages are over users, each counting once."], points=self._definitions()),
        ]

    def _metric_table(self, metrics: Sequence[str], *, with_interval: bool = True) -> pd.DataFrame:
        def cell(recommender: str, metric: str) -> str:
            interval = self.interval(recommender, metric)
            return _cell(interval.mean, interval.low, interval.high) if with_interval else _cell(interval.mean)

        columns = {name: [cell(name, metric) for metric in metrics] for name in self.recommenders}
        return pd.DataFrame({c.METRIC: list(metrics), **columns})

    def _comparison_table(self) -> pd.DataFrame:
        table = self.comparisons
        bounds = zip(table[c.DIFFERENCE], table[c.LOW], table[c.HIGH], strict=True)
        return pd.DataFrame(
            {
                "pair": [f"{a} - {b}" for a, b in zip(table[c.FIRST], table[c.SECOND], strict=True)],
                c.METRIC: table[c.METRIC],
                c.DIFFERENCE: [f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]" for mean, low, high in bounds],
                c.P: table[c.P].map("{:.2g}".format),
                "p (Holm)": table[c.P_HOLM].map("{:.2g}".format),
                c.SIGNIFICANT: table[c.SIGNIFICANT].map({True: "**yes**", False: "no"}),
            }
        )

    def _slice_table(self, slice_name: str) -> pd.DataFrame:
        rows = self.slices[self.slices[c.SLICE] == slice_name]
        columns: dict[str, list[str]] = {c.BUCKET: [], c.METRIC: [], "users": []}
        columns |= {name: [] for name in self.recommenders}
        for (bucket, metric), group in rows.groupby([c.BUCKET, c.METRIC], sort=False):
            columns[c.BUCKET].append(str(bucket))
            columns[c.METRIC].append(str(metric))
            columns["users"].append(f"{group[c.N_USERS].max():,}")
            bounds = zip(group[c.MEAN], group[c.LOW], group[c.HIGH], strict=True)
            for recommender, (mean, low, high) in zip(group[c.RECOMMENDER], bounds, strict=True):
                columns[recommender].append(_cell(mean, low, high))
        return pd.DataFrame(columns)

    def _exposure_table(self) -> pd.DataFrame:
        shares = self.exposure.pivot_table(index=c.TOP_PERCENT, columns=c.RECOMMENDER, values=c.SHARE)
        shares = shares[[HELD_OUT, *self.recommenders]].map("{:.1%}".format)
        shares.insert(0, "share of the most popular", [f"{percent} %" for percent in shares.index])
        return shares

    def _item_exposure_table(self) -> pd.DataFrame:
        shares = self.item_exposure.pivot_table(index=c.BUCKET, columns=c.RECOMMENDER, values=c.SHARE, sort=False)
        items = self.item_exposure.drop_duplicates(c.BUCKET).set_index(c.BUCKET)[c.CATALOGUE_SHARE]
        table = shares[[HELD_OUT, *self.recommenders]].map("{:.1%}".format)
        table.insert(0, "share of the catalogue", items.loc[table.index].map("{:.1%}".format))
        table.insert(0, "users who know the item", list(table.index))
        return table

    def _data_points(self) -> list[str]:
        data = self.data
        bounds = ", ".join(f"{name} {value}" for name, value in sorted(data["boundaries"].items()))
        return [
            f"Split `{data['strategy']}` ({bounds}): {data['n_train']:,} training, {data['n_validation']:,} validation "
            f"and {data['n_test']:,} test interactions of {data['n_users']:,} users and {data['n_items']:,} items.",
            "History is what training and validation hold of a user; held out are the test items that are not in it "
            f"({data['n_test_already_known']:,} test interactions were).",
            f"Evaluated are {self._who} with a held-out item, "
            f"{data['n_users_without_history']:,} of them without any history. A user for whom a recommender returns "
            "nothing scores 0 and stays in the mean.",
            f"{data['n_held_out']:,} items are held out; {data['n_held_out_new_items']:,} of them nobody had known "
            f"before, and {data['n_held_out_not_eligible']:,} may not be recommended and count as missed.",
            f"Candidates are the full catalogue ({data['n_eligible_items']:,} items that may be recommended) minus "
            "what the user has seen; nothing is sampled.",
            *([data["champion"]] if "champion" in data else []),
        ]

    def _definitions(self) -> list[str]:
        present = {name.partition("@")[0] for name in self.metrics}
        names = [name for name in (*ACCURACY_METRICS, *LIST_METRICS, *AGGREGATE_METRICS) if name in present]
        return [f"**{name}**: {DEFINITIONS[name]}" for name in names]


def _cell(mean: float, low: float = np.nan, high: float = np.nan) -> str:
    if np.isnan(mean):
        return "-"
    return f"{mean:.4f}" if np.isnan(low) else f"{mean:.4f} [{low:.4f}, {high:.4f}]"


def _formatted(table: pd.DataFrame) -> pd.DataFrame:
    return table.map(lambda value: f"{value:.4f}" if isinstance(value, float) else str(value))

"""
The plots of an evaluation report, as PNG bytes.

Drawn with matplotlib's figure objects, without pyplot and its global state. Every recommender has one colour throughout
(the palette of Okabe and Ito, told apart by colour-blind readers too) and one marker; the baseline is grey.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from rec_pipeline.engine import columns as c
from rec_pipeline.engine.evaluation.metrics import FloatVector

if TYPE_CHECKING:
    from rec_pipeline.engine.models.training import EpochMetrics

GREY: Final = "#8a929c"
PALETTE: Final = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#b8a800", "#332288", "#661100")
MARKERS: Final = "oDs^vPX*<"
INK: Final = "#1c2430"


@dataclass(frozen=True)
class Look:
    """Colour and marker of one recommender."""

    colour: str
    marker: str


def looks(recommenders: Sequence[str], baseline: str) -> dict[str, Look]:
    """Give each recommender its colour and marker, by its place in the list; they repeat after nine."""
    others = [name for name in recommenders if name != baseline]
    chosen = {name: Look(PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(others)}
    return {name: chosen.get(name, Look(GREY, "o")) for name in recommenders}


def metric_bars(summary: pd.DataFrame, metrics: Sequence[str], look: dict[str, Look]) -> bytes:
    """Draw one panel a metric with a bar and its interval for each recommender."""
    with _drawn(8.4, 0.9 + 0.36 * len(look) * -(-len(metrics) // 3), rows=-(-len(metrics) // 3), cols=3) as (axes, png):
        for panel, metric in zip(axes, metrics, strict=False):
            rows = summary[summary[c.METRIC] == metric].set_index(c.RECOMMENDER).loc[list(look)]
            place = np.arange(len(rows))[::-1]
            mean, low, high = _bounds(rows)
            panel.barh(place, mean, color=[look[name].colour for name in rows.index], height=0.68)
            panel.errorbar(mean, place, xerr=[mean - low, high - mean], fmt="none", ecolor=INK, capsize=2.5, lw=1)
            panel.set_yticks(place, list(rows.index))
            panel.set_title(metric, loc="left", fontsize=10, color=INK)
            panel.grid(axis="y", visible=False)
            panel.locator_params(axis="x", nbins=5)
        for panel in axes[len(metrics) :]:
            panel.set_axis_off()
        for column, panel in enumerate(axes):
            if column % 3:
                panel.set_yticklabels([])
    return png.getvalue()


def metric_by_cutoff(summary: pd.DataFrame, metric: str, cutoffs: Sequence[int], look: dict[str, Look]) -> bytes:
    """Draw a metric with its interval against the cutoff, a line for each recommender, set apart by a little."""
    with _drawn(7.2, 4.2) as ((axes,), png):
        for i, (name, style) in enumerate(look.items()):
            rows = summary[summary[c.RECOMMENDER] == name].set_index(c.METRIC).loc[[f"{metric}@{k}" for k in cutoffs]]
            place = np.array(cutoffs) * 1.025 ** (i - (len(look) - 1) / 2)
            mean, low, high = _bounds(rows)
            axes.errorbar(place, mean, yerr=[mean - low, high - mean], fmt="none", ecolor=style.colour, capsize=2, lw=1)
            axes.plot(place, mean, color=style.colour, marker=style.marker, lw=1.8, ms=6, label=name)
        axes.set_xscale("log")
        axes.set_xticks(cutoffs, [str(cutoff) for cutoff in cutoffs])
        axes.minorticks_off()
        axes.set_xlabel("cutoff")
        axes.set_ylabel(metric)
        axes.set_ylim(bottom=0)
        _legend(axes)
    return png.getvalue()


def metric_over_time(values: pd.DataFrame, metric: str, periods: Sequence[str], look: dict[str, Look]) -> bytes:
    """Draw one metric with its interval by period, a line for each recommender, set apart by a little."""
    with _drawn(7.2, 4.2) as ((axes,), png):
        for i, (name, style) in enumerate(look.items()):
            rows = values[values[c.RECOMMENDER] == name].sort_values(c.PERIOD)
            place = rows[c.PERIOD].to_numpy(dtype=np.float64) + 0.04 * (i - (len(look) - 1) / 2)
            mean, low, high = _bounds(rows)
            axes.errorbar(place, mean, yerr=[mean - low, high - mean], fmt="none", ecolor=style.colour, capsize=2, lw=1)
            axes.plot(place, mean, color=style.colour, marker=style.marker, lw=1.8, ms=6, label=name)
        axes.set_xticks(range(1, len(periods) + 1), list(periods))
        axes.set_xlabel("period")
        axes.set_ylabel(metric)
        axes.set_ylim(bottom=0)
        _legend(axes)
    return png.getvalue()


def slice_bars(slices: pd.DataFrame, metric: str, look: dict[str, Look]) -> bytes:
    """Draw a metric with its interval for each recommender, side by side within each group of users or items."""
    rows = slices[slices[c.METRIC] == metric]
    buckets = list(rows[c.BUCKET].unique())
    with _drawn(7.2, 4.2) as ((axes,), png):
        width = 0.8 / len(look)
        for i, (name, style) in enumerate(look.items()):
            group = rows[rows[c.RECOMMENDER] == name].set_index(c.BUCKET).loc[buckets]
            place = np.arange(len(buckets)) + (i - (len(look) - 1) / 2) * width
            mean, low, high = _bounds(group)
            axes.bar(place, mean, width=width * 0.92, color=style.colour, label=name)
            axes.errorbar(place, mean, yerr=[mean - low, high - mean], fmt="none", ecolor=INK, capsize=2, lw=0.9)
        n_users = rows.groupby(c.BUCKET)[c.N_USERS].max()
        axes.set_xticks(range(len(buckets)), [f"{bucket}\n{n_users[bucket]:,} users" for bucket in buckets])
        axes.set_ylabel(metric)
        axes.grid(axis="x", visible=False)
        _legend(axes)
    return png.getvalue()


def tradeoff_scatter(summary: pd.DataFrame, accuracy: str, others: Sequence[str], look: dict[str, Look]) -> bytes:
    """Draw each recommender's accuracy against each of ``others``, one panel each: up and right is better."""
    table = summary.pivot_table(index=c.RECOMMENDER, columns=c.METRIC, values=c.MEAN)
    with _drawn(4.2 * len(others), 4.0, cols=len(others)) as (axes, png):
        for panel, other in zip(axes, others, strict=True):
            for name, style in look.items():
                x, y = table[other].get(name, np.nan), table[accuracy].get(name, np.nan)
                panel.scatter([x], [y], s=75, color=style.colour, marker=style.marker, label=name, zorder=3)
            panel.set_xlabel(other)
            panel.margins(0.15)
            panel.locator_params(axis="x", nbins=5)
        axes[0].set_ylabel(accuracy)
        _legend(axes[-1])
    return png.getvalue()


def variety_line(variety: pd.DataFrame) -> bytes:
    """Draw accuracy against diversity, a point for each trade-off with its value beside it."""
    with _drawn(5.6, 4.0) as ((axes,), png):
        x, y = variety[c.DIVERSITY].to_numpy(), variety[c.NDCG].to_numpy()
        axes.plot(x, y, color=PALETTE[0], marker=MARKERS[0], lw=1.8, ms=6)
        for share, at_x, at_y in zip(variety[c.TRADE_OFF], x, y, strict=True):
            axes.annotate(f"{share:g}", (at_x, at_y), xytext=(6, 4), textcoords="offset points", fontsize=9, color=INK)
        axes.set_xlabel(c.DIVERSITY)
        axes.set_ylabel(c.NDCG)
        axes.margins(0.12)
    return png.getvalue()


def exposure_curve(exposure: pd.DataFrame, look: dict[str, Look], reference: str) -> bytes:
    """Draw which share of the recommended places goes to the most popular items, beside what users really chose."""
    with _drawn(7.2, 4.2) as ((axes,), png):
        held_out = exposure[exposure[c.RECOMMENDER] == reference]
        axes.plot(held_out[c.TOP_PERCENT], held_out[c.SHARE], color=INK, ls=(0, (4, 3)), lw=1.6, label=reference)
        for name, style in look.items():
            rows = exposure[exposure[c.RECOMMENDER] == name]
            axes.plot(
                rows[c.TOP_PERCENT], rows[c.SHARE], color=style.colour, marker=style.marker, lw=2, ms=6, label=name
            )
        axes.set_xscale("log")
        axes.set_xticks(list(held_out[c.TOP_PERCENT]), [f"{percent} %" for percent in held_out[c.TOP_PERCENT]])
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_ylim(0, 1.03)
        axes.set_xlabel("most popular items of the catalogue")
        axes.set_ylabel("share of recommended places")
        _legend(axes)
    return png.getvalue()


def training_curve(history: "Sequence[EpochMetrics]", best_epoch: int) -> bytes:
    """Draw loss and, where there is validation, its ndcg@10 over the epochs; the best epoch is marked."""
    epochs = [entry.epoch for entry in history]
    series = {"training loss": [entry.train_loss for entry in history]}
    if all(entry.validation_ndcg is not None for entry in history):
        series["validation ndcg@10"] = [float(entry.validation_ndcg or 0) for entry in history]
    with _drawn(7.6, 2.8, cols=len(series)) as (axes, png):
        for panel, (name, values), colour in zip(axes, series.items(), PALETTE, strict=False):
            panel.plot(epochs, values, color=colour, marker="o", ms=3, lw=1.6)
            panel.set_xlabel("epoch")
            panel.set_title(name, fontsize=10, loc="left", color=INK)
            if best_epoch in epochs:
                panel.axvline(best_epoch, color=GREY, lw=1, ls="--")
    return png.getvalue()


@contextmanager
def _drawn(width: float, height: float, rows: int = 1, cols: int = 1) -> Iterator[tuple[list[Axes], BytesIO]]:
    """Give empty axes in the house look; on leaving, the drawing is in the buffer."""
    figure, png = Figure(figsize=(width, height), dpi=110, layout="constrained"), BytesIO()
    axes = list(figure.subplots(rows, cols, squeeze=False).flat)
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
        panel.spines[["left", "bottom"]].set_color("#c3cad2")
        panel.tick_params(colors="#4a5563", labelsize=9, length=0)
        panel.grid(color="#e8ecf0", lw=0.8)
        panel.set_axisbelow(True)
        panel.xaxis.label.set_color(INK)
        panel.yaxis.label.set_color(INK)
    yield axes, png
    figure.savefig(png, format="png", metadata={"Software": None})


def _bounds(rows: pd.DataFrame) -> tuple[FloatVector, FloatVector, FloatVector]:
    mean, low, high = (rows[column].to_numpy(dtype=np.float64) for column in (c.MEAN, c.LOW, c.HIGH))
    return mean, low, high


def _legend(axes: Axes) -> None:
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9, labelcolor=INK)

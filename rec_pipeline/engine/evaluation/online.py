"""
What became of what was recommended: impressions joined with the clicks that followed them.

click-through = impressions that were clicked / impressions. A click counts for the last impression of its item to its
user before it, within a window; an impression is clicked once or not at all. Intervals are Wilson's (1927), on the
effective number of impressions: those of one user resemble each other, so the variance of the ratio is taken over users
(linearised, as for any sample of clusters) and turned into the number of independent impressions of that variance.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import Any, Final, Self

import numpy as np
import pandas as pd
from pydantic import BaseModel, Field

from rec_pipeline.engine import columns as c
from rec_pipeline.engine.artifacts import read_json, read_table, write_json, write_table
from rec_pipeline.engine.data.entries import SOURCE_SEPARATOR
from rec_pipeline.engine.data.event_log import EventLog
from rec_pipeline.engine.data.events import CLICK, IMPRESSION
from rec_pipeline.engine.data.experiment import Experiment

MIN_EXPECTED_USERS: Final = 5
READ: Final = (
    c.USER_ID, c.ITEM_ID, c.EVENT_TYPE, c.TIMESTAMP, c.SOURCES, c.GENERATION, c.EXPERIMENT, c.VARIANT,
)  # fmt: skip


class OnlineParams(BaseModel, frozen=True, extra="forbid"):
    """Which events are joined, and how."""

    days: int = Field(28, ge=1, description="Days looked back, today included.")
    attribution_hours: float = Field(
        24, gt=0, description="How long after an impression a click still counts as its effect."
    )
    click_types: list[str] = Field([CLICK], description="Event types that count as a click.")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Confidence of the intervals.")


@dataclass(frozen=True)
class OnlineMetrics:
    """
    Click-through of what was recommended.

    Attributes
    ----------
    table
        One row a bucket of a slice (``all``, ``source``, ``generation``, ``experiment/variant``): ``n_impressions``,
        ``n_clicked``, ``n_users``, ``mean`` (the click-through), ``low``, ``high``. An item that several sources
        proposed counts for each of them.
    n_clicks, n_clicks_of_served, n_matched
        Clicks; those that say they are of a recommended item; those of these that follow an impression.
    users_by_variant
        Users with impressions in each variant of the running experiment.
    n_misdealt
        Users whose impressions name another variant than the hash gives them.
    p_of_shares
        Chi-square p-value of those users against the configured shares; 1 where there is nothing to test.
    """

    table: pd.DataFrame
    n_clicks: int = 0
    n_clicks_of_served: int = 0
    n_matched: int = 0
    users_by_variant: dict[str, int] = field(default_factory=dict)
    n_misdealt: int = 0
    p_of_shares: float = 1.0

    def save(self, directory: Path) -> None:
        """Write ``click_through.parquet`` and ``counts.json``."""
        write_table(directory / "click_through.parquet", self.table)
        write_json(directory / "counts.json", {name: value for name, value in vars(self).items() if name != "table"})

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read what ``save`` wrote."""
        return cls(read_table(directory / "click_through.parquet"), **read_json(directory / "counts.json"))


def online_metrics(log: EventLog, experiment: Experiment, params: OnlineParams, today: pd.Timestamp) -> OnlineMetrics:
    """
    Join the impressions of the last days with their clicks.

    Parameters
    ----------
    log
        The whole log.
    experiment
        The one that runs; the users of its variants are held against its shares.
    params
        Window, types, confidence.
    today
        The last day looked at, with a timezone.
    """
    since = f"{today - pd.Timedelta(days=params.days - 1):%Y-%m-%d}"
    events = log.read(READ, event_types=[IMPRESSION, *params.click_types], since=since)
    is_impression = events[c.EVENT_TYPE] == IMPRESSION
    impressions = events[is_impression].reset_index(drop=True)
    clicks = events[~is_impression]
    matched = match_clicks(impressions, clicks, pd.Timedelta(hours=params.attribution_hours))
    impressions[c.CLICKED] = np.isin(np.arange(len(impressions)), matched.dropna())
    of_served = clicks[c.SOURCES].to_numpy() != ""
    users_by_variant, n_misdealt = _users_by_variant(impressions, experiment)
    return OnlineMetrics(
        table=pd.DataFrame(list(_slices(impressions, params.confidence)), columns=_COLUMNS),
        n_clicks=len(clicks),
        n_clicks_of_served=int(of_served.sum()),
        n_matched=int((matched.notna().to_numpy() & of_served).sum()),
        users_by_variant=users_by_variant,
        n_misdealt=n_misdealt,
        p_of_shares=p_of_shares(users_by_variant, experiment.shares),
    )


def match_clicks(impressions: pd.DataFrame, clicks: pd.DataFrame, window: pd.Timedelta) -> "pd.Series[float]":
    """
    Return, for each click in its order, the row of the impression it counts for; NaN where there is none.

    Parameters
    ----------
    impressions, clicks
        ``user_id``, ``item_id`` and ``timestamp``; ``impressions`` numbered from 0.
    window
        How long before the click the impression may be.
    """
    if impressions.empty or clicks.empty:  # merge_asof fails on text columns without rows
        return pd.Series(math.nan, index=range(len(clicks)))
    on = [c.USER_ID, c.ITEM_ID, c.TIMESTAMP]
    left = clicks[on].assign(click=np.arange(len(clicks))).sort_values(c.TIMESTAMP, kind="stable")
    right = impressions[on].assign(impression=np.arange(len(impressions), dtype=float))
    joined = pd.merge_asof(
        left,
        right.sort_values(c.TIMESTAMP, kind="stable"),
        on=c.TIMESTAMP,
        by=[c.USER_ID, c.ITEM_ID],
        tolerance=window,
    )
    found: pd.Series[float] = joined.sort_values("click", ignore_index=True)["impression"]
    return found


def click_through(impressions: pd.DataFrame, confidence: float) -> tuple[float, float, float]:
    """
    Return the click-through of impressions and its interval; NaN where there are none.

    Parameters
    ----------
    impressions
        ``user_id`` and ``clicked``.
    confidence : float
        Of the interval.
    """
    n = len(impressions)
    if not n:
        return math.nan, math.nan, math.nan
    per_user = impressions.groupby(c.USER_ID)[c.CLICKED].agg(["sum", "size"])
    rate = float(per_user["sum"].sum() / n)
    n_users = len(per_user)
    n_effective = float(n)
    if n_users > 1 and 0 < rate < 1:
        residuals = (per_user["sum"] - rate * per_user["size"]).to_numpy(dtype=np.float64)
        variance = n_users / (n_users - 1) * float(residuals @ residuals) / n**2
        n_effective = min(n_effective, rate * (1 - rate) / max(variance, np.finfo(np.float64).tiny))
    return rate, *wilson_interval(rate, n_effective, confidence)


def wilson_interval(rate: float, n: float, confidence: float) -> tuple[float, float]:
    """
    Return Wilson's score interval of a share.

    Parameters
    ----------
    rate : float
        Observed share in [0, 1].
    n : float
        Observations it rests on, > 0.
    confidence : float
        E.g. 0.95.

    References
    ----------
    Wilson (1927), JASA 22(158).

    Examples
    --------
    >>> low, high = wilson_interval(0.1, 100, 0.95)
    >>> round(low, 4), round(high, 4)
    (0.0552, 0.1744)
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    centre = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def p_of_shares(users_by_variant: dict[str, int], shares: dict[str, float]) -> float:
    """
    Return the chi-square p-value of users dealt to variants against the shares they were dealt by.

    A small one is a sample-ratio mismatch: users are lost, doubled or misdealt somewhere, and a comparison of the
    variants means nothing. 1 where there is one variant, or too few users to tell (fewer than 5 expected in one).
    """
    from scipy.stats import chisquare

    n_users = sum(users_by_variant.values())
    expected = [share * n_users for share in shares.values()]
    if len(expected) < 2 or min(expected) < MIN_EXPECTED_USERS:
        return 1.0
    total = sum(expected)  # shares sum to 1 but for rounding, which the test does not forgive
    return float(
        chisquare([users_by_variant[name] for name in shares], [part * n_users / total for part in expected]).pvalue
    )


_COLUMNS: Final = [c.SLICE, c.BUCKET, c.N_IMPRESSIONS, c.N_CLICKED, c.N_USERS, c.MEAN, c.LOW, c.HIGH]


def _slices(impressions: pd.DataFrame, confidence: float) -> Iterator[tuple[Any, ...]]:
    yield _row("all", "all", impressions, confidence)
    sources = impressions.assign(**{c.BUCKET: impressions[c.SOURCES].str.split(SOURCE_SEPARATOR, regex=False)})
    named = {
        "source": sources.explode(c.BUCKET).replace({c.BUCKET: ""}, "not said"),
        "generation": impressions.assign(**{c.BUCKET: impressions[c.GENERATION].map(_generation_name)}),
        "experiment/variant": impressions.assign(
            **{c.BUCKET: (impressions[c.EXPERIMENT] + "/" + impressions[c.VARIANT]).replace("/", "not said")}
        ),
    }
    for name, table in named.items():
        for bucket, part in table.groupby(c.BUCKET):
            yield _row(name, str(bucket), part, confidence)


def _generation_name(number: float) -> str:
    return "not said" if pd.isna(number) else str(int(number))


def _row(name: str, bucket: str, impressions: pd.DataFrame, confidence: float) -> tuple[Any, ...]:
    rate, low, high = click_through(impressions, confidence)
    n_clicked, n_users = int(impressions[c.CLICKED].sum()), impressions[c.USER_ID].nunique()
    return name, bucket, len(impressions), n_clicked, n_users, rate, low, high


def _users_by_variant(impressions: pd.DataFrame, experiment: Experiment) -> tuple[dict[str, int], int]:
    """Count the users in each variant of the experiment, and those who were shown another one than theirs."""
    of_it = impressions[impressions[c.EXPERIMENT] == experiment.name].drop_duplicates([c.USER_ID, c.VARIANT])
    counts = of_it.drop_duplicates(c.USER_ID)[c.VARIANT].value_counts()
    n_misdealt = sum(
        experiment.variant(user_id) != variant
        for user_id, variant in zip(of_it[c.USER_ID], of_it[c.VARIANT], strict=True)
    )
    return {name: int(counts.get(name, 0)) for name in experiment.shares}, n_misdealt

"""
The bundled sample: a small streaming library and a year of its audience, generated from a seed.

Each item has traits (category, theme, tone, and six hidden ones that its text does not show) and each user a taste for
them that drifts over the year. An event is drawn in proportion to ``exp(taste . traits + appeal + trend + context)``,
times a bonus for what follows the previous item: the next part of its series, then the same or the following theme.
All of it is kept as `Truth`, so that tests can ask whether a model found what was planted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from rec_pipeline.engine import columns as c
from rec_pipeline.engine.artifacts import read_table, write_table
from rec_pipeline.engine.data.files import write_checksums
from rec_pipeline.engine.data.sample_text import LAST_NAMES, PLACES, THEMES, TITLE_WORDS, TONES, Theme

SEED: Final = 20240210
N_USERS: Final = 1000
N_ITEMS: Final = 1500
START: Final = pd.Timestamp("2024-01-01", tz="UTC")
N_DAYS: Final = 366

CATEGORY_NAMES: Final = tuple(THEMES)
TONE_NAMES: Final = tuple(TONES)
ALL_THEMES: Final = tuple((category, theme) for category, themes in THEMES.items() for theme in themes)
N_HIDDEN: Final = 6
N_TRAITS: Final = len(CATEGORY_NAMES) + len(ALL_THEMES) + len(TONE_NAMES) + N_HIDDEN

DEVICES: Final = ("mobile", "tablet", "desktop", "tv")
LOCATIONS: Final = ("Berlin", "Lagos", "London", "Mumbai", "New York", "São Paulo", "Tokyo", "Toronto")
DAYPARTS: Final = ("night", "morning", "afternoon", "evening")
CONTEXTS: Final = {c.DEVICE: DEVICES, c.LOCATION: LOCATIONS, "daypart": DAYPARTS}
DEVICE_SHARES: Final = ((0.5, 0.2, 0.1, 0.2), (0.6, 0.1, 0.25, 0.05), (0.3, 0.15, 0.45, 0.1), (0.15, 0.15, 0.1, 0.6))
EVENT_TYPES: Final = ("started", "finished", "loved")

N_SERIES: Final = 70
N_COLD_ITEMS: Final = 75
N_UNAVAILABLE: Final = 45
N_COLD_USERS: Final = 60
N_LATE_USERS: Final = 40
MONTHS: Final = 12

NEXT_PART_SHARE: Final = 0.7
SAME_THEME_BONUS: Final = 2.0
NEXT_THEME_BONUS: Final = 5.0
REPEAT_FACTOR: Final = 0.002
UNSTARTED_SERIES_FACTOR: Final = 0.05

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Truth:
    """
    What was planted in a sample.

    Attributes
    ----------
    users
        One row a user: ``user_id``, ``kind`` (regular, cold: at most four events, late: starts in the last weeks),
        ``taste_start`` and ``taste_end`` (float32 lists over the traits; taste moves from one to the other meanwhile).
    items
        One row an item: ``item_id``, ``theme``, ``tone``, ``series`` and ``part`` (-1 and 0 outside a series), ``cold``
        (published in the last weeks), ``appeal`` (log popularity), ``traits`` (float32 list).
    contexts
        One row an effect: ``context`` (device, location or daypart), ``value``, ``category``, ``effect`` added to the
        log-odds of that category.
    themes
        One row a theme: ``theme``, ``category``, ``next_theme`` (the one that viewers turn to after it) and ``trend``,
        its twelve monthly additions to the log-odds.
    """

    users: pd.DataFrame
    items: pd.DataFrame
    contexts: pd.DataFrame
    themes: pd.DataFrame

    def affinity(self, share_of_year: float) -> Floats:
        """Return taste times traits, float64 of shape (n_users, n_items), at a point of the year in [0, 1]."""
        start, end = (np.stack(self.users[name].to_list()).astype(float) for name in ("taste_start", "taste_end"))
        traits = np.stack(self.items["traits"].to_list()).astype(float)
        return np.asarray((start + share_of_year * (end - start)) @ traits.T)


@dataclass(frozen=True)
class Sample:
    """
    A generated data set.

    Attributes
    ----------
    interactions
        ``user_id``, ``item_id``, ``timestamp``, ``event_type``, ``weight`` (1 started, 2 finished, 3 loved),
        ``device``, ``location``; in time order. Nearly 1 % repeat an earlier pair.
    items
        ``item_id``, ``title``, ``description``, ``categories`` ("|"-joined), ``available``, ``published_at``.
    truth
        What was planted.
    """

    interactions: pd.DataFrame
    items: pd.DataFrame
    truth: Truth

    def save(self, directory: Path) -> None:
        """Write two tables and four of truth, under 3 MB together."""
        for name in ("interactions", "items"):
            write_table(directory / f"{name}.parquet", getattr(self, name))
        for name in ("users", "items", "contexts", "themes"):
            write_table(directory / f"truth_{name}.parquet", getattr(self.truth, name))

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read what ``save`` wrote."""
        truth = {name: read_table(directory / f"truth_{name}.parquet") for name in Truth.__dataclass_fields__}
        return cls(
            interactions=read_table(directory / "interactions.parquet"),
            items=read_table(directory / "items.parquet"),
            truth=Truth(**truth),
        )


def generate_sample(seed: int = SEED) -> Sample:
    """
    Generate the sample; equal seeds give equal samples.

    Takes a few seconds. Nothing depends on the clock or on the machine's number of cores.
    """
    # A stream for each part, so that a change in one part leaves the others as they were.
    catalogue_rng, theme_rng, user_rng, event_rng = np.random.default_rng(seed).spawn(4)
    items, true_items = _make_items(catalogue_rng)
    themes, contexts = _make_themes(theme_rng), _make_contexts(theme_rng)
    true_users, habits = _make_users(user_rng)
    truth = Truth(users=true_users, items=true_items, contexts=contexts, themes=themes)
    return Sample(interactions=_make_interactions(items, truth, habits, event_rng), items=items, truth=truth)


def write_sample(directory: Path, seed: int = SEED) -> None:
    """Generate the sample into ``directory``, which is made if need be."""
    directory.mkdir(parents=True, exist_ok=True)
    generate_sample(seed).save(directory)
    write_checksums(directory)


def _make_items(rng: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the catalogue and its truth, row by row the same items."""
    series = np.full(N_ITEMS, -1)
    part = np.zeros(N_ITEMS, dtype=np.int64)
    lengths = rng.integers(3, 6, size=N_SERIES)
    series[: lengths.sum()] = np.repeat(np.arange(N_SERIES), lengths)
    part[: lengths.sum()] = np.concatenate([np.arange(1, length + 1) for length in lengths])
    # The first row of an item's series decides for all its parts; a single item decides for itself.
    leader = np.arange(N_ITEMS) - np.maximum(part - 1, 0)
    theme = rng.integers(len(ALL_THEMES), size=N_ITEMS)[leader]
    other_theme = rng.integers(len(ALL_THEMES), size=N_ITEMS)[leader]
    has_other = (rng.random(N_ITEMS) < 0.2)[leader] & (other_theme != theme)
    tone = rng.integers(len(TONE_NAMES), size=N_ITEMS)[leader]
    hidden = rng.normal(size=(N_ITEMS, N_HIDDEN))[leader]
    appeal = (0.9 * rng.standard_normal(N_ITEMS))[leader] - 0.1 * part

    released = np.where(rng.random(N_ITEMS) < 0.72, rng.integers(-900, 0, N_ITEMS), rng.integers(0, 320, N_ITEMS))
    released = released[leader] + 7 * np.maximum(part - 1, 0)
    cold = np.zeros(N_ITEMS, dtype=bool)
    cold[rng.choice(np.arange(lengths.sum(), N_ITEMS), N_COLD_ITEMS, replace=False)] = True
    released[cold] = rng.integers(335, N_DAYS, size=N_COLD_ITEMS)
    unavailable = rng.choice(np.flatnonzero(~cold), N_UNAVAILABLE, replace=False)

    category_of = np.array([CATEGORY_NAMES.index(category) for category, _ in ALL_THEMES])
    traits = np.zeros((N_ITEMS, N_TRAITS))
    rows = np.arange(N_ITEMS)
    n_categories, n_themes = len(CATEGORY_NAMES), len(ALL_THEMES)
    traits[rows[has_other], category_of[other_theme[has_other]]] = 0.5
    traits[rows, category_of[theme]] = 1
    traits[rows[has_other], n_categories + other_theme[has_other]] = 0.5
    traits[rows, n_categories + theme] = 1
    traits[rows, n_categories + n_themes + tone] = 1
    traits[:, -N_HIDDEN:] = hidden.round(2)

    titles, descriptions = _write_texts(theme, np.where(has_other, other_theme, -1), tone, series, part, rng)
    categories = [ALL_THEMES[first][0] for first in theme]
    for row in np.flatnonzero(has_other & (category_of[theme] != category_of[other_theme])):
        categories[row] += f"|{ALL_THEMES[other_theme[row]][0]}"
    order = rng.permutation(N_ITEMS)
    item_ids = np.empty(N_ITEMS, dtype=object)
    item_ids[order] = [f"i{number:04d}" for number in range(1, N_ITEMS + 1)]
    available = ~np.isin(rows, unavailable)
    items = pd.DataFrame(
        {
            c.ITEM_ID: pd.Series(item_ids, dtype="str"),
            c.TITLE: pd.Series(titles, dtype="str"),
            c.DESCRIPTION: pd.Series(descriptions, dtype="str"),
            c.CATEGORIES: pd.Series(categories, dtype="str"),
            c.AVAILABLE: available,
            c.PUBLISHED_AT: (START + pd.to_timedelta(released, unit="D")).as_unit("us"),
        }
    )
    truth = pd.DataFrame(
        {
            c.ITEM_ID: items[c.ITEM_ID],
            "theme": pd.Series([ALL_THEMES[row][1].name for row in theme], dtype="str"),
            "tone": pd.Series([TONE_NAMES[row] for row in tone], dtype="str"),
            "series": series,
            "part": part,
            "cold": cold,
            "appeal": appeal.round(3).astype(np.float32),
            "traits": list(traits.astype(np.float32)),
        }
    )
    return items.iloc[order].reset_index(drop=True), truth.iloc[order].reset_index(drop=True)


def _write_texts(
    theme: Ints, other_theme: Ints, tone: Ints, series: Ints, part: Ints, rng: np.random.Generator
) -> tuple[list[str], list[str]]:
    """Write a title and a description for each item; no two titles and no two descriptions are equal."""
    titles: list[str] = []
    descriptions: list[str] = []
    taken: set[str] = set()
    root = ""
    for row in range(len(theme)):
        own, tone_name = ALL_THEMES[theme[row]][1], TONE_NAMES[tone[row]]
        other = ALL_THEMES[other_theme[row]][1] if other_theme[row] >= 0 else None
        if part[row] <= 1:
            root = _unused(taken, _title, own, tone_name, rng)
        titles.append(f"{root}, Part {part[row]}" if series[row] >= 0 else root)
        descriptions.append(_unused(taken, _description, own, other, tone_name, rng))
    return titles, descriptions


def _unused(taken: set[str], compose: Callable[..., str], *arguments: Any) -> str:
    """Compose until the text is a new one, and remember it."""
    while (text := compose(*arguments)) in taken:
        pass
    taken.add(text)
    return text


def _pick(rng: np.random.Generator, phrases: Sequence[str]) -> str:
    return phrases[int(rng.integers(len(phrases)))]


def _title(theme: Theme, tone: str, rng: np.random.Generator) -> str:
    noun, word = _pick(rng, theme.nouns), _pick(rng, TITLE_WORDS[tone])
    place, name = _pick(rng, PLACES), _pick(rng, LAST_NAMES)
    forms = (
        f"The {word} {noun}",
        f"The {noun} of {place}",
        f"{place}: {noun}",
        f"The {name} {noun}",
        f"{noun}, {place}",
    )
    return _pick(rng, forms)


def _description(theme: Theme, other: Theme | None, tone: str, rng: np.random.Generator) -> str:
    place, lead, pursuit = _pick(rng, PLACES), _pick(rng, theme.leads), _pick(rng, theme.pursuits)
    story = _pick(rng, (f"In {place}, {lead} {pursuit}.", f"{lead[0].upper()}{lead[1:]} in {place} {pursuit}."))
    detail, mood = _pick(rng, theme.details), _pick(rng, TONES[tone])
    aside = f" {_pick(rng, other.details)}" if other else ""
    return _pick(
        rng, (f"{story} {detail}{aside} {mood}", f"{detail} {story}{aside} {mood}", f"{mood} {story} {detail}{aside}")
    )


def _make_themes(rng: np.random.Generator) -> pd.DataFrame:
    """Return a cycle through all themes, and a smooth wave over the year for each."""
    n_themes = len(ALL_THEMES)
    cycle = rng.permutation(n_themes)
    following = np.empty(n_themes, dtype=np.int64)
    following[cycle] = np.roll(cycle, -1)
    phase, size = rng.uniform(0, 2 * np.pi, n_themes), rng.uniform(0.1, 0.7, n_themes)
    trend = size[:, None] * np.sin(2 * np.pi * np.arange(MONTHS) / MONTHS + phase[:, None])
    names = [theme.name for _, theme in ALL_THEMES]
    return pd.DataFrame(
        {
            "theme": pd.Series(names, dtype="str"),
            "category": pd.Series([category for category, _ in ALL_THEMES], dtype="str"),
            "next_theme": pd.Series([names[row] for row in following], dtype="str"),
            "trend": list(trend.round(3).astype(np.float32)),
        }
    )


def _make_contexts(rng: np.random.Generator) -> pd.DataFrame:
    """Return the effect of each context value on each category."""
    values = [(context, value) for context, known in CONTEXTS.items() for value in known]
    effect = rng.normal(scale=0.6, size=(len(values), len(CATEGORY_NAMES))).round(3).ravel()
    rows = [(context, value, category) for context, value in values for category in CATEGORY_NAMES]
    return pd.DataFrame(rows, columns=["context", "value", "category"]).assign(effect=effect.astype(np.float32))


def _make_users(rng: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the users' truth and their habits: number of events, days of activity, home city, favourite daypart."""
    n_categories, n_themes, n_tones = len(CATEGORY_NAMES), len(ALL_THEMES), len(TONE_NAMES)
    theme_category = np.array([CATEGORY_NAMES.index(category) for category, _ in ALL_THEMES])

    def favourites(n: int) -> Floats:
        """Add ``n`` favourite themes a user, and with each its category."""
        taste = np.zeros((N_USERS, N_TRAITS))
        rows = np.arange(N_USERS)
        for _ in range(n):
            liked = rng.integers(n_themes, size=N_USERS)
            taste[rows, theme_category[liked]] += rng.uniform(0.5, 1.2, N_USERS)
            taste[rows, n_categories + liked] += rng.uniform(1.5, 2.5, N_USERS)
        return taste

    steady, early, late = favourites(3), favourites(1), favourites(1)
    steady[:, n_categories + n_themes : -N_HIDDEN] = rng.normal(scale=0.7, size=(N_USERS, n_tones))
    steady[:, -N_HIDDEN:] = rng.normal(scale=0.55, size=(N_USERS, N_HIDDEN))

    kind = np.full(N_USERS, "regular", dtype=object)
    unusual = rng.choice(N_USERS, N_COLD_USERS + N_LATE_USERS, replace=False)
    kind[unusual[:N_COLD_USERS]], kind[unusual[N_COLD_USERS:]] = "cold", "late"
    n_events = np.clip(rng.lognormal(4.15, 0.75, N_USERS), 8, 450).astype(np.int64)
    n_events[kind == "cold"] = rng.integers(1, 5, N_COLD_USERS)
    n_events[kind == "late"] = rng.integers(3, 25, N_LATE_USERS)
    first_day = np.where(rng.random(N_USERS) < 0.7, 0, rng.integers(0, 280, N_USERS))
    first_day[kind == "cold"] = rng.integers(0, 350, N_COLD_USERS)
    first_day[kind == "late"] = rng.integers(335, 360, N_LATE_USERS)

    truth = pd.DataFrame(
        {
            c.USER_ID: pd.Series([f"u{number:04d}" for number in range(1, N_USERS + 1)], dtype="str"),
            "kind": pd.Series(kind, dtype="str"),
            "taste_start": list((steady + early).round(2).astype(np.float32)),
            "taste_end": list((steady + late).round(2).astype(np.float32)),
        }
    )
    habits = pd.DataFrame(
        {
            "n_events": n_events,
            "first_day": first_day,
            "home": rng.integers(len(LOCATIONS), size=N_USERS),
            "daypart": rng.choice(len(DAYPARTS), size=N_USERS, p=[0.1, 0.2, 0.25, 0.45]),
        }
    )
    return truth, habits


def _make_interactions(
    items: pd.DataFrame, truth: Truth, habits: pd.DataFrame, rng: np.random.Generator
) -> pd.DataFrame:
    """Simulate every user's sessions, one after the other, and return the events in time order."""
    theme_names = truth.themes["theme"].tolist()
    item_theme = truth.items["theme"].map(theme_names.index).to_numpy()
    next_theme = truth.themes["next_theme"].map(theme_names.index).to_numpy()
    item_category = truth.themes["category"].map(CATEGORY_NAMES.index).to_numpy()[item_theme]
    trend = np.stack(truth.themes["trend"].to_list()).astype(float)[item_theme]  # (n_items, months)
    effect = truth.contexts["effect"].to_numpy(dtype=float).reshape(-1, len(CATEGORY_NAMES))
    device_effect, location_effect, daypart_effect = np.split(effect, [len(DEVICES), len(DEVICES) + len(LOCATIONS)])
    appeal = truth.items["appeal"].to_numpy(dtype=float)
    released = ((items[c.PUBLISHED_AT] - START) / pd.Timedelta(days=1)).to_numpy()
    # Withdrawn at a moment of the year: it has a past, and no future.
    withdrawn = np.where(items[c.AVAILABLE], np.inf, rng.uniform(60, N_DAYS, len(items)))
    part = truth.items["part"].to_numpy()
    by_part = pd.Series(np.arange(len(items)), index=pd.MultiIndex.from_frame(truth.items[["series", "part"]]))
    by_part = by_part[part > 0]
    wanted = pd.MultiIndex.from_arrays([truth.items["series"], part + 1])
    next_part = np.where(part > 0, by_part.reindex(wanted).fillna(-1).to_numpy(), -1).astype(np.int64)
    affinity = [truth.affinity((month + 0.5) / MONTHS) for month in range(MONTHS)]

    columns: dict[str, list[Any]] = {name: [] for name in ("user", "item", "day", "device", "location", "liking")}
    habit_rows = habits[["n_events", "first_day", "home", "daypart"]].to_numpy().tolist()
    for user, (n_left, first_day, home, favourite) in enumerate(habit_rows):
        factor = np.where(part > 1, UNSTARTED_SERIES_FACTOR, 1.0)
        mean_affinity = affinity[0][user].mean()
        for day in _session_days(first_day, n_left, rng):
            daypart = favourite if rng.random() < 0.6 else int(rng.integers(len(DAYPARTS)))
            device = int(rng.choice(len(DEVICES), p=DEVICE_SHARES[daypart]))
            location = home if rng.random() < 0.85 else int(rng.integers(len(LOCATIONS)))
            context = device_effect[device] + location_effect[location] + daypart_effect[daypart]
            moment = day + (6 * daypart + rng.uniform(0, 5.5)) / 24
            month = min(int(moment * MONTHS / N_DAYS), MONTHS - 1)
            log_odds = affinity[month][user] + appeal + trend[:, month] + context[item_category]
            odds = np.exp(log_odds) * ((released <= moment) & (moment < withdrawn))
            previous = -1
            for _ in range(min(n_left, 1 + int(rng.poisson(3)))):
                item = _next_item(previous, odds * factor, next_part, item_theme, next_theme, rng)
                columns["user"].append(user)
                columns["item"].append(item)
                columns["day"].append(moment)
                columns["device"].append(device)
                columns["location"].append(location)
                columns["liking"].append(affinity[month][user, item] - mean_affinity)
                factor[item] = REPEAT_FACTOR
                if next_part[item] >= 0 and factor[next_part[item]] == UNSTARTED_SERIES_FACTOR:
                    factor[next_part[item]] = 1.0
                previous = item
                n_left -= 1
                moment += (3 + rng.exponential(12)) / (24 * 60)
            if n_left == 0:
                break
    table = pd.DataFrame(columns)
    mood = table["liking"].to_numpy() + rng.normal(scale=1.5, size=len(table))
    event = np.digitize(mood, [1.5, 5.0])
    frame = pd.DataFrame(
        {
            c.USER_ID: truth.users[c.USER_ID].to_numpy()[table["user"]],
            c.ITEM_ID: items[c.ITEM_ID].to_numpy()[table["item"]],
            c.TIMESTAMP: (START + pd.to_timedelta((table["day"] * 86_400).astype("int64"), unit="s")).dt.as_unit("us"),
            c.EVENT_TYPE: np.array(EVENT_TYPES, dtype=object)[event],
            c.WEIGHT: (event + 1).astype(np.float32),
            c.DEVICE: np.array(DEVICES, dtype=object)[table["device"]],
            c.LOCATION: np.array(LOCATIONS, dtype=object)[table["location"]],
        }
    )
    text = [c.USER_ID, c.ITEM_ID, c.EVENT_TYPE, c.DEVICE, c.LOCATION]
    frame = frame.astype(dict.fromkeys(text, "str"))
    within = frame[c.TIMESTAMP] < START + pd.Timedelta(days=N_DAYS)
    return frame[within].sort_values([c.TIMESTAMP, c.USER_ID], kind="stable", ignore_index=True)


def _session_days(first_day: int, n_events: int, rng: np.random.Generator) -> Ints:
    """Return the days of enough sessions for ``n_events`` events, in order, weekends preferred."""
    days = np.arange(first_day, N_DAYS)
    likelihood = np.where((START.day_of_week + days) % 7 >= 5, 1.5, 1.0)
    return np.sort(rng.choice(days, size=n_events, p=likelihood / likelihood.sum()))[:: 1 if n_events < 4 else 4]


def _next_item(
    previous: int, odds: Floats, next_part: Ints, item_theme: Ints, next_theme: Ints, rng: np.random.Generator
) -> int:
    """Draw the item that follows ``previous`` (-1: none) in a session."""
    if previous >= 0:
        successor = int(next_part[previous])
        if successor >= 0 and odds[successor] > 0 and rng.random() < NEXT_PART_SHARE:
            return successor
        theme = item_theme[previous]
        odds = odds * np.where(item_theme == theme, SAME_THEME_BONUS, 1.0)
        odds = odds * np.where(item_theme == next_theme[theme], NEXT_THEME_BONUS, 1.0)
    cumulated = np.cumsum(odds)
    return int(np.searchsorted(cumulated, rng.random() * cumulated[-1], side="right"))

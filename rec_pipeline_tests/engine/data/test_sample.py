from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from rec_pipeline.engine import columns as c
from rec_pipeline.engine.data.sample import (
    CATEGORY_NAMES,
    DEVICES,
    LOCATIONS,
    N_COLD_ITEMS,
    N_UNAVAILABLE,
    NEXT_PART_SHARE,
    START,
    Sample,
    Truth,
    generate_sample,
    write_sample,
)
from rec_pipeline.engine.data.source import SAMPLE_DIRECTORY

pytestmark = pytest.mark.filterwarnings(
    "ignore:Series.values returning an ndarray that drops timezone"  # pyarrow 25 asks pandas 3.1 for it when writing
)


@pytest.fixture(scope="module")
def committed() -> Sample:
    return Sample.load(SAMPLE_DIRECTORY)


@pytest.fixture(scope="module")
def events(committed: Sample) -> pd.DataFrame:
    """Interactions with the truth of their item and the previous item of the session beside them."""
    truth = committed.truth.items.merge(committed.truth.themes[["theme", "next_theme", "category"]], on="theme")
    events = committed.interactions.merge(truth, on=c.ITEM_ID).sort_values([c.USER_ID, c.TIMESTAMP], kind="stable")
    for name in ("series", "part", "theme", "next_theme", c.ITEM_ID):
        events[f"previous_{name}"] = events.groupby(c.USER_ID)[name].shift()
    gap = events.groupby(c.USER_ID)[c.TIMESTAMP].diff()
    return events.assign(follows=gap < pd.Timedelta(minutes=40))


def test_generator_gives_what_is_committed(committed: Sample) -> None:
    generated = generate_sample()

    for name in ("interactions", "items"):
        pd.testing.assert_frame_equal(getattr(generated, name), getattr(committed, name))
    for name in Truth.__dataclass_fields__:
        pd.testing.assert_frame_equal(getattr(generated.truth, name), getattr(committed.truth, name))


def test_another_seed_gives_another_sample_and_save_and_load_keep_it(committed: Sample, tmp_path: Path) -> None:
    write_sample(tmp_path / "sample", seed=1)

    other = Sample.load(tmp_path / "sample")
    assert not other.items[c.DESCRIPTION].equals(committed.items[c.DESCRIPTION])
    assert len(other.interactions) > 50_000


def test_sample_is_small_enough_to_commit() -> None:
    assert sum(path.stat().st_size for path in SAMPLE_DIRECTORY.iterdir()) < 3_000_000


def test_sample_has_the_promised_size(committed: Sample) -> None:
    interactions, items = committed.interactions, committed.items

    assert interactions[c.USER_ID].nunique() == 1000
    assert len(items) == 1500
    assert 60_000 <= len(interactions) <= 100_000
    assert interactions[c.TIMESTAMP].is_monotonic_increasing
    assert interactions[c.TIMESTAMP].min() >= START
    assert interactions[c.TIMESTAMP].max() < START + pd.DateOffset(years=1)


def test_no_two_items_share_a_title_or_a_description(committed: Sample) -> None:
    assert committed.items[c.ITEM_ID].is_unique
    assert committed.items[c.TITLE].is_unique
    assert committed.items[c.DESCRIPTION].is_unique
    assert committed.items[c.DESCRIPTION].str.len().between(100, 450).all()


def test_text_carries_the_theme(committed: Sample) -> None:
    truth = committed.truth.items
    words = committed.items[c.DESCRIPTION].str.lower().str.findall(r"[a-z]{5,}").map(set)
    rows = np.random.default_rng(0).choice(len(words), size=(4000, 2))
    overlap = np.array([len(words[left] & words[right]) for left, right in rows])
    same = truth["theme"].to_numpy()[rows[:, 0]] == truth["theme"].to_numpy()[rows[:, 1]]

    assert overlap[same & (rows[:, 0] != rows[:, 1])].mean() > 3 * overlap[~same].mean()


def test_popularity_is_skewed(committed: Sample) -> None:
    counts = committed.interactions[c.ITEM_ID].value_counts()

    assert counts.head(150).sum() > 2 * counts.iloc[-750:].sum() * 150 / 750 * 2


def test_items_are_used_only_while_they_are_there(committed: Sample) -> None:
    joined = committed.interactions.merge(committed.items, on=c.ITEM_ID)

    assert (joined[c.TIMESTAMP] >= joined[c.PUBLISHED_AT]).all()
    assert (~committed.items[c.AVAILABLE]).sum() == N_UNAVAILABLE


def test_cold_items_come_late_and_have_few_interactions_or_none(committed: Sample) -> None:
    cold = committed.truth.items.loc[committed.truth.items["cold"], c.ITEM_ID]
    counts = committed.interactions[c.ITEM_ID].value_counts().reindex(cold, fill_value=0)

    assert len(cold) == N_COLD_ITEMS
    assert (counts == 0).any()
    assert counts.median() <= 10


def test_cold_users_have_few_interactions_and_late_users_start_in_december(committed: Sample) -> None:
    joined = committed.interactions.merge(committed.truth.users[[c.USER_ID, "kind"]], on=c.USER_ID)
    per_user = joined.groupby(["kind", c.USER_ID])[c.TIMESTAMP].agg(["size", "min"])

    assert per_user.loc["cold", "size"].max() <= 4
    assert per_user.loc["late", "min"].min() >= pd.Timestamp("2024-12-01", tz="UTC")
    assert per_user.loc["regular", "size"].median() > 50


def test_most_users_of_the_last_tenth_were_there_before(committed: Sample) -> None:
    interactions = committed.interactions
    n_before = int(0.9 * len(interactions))
    tested = set(interactions[c.USER_ID][n_before:])

    assert len(tested & set(interactions[c.USER_ID][:n_before])) > 0.9 * len(tested)
    assert len(tested) > 500


def test_next_part_follows_a_part(events: pd.DataFrame) -> None:
    continuable = events[events["follows"] & (events["previous_series"] >= 0)]
    continues = (continuable["series"] == continuable["previous_series"]) & (
        continuable["part"] == continuable["previous_part"] + 1
    )
    has_next = continuable["previous_part"] < continuable.groupby("previous_series")["previous_part"].transform("max")

    assert abs(continues[has_next].mean() - NEXT_PART_SHARE) < 0.15


def test_following_theme_is_turned_to_more_often_than_by_chance(events: pd.DataFrame) -> None:
    within = events[events["follows"]]
    by_chance = 1 / events["theme"].nunique()

    assert (within["theme"] == within["previous_next_theme"]).mean() > 2 * by_chance


def test_each_context_moves_categories_as_planted(committed: Sample, events: pd.DataFrame) -> None:
    effects = committed.truth.contexts.pivot_table(index=["context", "value"], columns="category", values="effect")
    for context, values in ((c.DEVICE, DEVICES), (c.LOCATION, LOCATIONS)):
        counts = pd.crosstab(events[context], events["category"]).loc[list(values), list(CATEGORY_NAMES)]
        seen = np.log(counts.div(counts.sum(axis=1), axis=0)) - np.log(counts.sum() / counts.to_numpy().sum())
        planted = effects.loc[context].loc[list(values), list(CATEGORY_NAMES)]

        correlation = np.corrcoef(seen.to_numpy().ravel(), (planted - planted.mean()).to_numpy().ravel())[0, 1]
        assert correlation > 0.5, context


def test_taste_drifts(committed: Sample, events: pd.DataFrame) -> None:
    """In winter the taste of the end explains what is chosen better than that of the beginning, and conversely."""
    users = {user: row for row, user in enumerate(committed.truth.users[c.USER_ID])}
    items = {item: row for row, item in enumerate(committed.truth.items[c.ITEM_ID])}
    early, late = committed.truth.affinity(0), committed.truth.affinity(1)
    rows, cols = events[c.USER_ID].map(users).to_numpy(), events[c.ITEM_ID].map(items).to_numpy()
    gain = (late - late.mean(axis=1, keepdims=True)) - (early - early.mean(axis=1, keepdims=True))
    month = events[c.TIMESTAMP].dt.month

    assert gain[rows, cols][month >= 11].mean() > 0.1
    assert gain[rows, cols][month <= 2].mean() < -0.1


def test_personal_taste_is_learnable_beyond_popularity(committed: Sample) -> None:
    """Item-kNN, in four lines, hits what is withheld more often than the most popular items do."""
    first = committed.interactions.drop_duplicates([c.USER_ID, c.ITEM_ID])
    rows, cols = (pd.factorize(first[name], sort=True)[0] for name in (c.USER_ID, c.ITEM_ID))
    n_train = int(0.9 * len(first))
    shape = (rows.max() + 1, cols.max() + 1)
    train = sp.csr_matrix((np.ones(n_train), (rows[:n_train], cols[:n_train])), shape=shape)
    test = sp.csr_matrix((np.ones(len(first) - n_train), (rows[n_train:], cols[n_train:])), shape=shape).toarray() > 0
    popularity = np.asarray(train.sum(axis=0)).ravel()
    cosine = (train.T @ train).toarray() / np.sqrt(np.outer(popularity, popularity) + 1e-9)
    np.fill_diagonal(cosine, 0)

    def hit_rate(score: np.ndarray) -> float:
        top = np.argsort(-np.where(train.toarray() > 0, -np.inf, score), axis=1)[:, :10]
        return float(np.take_along_axis(test, top, axis=1).any(axis=1)[test.any(axis=1)].mean())

    assert hit_rate(train @ cosine) > 1.4 * hit_rate(np.tile(popularity, (shape[0], 1)))

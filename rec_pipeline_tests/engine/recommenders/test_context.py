from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rec_pipeline.engine.data.batches import Ranking
from rec_pipeline.engine.data.id_map import IdMap
from rec_pipeline.engine.data.sample import Sample
from rec_pipeline.engine.data.source import SAMPLE_DIRECTORY
from rec_pipeline.engine.recommenders import context
from rec_pipeline.engine.recommenders.context import ContextLifts
from rec_pipeline.engine.recommenders.filters import ItemFacts

DAYPART_OF_BUCKET = {"00-05": "night", "06-11": "morning", "12-17": "afternoon", "18-23": "evening"}


@pytest.fixture(scope="module")
def sample() -> Sample:
    return Sample.load(SAMPLE_DIRECTORY)


@pytest.fixture(scope="module")
def facts(sample: Sample) -> ItemFacts:
    return ItemFacts.of(sample.items)


def fit(sample: Sample, facts: ItemFacts, events: pd.DataFrame) -> ContextLifts:
    items = IdMap(sample.items["item_id"].to_numpy(dtype=object))
    return ContextLifts.fit(events, items.to_idx(events["item_id"]), facts.in_category)


def test_the_planted_effects_of_the_sample_are_found(sample: Sample, facts: ItemFacts) -> None:
    lifts = fit(sample, facts, sample.interactions)

    planted = sample.truth.contexts.set_index(["context", "value", "category"])["effect"]
    found, expected = [], []
    start = 0
    for name, values in lifts.known.items():
        for row, value in enumerate(values):
            key = ("daypart", DAYPART_OF_BUCKET[value]) if name == "time" else (name, value)
            found.append(lifts.lift[start + row])
            expected.append([planted[(*key, category)] for category in facts.categories])
        start += len(values)
    found_, expected_ = np.array(found), np.array(expected)
    expected_ -= expected_.mean(axis=1, keepdims=True)  # what lifts every category lifts none
    assert found_.shape == expected_.shape == (16, len(facts.categories))
    assert np.corrcoef(found_.ravel(), expected_.ravel())[0, 1] > 0.7


def test_events_looked_at_a_few_at_a_time_teach_the_same(
    sample: Sample, facts: ItemFacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = sample.interactions.head(2000)
    at_once = fit(sample, facts, events)

    monkeypatch.setattr(context, "PART_ROWS", 300)
    in_parts = fit(sample, facts, events)

    assert in_parts.known == at_once.known
    np.testing.assert_allclose(in_parts.lift, at_once.lift, atol=1e-6)


def test_context_foresees_later_events_of_the_sample_better_than_none(sample: Sample, facts: ItemFacts) -> None:
    cut = int(0.8 * len(sample.interactions))
    lifts = fit(sample, facts, sample.interactions.iloc[:cut])
    later = sample.interactions.iloc[cut:].sample(600, random_state=0)
    items = IdMap(sample.items["item_id"].to_numpy(dtype=object))
    counts = np.bincount(items.to_idx(sample.interactions["item_id"].iloc[:cut]), minlength=len(items)) + 1.0
    everything = np.arange(len(items))[np.argsort(-counts, kind="stable")][None, :]
    given = Ranking(everything, np.sort(counts)[::-1][None, :].astype(np.float32))

    gains, reciprocal_ranks = [], []
    for event in later.itertuples():
        context = {"time": event.timestamp.isoformat(), "device": event.device, "location": event.location}
        target = items.to_idx([event.item_id])[0]
        ranked = everything[0, np.argsort(-lifts.lifted(given, context)[0], kind="stable")]
        before, after = (1 / (1 + int(np.argmax(rows == target))) for rows in (everything[0], ranked))
        gains.append(after - before)
        reciprocal_ranks.append(before)

    assert np.mean(gains) > 2 * np.std(gains) / np.sqrt(len(gains))
    assert np.mean(gains) > 0.05 * np.mean(reciprocal_ranks)


def test_unknown_values_change_nothing_and_share_a_bucket(sample: Sample, facts: ItemFacts) -> None:
    lifts = fit(sample, facts, sample.interactions)
    given = Ranking(np.array([[3, 1, -1]]), np.float32([[0.9, 0.5, -np.inf]]))

    unknown = {"time": "soon", "device": "fridge", "location": "Atlantis", "mood": "good"}
    np.testing.assert_array_equal(lifts.lifted(given, unknown), given.score)
    assert lifts.bucket(unknown) == lifts.bucket({}) == ""
    assert lifts.bucket({**unknown, "device": "tv"}) == "-/tv/-"
    known = {"time": "2024-02-10T15:30:00", "device": "mobile", "location": "New York"}
    assert lifts.bucket(known) == lifts.bucket({**known, "time": "2024-03-01T12:00:00"}) == "12-17/mobile/New York"
    changed = lifts.lifted(given, known)
    assert (changed[0, :2] != given.score[0, :2]).all()
    assert np.isneginf(changed[0, 2])


def test_a_value_seen_seldom_changes_little(sample: Sample, facts: ItemFacts) -> None:
    events = sample.interactions.assign(device="")
    events.loc[events.index[:2], "device"] = "watch"

    lifts = fit(sample, facts, events)

    assert lifts.known["device"] == ("watch",)
    assert np.abs(lifts.item_lifts({"device": "watch"})).max() < 0.15


def test_events_without_context_and_items_without_category_give_no_lift() -> None:
    events = pd.DataFrame({"timestamp": pd.to_datetime(["2024-01-01T01:00:00Z"] * 3)})
    nothing = ItemFacts.of(pd.DataFrame({"item_id": ["a", "b"]}))

    lifts = ContextLifts.fit(events, np.array([0, 1, 0]), nothing.in_category)

    assert list(lifts.known) == ["time"]
    assert (lifts.item_lifts({"time": "2024-01-01T02:00:00"}) == 0).all()


def test_lifts_come_back_from_disk(sample: Sample, facts: ItemFacts, tmp_path: Path) -> None:
    lifts = fit(sample, facts, sample.interactions)

    lifts.save(tmp_path)

    found = ContextLifts.load(tmp_path)
    context = {"device": "tv", "location": "Tokyo", "time": "2024-01-01T20:00"}
    assert found.known == lifts.known
    np.testing.assert_allclose(found.item_lifts(context), lifts.item_lifts(context))

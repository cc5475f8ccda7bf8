from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from rec_pipeline.engine.data.batches import Ranking
from rec_pipeline.engine.data.split import InteractionSplit
from rec_pipeline.engine.errors import ConfigurationError
from rec_pipeline.engine.models.popularity import PopularityModel
from rec_pipeline.engine.recommenders import tuning
from rec_pipeline.engine.recommenders.fusion import reciprocal_rank
from rec_pipeline.engine.recommenders.merge_table import MergeTable, weights_of
from rec_pipeline.engine.recommenders.params import FusionMethod, HybridParams
from rec_pipeline.engine.recommenders.tuning import (
    EVERYBODY,
    FusionWeights,
    fit_trending,
    tune_fusion,
)
from rec_pipeline.engine.recommenders.validation import FittedTwice, ValidationRanking, WindowRanking
from rec_pipeline_tests.engine.recommenders.planted import id_map, ranking
from rec_pipeline_tests.fixtures.split import split_of

N_USERS, N_ITEMS = 80, 40


def interactions(rows: list[tuple[int, int]], first_day: str) -> pd.DataFrame:
    users, items = np.array(rows, dtype=np.int64).reshape(-1, 2).T
    times = pd.date_range(first_day, periods=len(users), freq="min", tz="UTC").as_unit("us")
    return pd.DataFrame({"user_idx": users, "item_idx": items, "timestamp": times, "weight": np.float32(1)})


@pytest.fixture
def split() -> InteractionSplit:
    """Odd users have six known items, even ones a single item; each takes the item of its own number next."""
    known = [(user, 30 + item) for user in range(N_USERS) for item in range(6 if user % 2 else 1)]
    taken = [(user, user % 30) for user in range(N_USERS)]
    return split_of(
        train=interactions(known, "2024-01-01"),
        validation=interactions(taken, "2024-02-01"),
        test=interactions(taken[:1], "2024-03-01"),
        users=id_map(N_USERS, "u"),
        items=id_map(N_ITEMS),
        strategy="leave_last_out",  # so that there are no earlier windows
        boundaries={},
    )


def source(knows: int, *, n_listed: int = 12) -> ValidationRanking:
    """Foresees what users take whose number is ``knows`` modulo 2, and nothing about the others."""
    lists = []
    for user in range(N_USERS):
        others = [(user + 7 * step) % 30 for step in range(1, n_listed)]
        lists.append([user % 30, *others] if user % 2 == knows else [*others, user % 30])
    return lists_for(np.arange(N_USERS), ranking(lists))


def lists_for(user_idx: np.ndarray, lists: Ranking) -> ValidationRanking:
    return ValidationRanking((WindowRanking(user_idx, lists),))


def test_segments_get_the_weights_of_the_source_that_knows_them(split: InteractionSplit) -> None:
    start = HybridParams(weights={"for_active": 0.5, "for_new": 0.5})

    tuned = tune_fusion({"for_active": source(1), "for_new": source(0)}, split, start)

    new, active = tuned.params.segment_weights["1-4"], tuned.params.segment_weights["5-19"]
    assert new["for_new"] > active["for_new"]
    assert active["for_active"] > new["for_active"]
    assert set(tuned.params.segment_weights) == {"1-4", "5-19"}
    assert (tuned.trials["after"] >= tuned.trials["before"]).all()


@pytest.mark.parametrize(("share_told", "is_used"), [(1.0, True), (0.5, False), (0.0, False)])
def test_context_is_used_where_validation_leaves_no_doubt_of_it(
    split: InteractionSplit, *, share_told: float, is_used: bool
) -> None:
    def timed(part: pd.DataFrame, share_told: float) -> pd.DataFrame:
        is_told = np.random.default_rng(0).random(len(part)) < share_told
        is_morning = (part["item_idx"] % 2 == 1) == is_told
        hours = np.where(is_morning, "2024-01-01T08:00:00", "2024-01-01T20:00:00")
        return part.assign(timestamp=pd.to_datetime(pd.Series(hours), utc=True))

    told = split.with_known(timed(split.train, 1.0), timed(split.validation, share_told))
    in_category = sp.csr_matrix(np.eye(2, dtype=bool)[np.arange(N_ITEMS) % 2])
    start = HybridParams(weights={"for_active": 0.5, "for_new": 0.5}, segment_bounds=[1])  # nobody's list is perfect

    tuned = tune_fusion({"for_active": source(1), "for_new": source(0)}, told, start, in_category=in_category)

    assert (tuned.params.context_strength > 0) == is_used
    row = tuned.trials.iloc[-1]
    assert row["segment"] == "in context"
    assert (row["after"] > row["before"]) == is_used


@pytest.mark.parametrize(("n_new_taken", "chosen"), [(80, 100), (0, 0)])
def test_new_items_get_as_many_places_as_validation_can_afford(
    split: InteractionSplit, n_new_taken: int, chosen: int
) -> None:
    """Everybody is offered ten known items and one new one behind; its place costs a hit unless it is taken itself."""
    old, new = list(range(10)), 20
    known = interactions([(user, item) for user in range(20) for item in range(30, 40)], "2024-01-01")
    popular = interactions([(user, item) for user in range(60, 80) for item in old], "2024-01-03")
    taken = interactions([(user, new if user < n_new_taken else 9) for user in range(60)], "2024-02-01")
    planted = split.with_known(pd.concat([known, popular], ignore_index=True), taken)
    lists = {
        "collaborative": lists_for(np.arange(60), ranking([old] * 60)),
        "content": lists_for(np.arange(60), ranking([[new, *range(21, 30)]] * 60)),
    }

    tuned = tune_fusion(lists, planted, HybridParams(weights={"collaborative": 0.95, "content": 0.05}))

    row = tuned.trials.iloc[-1]
    assert row["segment"] == "with new items"
    assert tuned.params.new_item_rank == chosen
    assert row["after"] >= row["before"]


def test_another_method_is_taken_only_beyond_doubt(split: InteractionSplit) -> None:
    """What is taken is first in a list or last: scores that fall evenly say so less well than ranks do."""
    evenly = {"for_active": source(1), "for_new": source(0)}
    worth = reciprocal_rank(np.arange(1, 13), 20).astype(np.float32)
    as_ranks = {
        name: lists_for(np.arange(N_USERS), replace(found.windows[0].ranking, score=np.tile(worth, (N_USERS, 1))))
        for name, found in evenly.items()
    }
    start = HybridParams(weights={"for_active": 0.5, "for_new": 0.5})

    assert tune_fusion(as_ranks, split, start).params.method is FusionMethod.SCORE
    assert tune_fusion(evenly, split, start).params.method is FusionMethod.RECIPROCAL_RANK


@pytest.mark.parametrize("seed", range(4))
def test_no_source_alone_is_better_where_it_was_tuned_on_many_users(
    split: InteractionSplit, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "ENOUGH_USERS", N_USERS)
    rng = np.random.default_rng(seed)
    names = ("for_active", "for_new")
    lists = {name: ranking([rng.permutation(30)[:20].tolist() for _ in range(N_USERS)]) for name in names}
    sources = {name: lists_for(np.arange(N_USERS), found) for name, found in lists.items()}

    tuned = tune_fusion(sources, split, HybridParams(weights=dict.fromkeys(names, 0.5)))

    everybody = tuned.trials[tuned.trials["segment"] == EVERYBODY].iloc[0]
    relevant = split.by_user.validation.user_item
    table = MergeTable.of(lists, relevant, FusionMethod.SCORE, 60, 100)
    alone = [table.ndcg(weights_of(names, coefficients)) for coefficients in np.eye(2)]
    assert everybody["method"] == "score"
    assert everybody["after"] >= max(alone)


def test_newcomers_have_no_say(split: InteractionSplit) -> None:
    """Their lists are the fallback's, so what they took says nothing about the weights."""
    is_known = split.train["user_idx"] % 2 == 1
    lists = {"for_active": source(1), "for_new": source(0)}
    start = HybridParams(weights={"for_active": 0.5, "for_new": 0.5})

    some = tune_fusion(lists, split.with_known(split.train[is_known], split.validation), start)
    nobody = tune_fusion(lists, split.with_known(split.train[:0], split.validation), start)

    assert some.params.weights["for_active"] > 0.9
    assert set(some.params.segment_weights) == {"5-19"}
    assert nobody.params.weights == start.weights


def test_any_set_of_sources_can_be_tuned_and_each_needs_a_start(split: InteractionSplit) -> None:
    alone = tune_fusion({"content": source(0)}, split)

    assert alone.params.weights == {"content": 1.0}
    with pytest.raises(ConfigurationError, match="unheard"):
        tune_fusion({"unheard": source(0)}, split)
    moved = lists_for(np.arange(1, N_USERS + 1), source(0).windows[0].ranking)
    with pytest.raises(ConfigurationError, match="different users"):
        tune_fusion({"content": source(0), "collaborative": moved}, split)


def test_tuned_weights_come_back_from_disk(split: InteractionSplit, tmp_path: Path) -> None:
    tuned = tune_fusion({"content": source(0), "collaborative": source(1)}, split)

    tuned.save(tmp_path)

    found = FusionWeights.load(tmp_path)
    assert found.params == tuned.params
    assert found.trials["segment"].tolist()[0] == EVERYBODY


def test_what_is_trending_forgets_as_fast_as_the_validation_part_asks_for(split: InteractionSplit) -> None:
    old = interactions([(user, 1) for user in range(60)], "2024-01-01")
    new = interactions([(user, 2) for user in range(60, 70)], "2024-01-20")
    taken = interactions([(user, 2) for user in range(70, 80)], "2024-02-01")
    changed = split.with_known(pd.concat([old, new], ignore_index=True), taken)

    model, lists = fit_trending(changed)

    assert lists.windows[0].ranking.item_idx[:, 0].tolist() == [2] * 10
    assert model.half_life_days < 15
    assert model.weight.argmax() == 2
    assert PopularityModel.fit(changed.by_user.fitting.user_item).n_interactions.argmax() == 1


def test_a_model_and_its_validation_lists_share_a_directory(split: InteractionSplit, tmp_path: Path) -> None:
    model, lists = fit_trending(split)

    FittedTwice(model, lists).save(tmp_path)

    assert np.array_equal(type(model).load(tmp_path).weight, model.weight)
    found = ValidationRanking.load(tmp_path)
    for read, written in zip(found.windows, lists.windows, strict=True):
        assert np.array_equal(read.user_idx, written.user_idx)
        assert np.array_equal(read.ranking.item_idx, written.ranking.item_idx)
        assert np.array_equal(read.ranking.score, written.ranking.score)

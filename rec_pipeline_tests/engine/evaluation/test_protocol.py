from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from rec_pipeline.engine.data.batches import BoolVector, Ranking, UserBatch
from rec_pipeline.engine.data.id_map import IdMap
from rec_pipeline.engine.data.split import InteractionSplit
from rec_pipeline.engine.evaluation.params import EvaluationParams
from rec_pipeline.engine.evaluation.protocol import evaluate_recommenders
from rec_pipeline.engine.evaluation.report import HELD_OUT
from rec_pipeline_tests.fixtures.split import split_of

PARAMS = EvaluationParams(cutoffs=[1, 2], compared_metrics=["ndcg@2", "recall@2"], n_resamples=200)


@dataclass
class Fixed:
    """Returns the same lists whatever is asked; users it has no list for get nothing."""

    name: str
    lists: Mapping[int, Sequence[int]]
    calls: list[tuple[list[int], list[list[int]], int]] = field(default_factory=list)
    recent: list[list[list[int]]] = field(default_factory=list)

    def recommend(self, users: UserBatch, top_k: int, *, eligible: BoolVector | None = None) -> Ranking:  # noqa: ARG002  # fixed
        histories = [users.history[row].indices.tolist() for row in range(len(users))]
        self.calls.append((users.user_idx.tolist(), histories, top_k))
        self.recent.append(users.recent.tolist())
        rows = [[*self.lists.get(int(user), [])[:top_k]] for user in users.user_idx]
        item_idx = np.array([[*row, *[-1] * (top_k - len(row))] for row in rows], dtype=np.int64)
        score = np.where(item_idx >= 0, -np.arange(top_k, dtype=np.float32), -np.inf).astype(np.float32)
        return Ranking(item_idx, score)


def part(pairs: Sequence[tuple[int, int]], day: int) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "user_idx": np.array([user for user, _ in pairs], dtype=np.int64),
            "item_idx": np.array([item for _, item in pairs], dtype=np.int64),
            "timestamp": pd.Series([pd.Timestamp(f"2024-01-{day:02d}", tz="UTC")] * len(pairs)),
            "weight": np.zeros(len(pairs), dtype=np.float32),  # an interaction may weigh nothing
        }
    )


@pytest.fixture
def split() -> InteractionSplit:
    """Four users, six items; user 2 has nothing held out, user 3 no history, item 5 is new."""
    return split_of(
        train=part([(0, 0), (0, 1), (1, 0), (2, 0)], day=1),
        validation=part([(1, 2)], day=2),
        test=part([(0, 2), (0, 3), (1, 5), (3, 0)], day=3),
        users=IdMap(np.array(["ann", "bo", "cy", "di"], dtype=object)),
        items=IdMap(np.array([f"item{i}" for i in range(6)], dtype=object)),
        strategy="time",
        boundaries={"test_from": "2024-01-03"},
    )


@pytest.fixture
def popularity() -> Fixed:
    return Fixed("popularity", {0: [2, 3], 1: [1, 3], 3: [0, 1]})


@pytest.fixture
def hybrid() -> Fixed:
    return Fixed("hybrid", {0: [4, 3], 3: [0, 2]})


def test_users_with_held_out_items_are_ranked_with_all_their_known_interactions(
    split: InteractionSplit, popularity: Fixed
) -> None:
    evaluate_recommenders([popularity], split, params=PARAMS)

    ((users, histories, top_k),) = popularity.calls
    assert popularity.recent == [[[0, 1], [0, 2], [-1, -1]]]
    assert users == [0, 1, 3]
    assert histories == [[0, 1], [0, 2], []]
    assert top_k == 2


def test_metrics_are_averaged_over_users_and_those_without_a_list_count_as_zero(
    split: InteractionSplit, popularity: Fixed, hybrid: Fixed
) -> None:
    report = evaluate_recommenders([popularity, hybrid], split, params=PARAMS)

    assert report.value("popularity", "recall@2") == pytest.approx((1 + 0 + 1) / 3)
    assert report.value("hybrid", "recall@2") == pytest.approx((1 / 2 + 0 + 1) / 3)
    assert report.value("hybrid", "precision@1") == pytest.approx((0 + 0 + 1) / 3)
    assert report.interval("hybrid", "recall@2").n_users == 3
    assert report.user_values("hybrid", "recall@2").tolist() == [1 / 2, 0, 1]


def test_list_metrics_leave_out_users_without_a_list(split: InteractionSplit, popularity: Fixed, hybrid: Fixed) -> None:
    report = evaluate_recommenders([popularity, hybrid], split, params=PARAMS)

    # Three users have a history; all of them know item 0, one item 1, one item 2, nobody the rest.
    bits = {0: 0.0, 1: 1.0, 2: 1.0, 3: 2.0, 4: 2.0, 5: 2.0}
    novelty = report.interval("hybrid", "novelty@2")
    assert novelty.mean == pytest.approx(((bits[4] + bits[3]) / 2 + (bits[0] + bits[2]) / 2) / 2)
    assert novelty.n_users == 2
    assert report.value("hybrid", "popularity_percentile@1") == pytest.approx((1.5 / 6 + 5.5 / 6) / 2)
    assert report.value("hybrid", "coverage@2") == pytest.approx(4 / 6)
    assert np.isnan(report.interval("hybrid", "coverage@2").low)


def test_diversity_is_reported_when_vectors_are_given(split: InteractionSplit, popularity: Fixed) -> None:
    vectors = np.eye(6, dtype=np.float32)
    vectors[3] = vectors[2]

    with_vectors = evaluate_recommenders([popularity], split, item_vectors=vectors, params=PARAMS)
    without = evaluate_recommenders([popularity], split, params=PARAMS)

    assert with_vectors.value("popularity", "diversity@2") == pytest.approx((0 + 1 + 1) / 3)
    assert "diversity@2" not in without.metrics


def test_batch_size_changes_no_value_and_progress_is_told(
    split: InteractionSplit, popularity: Fixed, hybrid: Fixed
) -> None:
    told: list[tuple[str, int, int]] = []

    whole = evaluate_recommenders([popularity, hybrid], split, params=PARAMS)
    by_one = evaluate_recommenders(
        [popularity, hybrid],
        split,
        params=PARAMS.model_copy(update={"batch_size": 1}),
        on_progress=lambda *progress: told.append(progress),
    )

    pd.testing.assert_frame_equal(whole.per_user, by_one.per_user)
    pd.testing.assert_frame_equal(whole.summary, by_one.summary)
    pd.testing.assert_frame_equal(whole.slices, by_one.slices)
    assert told == [(name, done, 3) for name in ("popularity", "hybrid") for done in (1, 2, 3)]


def test_slices_group_users_by_history_and_held_out_items_by_popularity(
    split: InteractionSplit, popularity: Fixed
) -> None:
    report = evaluate_recommenders([popularity], split, params=PARAMS)

    rows = report.slices[report.slices["metric"] == "recall@2"].set_index(["slice", "bucket"])
    means, n_users = rows["mean"].to_dict(), rows["n_users"].to_dict()
    assert {bucket: n for (name, bucket), n in n_users.items() if name == "user_activity"} == {
        "0": 1, "1-4": 2, "5-19": 0, "20+": 0
    }  # fmt: skip
    assert means["user_activity", "0"] == 1
    assert means["user_activity", "1-4"] == pytest.approx((1 + 0) / 2)
    assert np.isnan(means["user_activity", "20+"])
    # Nobody knows items 3 and 5: user 0 gets 3, user 1 does not get 5. Items 2 (user 0) and 0 (user 3) are known.
    assert means["item_popularity", "0"] == pytest.approx((1 + 0) / 2)
    assert means["item_popularity", "1-9"] == pytest.approx((1 + 1) / 2)
    assert n_users["item_popularity", "1-9"] == 2
    assert n_users["item_popularity", "10+"] == 0


def test_exposure_is_the_share_of_places_that_goes_to_the_most_popular(
    split: InteractionSplit, popularity: Fixed
) -> None:
    report = evaluate_recommenders([popularity], split, params=PARAMS)

    shares = report.exposure.set_index(["recommender", "top_percent"])["share"]
    # By users: item 0 first, then 1 and 2, then the unknown ones. Shown: 2, 3, 1, 3, 0, 1. Held out: 2, 3, 5, 0.
    assert shares["popularity", 1] == pytest.approx(1 / 6)
    assert shares["popularity", 50] == pytest.approx(4 / 6)
    assert shares["popularity", 100] == 1
    assert shares[HELD_OUT, 50] == pytest.approx(2 / 4)


def test_exposure_of_items_that_nobody_knows_is_a_number(split: InteractionSplit, popularity: Fixed) -> None:
    report = evaluate_recommenders([popularity], split, params=PARAMS)

    found = report.item_exposure.set_index(["recommender", "bucket"])
    # Items 3, 4 and 5 are unknown. Shown: 2, 3, 1, 3, 0, 1. Held out: 2, 3, 5, 0.
    assert found["share"]["popularity", "0"] == pytest.approx(2 / 6)
    assert found["share"]["popularity", "1-9"] == pytest.approx(4 / 6)
    assert found["share"][HELD_OUT, "0"] == pytest.approx(2 / 4)
    assert found["catalogue_share"]["popularity", "0"] == pytest.approx(3 / 6)


def test_data_says_what_was_counted(split: InteractionSplit, popularity: Fixed) -> None:
    eligible = np.array([True, True, True, True, False, False])

    data = evaluate_recommenders([popularity], split, eligible=eligible, params=PARAMS).data

    expected = {
        "n_train": 4, "n_validation": 1, "n_test": 4, "n_users": 4, "n_items": 6, "n_eligible_items": 4,
        "n_users_evaluated": 3, "n_users_without_history": 1, "n_held_out": 4, "n_held_out_new_items": 2,
        "n_held_out_not_eligible": 1, "n_test_already_known": 0,
    }  # fmt: skip
    assert expected.items() <= data.items()


def test_test_items_that_the_user_already_knew_are_not_held_out(split: InteractionSplit, popularity: Fixed) -> None:
    again = replace(split, test=part([(0, 0), (0, 2), (2, 0)], day=3))

    report = evaluate_recommenders([popularity], again, params=PARAMS)

    assert report.data["n_users_evaluated"] == 1
    assert report.data["n_test_already_known"] == 2
    assert report.value("popularity", "recall@1") == 1


def test_challenger_comes_first_in_every_comparison(split: InteractionSplit, popularity: Fixed, hybrid: Fixed) -> None:
    other = Fixed("ncf", hybrid.lists)

    report = evaluate_recommenders([popularity, other, hybrid], split, params=PARAMS)

    pairs = report.comparisons[report.comparisons["metric"] == "ndcg@2"]
    assert list(zip(pairs["first"], pairs["second"], strict=True)) == [
        ("hybrid", "popularity"), ("hybrid", "ncf"), ("popularity", "ncf")
    ]  # fmt: skip
    assert report.comparison("hybrid", "ncf").p == 1


@pytest.mark.parametrize(
    ("lists", "fault"),
    [
        ({0: [0, 3]}, "has seen"),
        ({1: [3, 3]}, "twice"),
        ({3: [5, 1]}, "not eligible"),
        ({0: [-1, 3]}, "after the end"),
    ],
)
def test_a_recommender_that_breaks_its_promise_is_named_with_the_user(
    split: InteractionSplit, lists: Mapping[int, Sequence[int]], fault: str
) -> None:
    eligible = np.array([True, True, True, True, True, False])

    with pytest.raises(ValueError, match=f"popularity returned.*{fault}.*user_idx {next(iter(lists))}"):
        evaluate_recommenders([Fixed("popularity", lists)], split, eligible=eligible, params=PARAMS)


def test_lists_of_another_length_are_refused(split: InteractionSplit) -> None:
    class Short(Fixed):
        def recommend(self, users: UserBatch, top_k: int, *, eligible: BoolVector | None = None) -> Ranking:
            return super().recommend(users, top_k - 1, eligible=eligible)

    with pytest.raises(ValueError, match="shape"):
        evaluate_recommenders([Short("popularity", {})], split, params=PARAMS)


def test_history_that_reaches_into_the_test_part_is_a_leak(split: InteractionSplit, popularity: Fixed) -> None:
    leaking = split.with_known(split.train, part([(1, 2)], day=3))

    with pytest.raises(ValueError, match="leak: history reaches 2024-01-03"):
        evaluate_recommenders([popularity], leaking, params=PARAMS)


def test_reports_without_baseline_or_with_equal_names_are_refused(
    split: InteractionSplit, popularity: Fixed, hybrid: Fixed
) -> None:
    for recommenders in ([hybrid], [popularity, popularity]):
        with pytest.raises(ValueError, match="different names, 'popularity' among them"):
            evaluate_recommenders(recommenders, split, params=PARAMS)


def test_nobody_to_evaluate_is_an_error(split: InteractionSplit, popularity: Fixed) -> None:
    empty = replace(split, test=split.test.iloc[:0])

    with pytest.raises(ValueError, match="no user has a held-out item"):
        evaluate_recommenders([popularity], empty, params=PARAMS)


@pytest.mark.parametrize(
    "wrong",
    [
        {"cutoffs": [10, 5]},
        {"cutoffs": [0, 10, 20]},
        {"cutoffs": []},
        {"compared_metrics": ["ndcg@7"]},
        {"compared_metrics": ["novelty@10"]},
        {"user_segments": [5, 5]},
        {"confidence": 1.0},
        {"cutoff": [10]},
    ],
)
def test_params_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        EvaluationParams.model_validate(wrong)


def test_segments_may_be_left_out(split: InteractionSplit, popularity: Fixed) -> None:
    params = PARAMS.model_copy(update={"user_segments": [], "item_segments": []})

    slices = evaluate_recommenders([popularity], split, params=params).slices

    assert slices["bucket"].unique().tolist() == ["all"]


def test_real_data_is_evaluated_on_every_user_of_the_last_period(shared_data: Callable[[str], object]) -> None:
    ratings = pd.read_csv(f"{shared_data('ml-latest-small')}/ratings.csv").sort_values("timestamp", kind="stable")
    users, items = IdMap.from_ids(ratings["userId"].astype(str)), IdMap.from_ids(ratings["movieId"].astype(str))
    events = pd.DataFrame(
        {
            "user_idx": users.to_idx(ratings["userId"].astype(str)),
            "item_idx": items.to_idx(ratings["movieId"].astype(str)),
            "timestamp": pd.to_datetime(ratings["timestamp"].to_numpy(), unit="s", utc=True),
            "weight": np.float32(1),
        }
    )
    cut = events["timestamp"].quantile(0.9)
    known, later = events[events["timestamp"] < cut], events[events["timestamp"] >= cut]
    rest = {"users": users, "items": items, "strategy": "time", "boundaries": {"test_from": cut.isoformat()}}
    split = split_of(known, known.iloc[:0], later, **rest)
    counts = np.bincount(known["item_idx"], minlength=len(items)).astype(np.float32)

    class Popularity:
        name = "popularity"

        def recommend(self, users: UserBatch, top_k: int, *, eligible: BoolVector | None = None) -> Ranking:  # noqa: ARG002  # all are
            return Ranking.from_scores(np.tile(counts, (len(users), 1)), top_k, excluded=users.history)

    report = evaluate_recommenders([Popularity()], split, params=EvaluationParams(n_resamples=200))

    assert report.data["n_users_evaluated"] == later["user_idx"].nunique()
    assert report.value("popularity", "hit_rate@10") > 0.5
    assert report.value("popularity", "popularity_percentile@10") > 0.99


def test_no_more_users_than_asked_for_are_drawn_at_random_and_the_report_says_so(
    split: InteractionSplit, popularity: Fixed
) -> None:
    everyone = evaluate_recommenders([popularity], split, params=PARAMS)
    some = evaluate_recommenders([popularity], split, params=PARAMS.model_copy(update={"max_users": 2}))

    values = dict(zip(everyone.per_user["user_id"], everyone.user_values("popularity", "recall@2"), strict=True))
    drawn = some.per_user["user_id"].tolist()
    assert len(drawn) == 2
    assert some.user_values("popularity", "recall@2").tolist() == [values[user] for user in drawn]
    assert "Evaluated are all 3 users" in everyone.to_markdown()
    assert "Evaluated are 2 users, drawn at random from the 3 with a held-out item" in some.to_markdown()

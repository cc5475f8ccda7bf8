from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from rec_pipeline.engine.data.batches import UserBatch
from rec_pipeline.engine.data.id_map import IdMap
from rec_pipeline.engine.data.split import InteractionSplit
from rec_pipeline.engine.evaluation.champion import champion_ranker, incomparable, provenance
from rec_pipeline.engine.evaluation.params import EvaluationParams
from rec_pipeline.engine.evaluation.protocol import evaluate_recommenders
from rec_pipeline.engine.evaluation.retrieval import distinct, retrieval_quality
from rec_pipeline.engine.models.item_knn import ItemKNNModel, ItemKNNParams
from rec_pipeline.engine.recommenders.bundle import ServingBundle
from rec_pipeline.engine.recommenders.line_up import ITEM_KNN, line_up
from rec_pipeline_tests.engine.recommenders.conftest import bundle
from rec_pipeline_tests.fixtures.split import split_of

__all__ = ["bundle"]

PARAMS = EvaluationParams(cutoffs=[5, 10], compared_metrics=["ndcg@10"], n_resamples=200)


@pytest.fixture(scope="module")
def split(bundle: ServingBundle) -> InteractionSplit:
    """What the planted bundle knows as history, and for each user one unseen item of the taste held out."""
    known = bundle.history.tocoo()
    users = np.arange(58)
    unseen = np.asarray(bundle.history[users].todense() == 0) & (users[:, None] % 2 == np.arange(40) % 2)
    unseen[:, 38:] = False

    def part(user_idx: np.ndarray, item_idx: np.ndarray, day: str) -> pd.DataFrame:
        return pd.DataFrame(
            {
                "user_idx": user_idx.astype(np.int64),
                "item_idx": item_idx.astype(np.int64),
                "timestamp": pd.Series([pd.Timestamp(day, tz="UTC")] * len(user_idx)),
                "weight": np.ones(len(user_idx), dtype=np.float32),
            }
        )

    return split_of(
        train=part(known.row[:-1], known.col[:-1], "2024-01-01"),
        validation=part(known.row[-1:], known.col[-1:], "2024-01-02"),
        test=part(users, unseen.argmax(axis=1), "2024-01-03"),
        users=bundle.users,
        items=bundle.items,
        strategy="time",
        boundaries={},
    )


def remembered(bundle: ServingBundle, until: str, version: str) -> ServingBundle:
    return replace(bundle, metadata={"fitted_until": until, "split_version": version})


def test_a_bundle_remembers_until_when_it_was_fitted(split: InteractionSplit) -> None:
    assert provenance(split, "v1") == {"fitted_until": "2024-01-02T00:00:00+00:00", "split_version": "v1"}


def test_only_a_model_that_cannot_know_the_test_part_is_compared(
    bundle: ServingBundle, split: InteractionSplit
) -> None:
    before, after = "2024-01-02T23:59:59.5+00:00", "2024-01-03T00:00:00+00:00"

    assert incomparable(remembered(bundle, before, "old"), split, "new") is None
    assert "the test part begins 2024-01-03" in str(incomparable(remembered(bundle, after, "old"), split, "new"))
    assert incomparable(remembered(bundle, after, "same"), split, "same") is None
    at_random = replace(split, strategy="random")
    assert "random split" in str(incomparable(remembered(bundle, before, "old"), at_random, "new"))


def test_a_model_of_another_catalogue_is_not_compared(bundle: ServingBundle, split: InteractionSplit) -> None:
    others = replace(split, items=IdMap(np.array([f"x{row}" for row in range(40)], dtype=object)))

    reason = incomparable(remembered(bundle, "2024-01-01T00:00:00+00:00", "old"), others, "new")

    assert reason == "it knows no item of this catalogue"


def test_the_same_model_as_champion_and_challenger_differs_by_nothing(
    bundle: ServingBundle, split: InteractionSplit
) -> None:
    recommenders = line_up(bundle, {ITEM_KNN: ItemKNNModel.fit(bundle.history, ItemKNNParams())})

    report = evaluate_recommenders(
        [*recommenders, champion_ranker(bundle, split)], split, params=PARAMS, notes={"champion": "It takes part."}
    )

    assert {"popularity", "hybrid", "item_knn", "trending", "sequence", "content", "ncf", "champion"} == set(
        report.recommenders
    )
    assert report.value("hybrid", "ndcg@10") > report.value("popularity", "ndcg@10")
    difference = report.difference("hybrid", "champion", "ndcg@10")
    assert (difference.mean, difference.low, difference.high) == (0, 0, 0)
    assert "It takes part." in report.to_markdown()


# --- retrieval ----------------------------------------------------------------------------------------------------


def test_retrieval_is_measured_apart_from_ranking(bundle: ServingBundle, split: InteractionSplit) -> None:
    found = retrieval_quality(bundle, split, EvaluationParams(batch_size=7)).set_index("retrieved_by")["recall"]

    assert found["collaborative index"] == found["content index"] == 1
    held_out = split.test["item_idx"].to_numpy()
    pool = bundle.recommender().sources["content"].recommend(UserBatch(np.arange(58), bundle.history[:58]), 20)
    assert found["pool: content"] == pytest.approx((pool.item_idx == held_out[:, None]).any(axis=1).mean())
    assert found["pool: union of the sources"] >= max(found["pool: content"], found["pool: collaborative"])


def test_an_item_that_two_sources_offer_counts_once() -> None:
    assert distinct(np.array([[3, 1, 3, -1, 1]])).tolist() == [[-1, 1, -1, 3, -1]]

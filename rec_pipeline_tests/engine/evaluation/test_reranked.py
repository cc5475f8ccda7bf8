from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from rec_pipeline.engine.data.batches import Ranking
from rec_pipeline.engine.data.split import InteractionSplit
from rec_pipeline.engine.evaluation.params import EvaluationParams
from rec_pipeline.engine.evaluation.protocol import evaluate_recommenders
from rec_pipeline.engine.evaluation.reranked import context_gain, variety_curve
from rec_pipeline.engine.recommenders.bundle import ServingBundle
from rec_pipeline.engine.recommenders.context_gain import event_gains, user_gains
from rec_pipeline.engine.recommenders.global_ranker import GlobalRanker
from rec_pipeline_tests.engine.evaluation.test_champion import split
from rec_pipeline_tests.engine.recommenders.conftest import bundle

__all__ = ["bundle", "split"]

PARAMS = EvaluationParams(cutoffs=[5, 10], compared_metrics=["ndcg@10"], n_resamples=200)


def test_variety_is_bought_with_accuracy(bundle: ServingBundle, split: InteractionSplit) -> None:
    curve = variety_curve(bundle, split, PARAMS)

    assert curve is not None
    assert curve["mmr_trade_off"].is_monotonic_decreasing
    assert curve["diversity@10"].iloc[-1] > curve["diversity@10"].iloc[0] + 0.05
    assert curve["ndcg@10"].iloc[-1] < curve["ndcg@10"].iloc[0]


def test_without_any_text_the_report_says_nothing_of_diversity(bundle: ServingBundle, split: InteractionSplit) -> None:
    silent = replace(bundle.content_embeddings, vectors=np.zeros_like(bundle.content_embeddings.vectors))
    textless = replace(bundle, content_embeddings=silent)

    variety = variety_curve(textless, split, PARAMS)
    report = evaluate_recommenders(
        [GlobalRanker("popularity", np.ones(len(bundle.items), dtype=np.float32)), textless.recommender()],
        split,
        item_vectors=silent.vectors,
        variety=variety,
        params=PARAMS,
    )

    assert variety is None
    assert not [metric for metric in report.metrics if "diversity" in metric]
    assert "variety" not in report.plots
    assert report.to_html()


def test_the_worth_of_an_event_is_that_of_its_rank_in_its_context(bundle: ServingBundle) -> None:
    lists = Ranking(np.array([[2, 1, 0], [2, 1, 0]]), np.float32([[0.9, 0.8, 0.7], [0.9, 0.8, 0.7]]))
    events = pd.DataFrame(
        {
            "item_idx": [1, 2, 1, 5],
            "timestamp": pd.to_datetime(["2024-01-01T08", "2024-01-01T20", "2024-01-01T02", "2024-01-01T08"], utc=True),
        }
    )
    of_event = np.array([0, 0, 1, 1])

    without, within = event_gains(lists, of_event, events, bundle.lifts, (0.0, 1.0))

    # Odd items are taken in the morning, even ones in the evening; of the night nothing is known.
    np.testing.assert_allclose(without, [1 / np.log2(3), 1, 1 / np.log2(3), 0])
    np.testing.assert_allclose(within, [1, 1, 1 / np.log2(3), 0])
    np.testing.assert_allclose(user_gains(lists, of_event, events, bundle.lifts, (1.0,)), [[1, 1 / np.log2(3) / 2]])


def test_context_that_tells_what_is_taken_is_a_gain_and_strength_0_is_not_measured(
    bundle: ServingBundle, split: InteractionSplit
) -> None:
    hours = np.where(split.test["item_idx"] % 2 == 1, "2024-01-03T08", "2024-01-03T20")
    told = replace(split, test=split.test.assign(timestamp=pd.to_datetime(pd.Series(hours), utc=True)))
    stranger = replace(bundle, history=bundle.history * 0, sequences=bundle.sequences)
    off = replace(stranger, params=stranger.params.model_copy(update={"context_strength": 0.0}))

    gain = context_gain(stranger, told, PARAMS)
    assert gain is not None
    found = gain.iloc[0]

    assert found["n_users"] == found["n_events"] == 58
    assert found["low"] > 0
    assert found["difference"] == pytest.approx(found["after"] - found["before"])
    assert context_gain(off, told, PARAMS) is None

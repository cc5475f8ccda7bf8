from dataclasses import replace

import numpy as np

from rec_pipeline.engine.data.batches import Ranking, UserBatch
from rec_pipeline.engine.data.id_map import IdMap
from rec_pipeline.engine.recommenders.bundle import ServingBundle
from rec_pipeline.engine.recommenders.score_ranker import ScoreRanker
from rec_pipeline.engine.recommenders.translated import TranslatedRanker
from rec_pipeline_tests.engine.recommenders.planted import TableScorer, batch, id_map, ranking


def ids(*names: str) -> IdMap:
    return IdMap(np.array(names, dtype=object))


def ranker(scores: list[list[float]], users: IdMap, items: IdMap) -> TranslatedRanker:
    own = ScoreRanker("own", TableScorer(np.array(scores, dtype=np.float32)))
    return TranslatedRanker(own, ids("ann", "bo"), ids("a", "b", "c", "gone"), users, items, name="champion")


def test_users_and_items_are_matched_by_id_whatever_their_rows() -> None:
    champion = ranker([[1, 2, 3, 4], [4, 3, 2, 1]], users=ids("bo", "ann"), items=ids("c", "new", "b", "a"))

    found = champion.recommend(batch([[0, 0, 0, 0], [0, 0, 0, 0]]), top_k=4)

    assert found.item_idx.tolist() == [[3, 2, 0, -1], [0, 2, 3, -1]]  # a, b, c for bo and c, b, a for ann


def test_history_and_eligibility_are_translated_and_unknown_users_have_no_row() -> None:
    champion = ranker([[1, 2, 3, 4], [4, 3, 2, 1]], users=ids("di", "bo"), items=ids("c", "new", "b", "a"))

    found = champion.recommend(
        batch([[0, 1, 0, 0], [0, 1, 0, 1]]), top_k=3, eligible=np.array([True, True, False, True])
    )

    assert found.item_idx.tolist() == [[-1, -1, -1], [0, -1, -1]]  # bo has a, b is not eligible


def test_recent_events_keep_their_order_and_lose_what_is_unknown() -> None:
    seen: list[list[list[int]]] = []

    class Listening:
        name = "own"

        def recommend(self, users: UserBatch, top_k: int, *, eligible: object = None) -> Ranking:  # noqa: ARG002
            seen.append(users.recent.tolist())
            return ranking([[0] * top_k] * len(users))

    champion = TranslatedRanker(
        Listening(), ids("ann"), ids("a", "b"), ids("ann"), ids("b", "new", "a"), name="champion"
    )
    asked = replace(batch([[0, 0, 0]]), recent=np.array([[-1, 2, 1, 0, 2]]))

    champion.recommend(asked, top_k=1)

    assert seen == [[[-1, -1, 0, 1, 0]]]  # nobody, new dropped, then a, b, a


def test_a_bundle_asked_in_shuffled_rows_answers_as_in_its_own(bundle: ServingBundle) -> None:
    rng = np.random.default_rng(0)
    user_order, item_order = rng.permutation(len(bundle.users)), rng.permutation(len(bundle.items))
    shuffled = TranslatedRanker(
        bundle.recommender(),
        bundle.users,
        bundle.items,
        users=IdMap(id_map(len(bundle.users), "u").ids[user_order]),
        items=IdMap(id_map(len(bundle.items)).ids[item_order]),
        name="champion",
    )
    here = bundle.recommender().recommend(UserBatch(user_order, bundle.history[user_order]), 10)

    there = shuffled.recommend(UserBatch(np.arange(len(user_order)), bundle.history[user_order][:, item_order]), 10)

    assert item_order[there.item_idx].tolist() == here.item_idx.tolist()

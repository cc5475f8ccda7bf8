from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse as sp

from rec_pipeline.engine.data import pairs, space
from rec_pipeline.engine.data.table import Table
from rec_pipeline.engine.models.popularity import PopularityModel
from rec_pipeline.engine.recommenders.bundle import ServingBundle
from rec_pipeline.engine.recommenders.list_schema import POPULAR_USER_ID
from rec_pipeline.engine.recommenders.lists import count_seen, popular_list, recommend_all
from rec_pipeline.engine.store.generation import check_lists


@pytest.fixture(scope="module")
def lists(bundle: ServingBundle) -> pa.Table:
    return pa.Table.from_batches(recommend_all(bundle, top_k=5, batch_size=7))


def test_every_user_has_one_row_in_order(bundle: ServingBundle, lists: pa.Table) -> None:
    assert lists["user_id"].to_pylist() == bundle.users.ids.tolist()
    assert {len(items) for items in lists["item_id"].to_pylist()} == {5}


def test_rows_say_what_the_recommender_says(bundle: ServingBundle, lists: pa.Table) -> None:
    batch = next(iter(recommend_all(bundle, top_k=5, batch_size=60)))

    assert batch.to_pylist() == lists.to_pylist()
    row = lists.slice(3, 1).to_pylist()[0]
    assert row["origin"] == "personal"
    assert row["score"] == sorted(row["score"], reverse=True)
    for sources in row["sources"]:
        names = {"collaborative", "content", "sequence", "trending", "popularity"}
        assert {source["name"] for source in sources} <= names
        assert sum(source["share"] for source in sources) == pytest.approx(1)
        assert [source["share"] for source in sources] == sorted((s["share"] for s in sources), reverse=True)
        assert all(source["rank"] >= 1 for source in sources)


def test_reasons_name_items_of_the_users_own_history(bundle: ServingBundle, lists: pa.Table) -> None:
    for user, texts in enumerate(lists["reason"].to_pylist()[:58]):
        own = {f'Because you liked "{bundle.titles[item]}"' for item in bundle.history[user].indices}
        assert set(texts) <= {*own, "Matches your taste", "Popular right now"}
    assert any("獅子" in text for texts in lists["reason"].to_pylist() for text in texts)


def test_users_without_history_get_the_popular_list(bundle: ServingBundle, lists: pa.Table) -> None:
    popular = popular_list(bundle, top_k=5)

    assert popular["user_id"].to_pylist() == [POPULAR_USER_ID]
    assert lists["origin"].to_pylist() == ["personal"] * 58 + ["popular"] * 2
    for row in lists.slice(58).to_pylist():
        assert {**row, "user_id": ""} == popular.to_pylist()[0]
        assert set(row["reason"]) == {"Popular right now"}
        assert [source["name"] for sources in row["sources"] for source in sources] == ["popularity"] * 5
    taken_by_newcomers = np.argsort(-bundle.trending.newcomer_weight * bundle.facts.available, kind="stable")[:5]
    assert popular["item_id"].to_pylist()[0] == bundle.items.ids[taken_by_newcomers].tolist()


@pytest.mark.parametrize(("new_item_rank", "reaches"), [(20, set(range(0, 58, 2))), (0, set())])
def test_a_new_item_reaches_those_whose_taste_it_meets_without_a_click(
    bundle: ServingBundle, new_item_rank: int, reaches: set[int]
) -> None:
    params = bundle.params.model_copy(update={"new_item_rank": new_item_rank})
    others_are_well_known = PopularityModel(bundle.popularity.n_interactions * 10)
    changed = replace(bundle, params=params, popularity=others_are_well_known)

    rows = pa.Table.from_batches(recommend_all(changed, top_k=10)).to_pylist()

    # Nobody has item 38 yet; its text is that of the even items.
    assert {number for number, row in enumerate(rows[:58]) if "i038" in row["item_id"]} == reaches
    for number in reaches:
        place = rows[number]["item_id"].index("i038")
        assert "content" in {source["name"] for source in rows[number]["sources"][place]}
        assert rows[number]["reason"][place].startswith("Because you liked")


def test_batches_pass_the_gates_of_a_generation(bundle: ServingBundle) -> None:
    check_lists(popular_list(bundle))
    for batch in recommend_all(bundle, top_k=10):
        check_lists(batch)


def test_a_user_who_has_seen_everything_has_no_row(bundle: ServingBundle) -> None:
    seen = bundle.history.toarray()
    seen[1], seen[2, :36] = 1, 1

    lists = pa.Table.from_batches(recommend_all(replace(bundle, history=sp.csr_matrix(seen)), top_k=5, batch_size=20))

    assert "u001" not in lists["user_id"].to_pylist()
    assert sorted(lists["item_id"].to_pylist()[1]) == ["i036", "i037", "i038"]


def test_progress_is_reported_after_each_batch(bundle: ServingBundle) -> None:
    reported: list[tuple[int, int]] = []

    list(recommend_all(bundle, batch_size=25, on_progress=lambda *done: reported.append(done)))

    assert reported == [(25, 60), (50, 60), (60, 60)]


def test_seen_items_are_counted_in_every_batch_and_strangers_never() -> None:
    batches = [
        pa.RecordBatch.from_pydict({"user_id": ["ann", "bo"], "item_id": [["a", "b"], ["a"]]}),
        pa.RecordBatch.from_pydict({"user_id": ["cy", "ann"], "item_id": [["a", "new"], []]}),
    ]
    interactions = pd.DataFrame({"user_id": ["ann", "ann", "bo", "di"], "item_id": ["b", "b", "c", "a"]})

    assert (
        count_seen(batches, Table((interactions[:3], interactions[3:]))) == 1
    )  # ann's b; what bo, cy and a new item look like must not collide
    assert count_seen(batches, Table((interactions[:0],))) == 0


def test_what_is_seen_is_found_in_files_as_well(
    bundle: ServingBundle, lists: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = bundle.history.tocoo()
    interactions = pd.DataFrame({"user_id": bundle.users.ids[known.row], "item_id": bundle.items.ids[known.col]})
    listed = [(row["user_id"], row["item_id"][2]) for row in lists.to_pylist()[::5]]
    seen = pd.concat([interactions, pd.DataFrame(listed, columns=["user_id", "item_id"])]).sample(
        frac=1, random_state=1
    )
    for module in (pairs, space):
        monkeypatch.setattr(module, "PART_ROWS", 50)

    assert count_seen(lists.to_batches(), Table((seen,)), tmp_path) == len(listed)
    assert not any(tmp_path.iterdir())


def test_a_whole_generation_holds_nothing_seen_unless_it_is_put_there(bundle: ServingBundle, lists: pa.Table) -> None:
    known = bundle.history.tocoo()
    interactions = pd.DataFrame({"user_id": bundle.users.ids[known.row], "item_id": bundle.items.ids[known.col]})
    shown = pd.DataFrame({"user_id": ["u003"], "item_id": [lists["item_id"][3][0].as_py()]})

    assert count_seen(lists.to_batches(), Table((interactions,))) == 0
    assert count_seen(lists.to_batches(), Table((interactions, shown))) == 1

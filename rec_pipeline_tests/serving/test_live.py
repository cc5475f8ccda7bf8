import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rec_pipeline.engine.recommenders.bundle import ServingBundle
from rec_pipeline.serving.bundles import LoadedBundle
from rec_pipeline.serving.live import LiveRecommender
from rec_pipeline.serving.params import Request
from rec_pipeline_tests.engine.recommenders.planted import FixedEncoder

ITEMS = [f"i{row:03d}" for row in range(40)]
CATEGORIES = ["even", "odd", "strange", "nobody has it"]


@pytest.fixture(scope="module")
def loaded(bundle: ServingBundle) -> LoadedBundle:
    return LoadedBundle.of(bundle, "v1")


@pytest.fixture(scope="module")
def live() -> Iterator[LiveRecommender]:
    recommender = LiveRecommender(10.0, FixedEncoder, 10.0)
    yield recommender
    recommender.close()


@settings(max_examples=60)
@given(
    user=st.sampled_from(["u000", "u003", "u058", "stranger", None]),
    top_k=st.integers(1, 40),
    exclude=st.sets(st.sampled_from(ITEMS), max_size=20),
    categories=st.sets(st.sampled_from(CATEGORIES), max_size=2),
    without=st.sets(st.sampled_from(CATEGORIES), max_size=1),
    touched=st.lists(st.sampled_from(ITEMS), max_size=3),
    hour=st.sampled_from([None, "2024-01-01T07:00", "2024-01-01T19:00"]),
    text=st.sampled_from(["", "odd ones"]),
)
def test_a_filtered_item_never_appears_and_top_k_is_filled(
    loaded: LoadedBundle,
    live: LiveRecommender,
    user: str | None,
    top_k: int,
    exclude: set[str],
    categories: set[str],
    without: set[str],
    touched: list[str],
    hour: str | None,
    text: str,
) -> None:
    context = {} if hour is None else {"time": hour}
    request = Request(user, top_k, context, tuple(exclude), tuple(categories), tuple(without), text=text)

    answer = asyncio.run(live.answer(loaded, request, touched))

    bundle = loaded.bundle
    row = bundle.users.to_idx([user or ""])[0]
    seen = {ITEMS[item] for item in bundle.history[row].indices} if row >= 0 else set()
    own = [{"even"} if item % 2 == 0 else {"odd", "strange"} for item in range(40)]
    may = {
        item
        for item, names in zip(ITEMS, own, strict=True)
        if item not in {"i039", *exclude, *touched, *seen}
        and (not categories or names & categories)
        and not names & without
    }
    listed = [rec["id"] for rec in answer.items]
    assert set(listed) <= may
    assert len(set(listed)) == len(listed) == min(top_k, len(may))
    assert all(rec["sources"] and rec["reason"] for rec in answer.items)
    assert not answer.left_out


def test_words_alone_are_answered_from_the_texts(loaded: LoadedBundle, live: LiveRecommender) -> None:
    answer = asyncio.run(live.answer(loaded, Request(None, 10, text="odd ones")))

    assert {int(rec["id"][1:]) % 2 for rec in answer.items} == {1}
    assert [rec["sources"] for rec in answer.items] == [["content"]] * 10
    assert answer.source == "generated"


def test_words_read_by_another_encoder_than_the_texts_are_left_out(loaded: LoadedBundle) -> None:
    class OtherEncoder(FixedEncoder):
        model_id = "retrained@0123456789ab/48"

    other = LiveRecommender(10.0, OtherEncoder, 10.0)
    answer = asyncio.run(other.answer(loaded, Request(None, 10, text="odd ones")))
    other.close()

    assert answer.left_out["content"] == (
        "failed: words are read by retrained@0123456789ab/48, the items' texts were by planted"
    )
    assert len(answer.items) == 10

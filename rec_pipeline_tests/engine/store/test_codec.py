import json
import zlib

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rec_pipeline.engine.errors import StoredValueError
from rec_pipeline.engine.pseudonyms import pseudonym
from rec_pipeline.engine.recommenders.list_schema import LIST_SCHEMA
from rec_pipeline.engine.store.codec import MAX_VALUE_BYTES, decode_list, encode_lists
from rec_pipeline_tests.fixtures.store import make_lists

texts = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=8)
items = st.tuples(texts.filter(bool), st.floats(-100, 100, width=32), st.lists(texts, min_size=1, max_size=3), texts)


def test_a_list_is_encoded_as_the_contract_says() -> None:
    value = encode_lists(make_lists(["u1"], "a", n_items=2), 17, include_reasons=True)[0].as_py()

    assert value == (
        f'[{{"gen":17,"u":"{zlib.crc32(b"u1"):08x}","id":"a-0","score":1.0000,"sources":["collaborative"],'
        '"reason":"because of a"},{"id":"a-1","score":0.9000,"sources":["collaborative"],"reason":"because of a"}]'
    )


def test_without_reasons_objects_carry_id_and_score_only() -> None:
    value = encode_lists(make_lists(["u1"], "a", n_items=2), 17, include_reasons=False)[0].as_py()

    assert json.loads(value)[1] == {"id": "a-1", "score": 0.9}


@given(st.lists(st.tuples(texts, st.lists(items, min_size=1, max_size=4)), min_size=1, max_size=5), st.integers(0, 4))
def test_whatever_is_encoded_is_decoded_again(lists: list, start: int) -> None:  # type: ignore[type-arg] # nested tuples
    batch = pa.RecordBatch.from_pylist(
        [
            {
                "user_id": user_id,
                "item_id": [item[0] for item in ranked],
                "score": [item[1] for item in ranked],
                "sources": [[{"name": name, "rank": 1, "share": 1.0} for name in item[2]] for item in ranked],
                "reason": [item[3] for item in ranked],
                "origin": "personal",
            }
            for user_id, ranked in lists
        ],
        LIST_SCHEMA,
    ).slice(min(start, len(lists) - 1))

    values = encode_lists(batch, 5, include_reasons=True).to_pylist()

    for (user_id, ranked), value in zip(lists[min(start, len(lists) - 1) :], values, strict=True):
        decoded = decode_list(value.encode(), user_id)
        assert decoded.generation == 5
        assert [(item.item_id, list(item.sources), item.reason) for item in decoded.items] == [
            (item[0], item[2], item[3]) for item in ranked
        ]
        assert [item.score for item in decoded.items] == pytest.approx([item[1] for item in ranked], abs=0.5001e-4)


@given(st.lists(st.floats(0, 1, width=32), min_size=2, max_size=20))
def test_rounding_never_changes_the_order(scores: list[float]) -> None:
    ordered = sorted(scores, reverse=True)
    row = make_lists(["u"], "a", n_items=len(ordered)).to_pylist()[0] | {"score": ordered}

    value = encode_lists(pa.RecordBatch.from_pylist([row], LIST_SCHEMA), 1, include_reasons=False)[0].as_py()

    published = [entry["score"] for entry in json.loads(value)]
    assert published == sorted(published, reverse=True)


HOSTILE = [
    b"",
    b"null",
    b"{}",
    b"[]",
    b"[1]",
    b'[{"id":"a"}]',
    b'[{"id":"","score":1}]',
    b'[{"id":7,"score":1}]',
    b'[{"id":"a","score":"1"}]',
    b'[{"id":"a","score":true}]',
    b'[{"id":"a","score":NaN}]',
    b'[{"id":"a","score":1e999}]',
    b'[{"id":"a","score":1,"sources":"x"}]',
    b'[{"id":"a","score":1,"sources":[1]}]',
    b'[{"id":"a","score":1,"reason":null}]',
    b'[{"gen":"x","id":"a","score":1}]',
    b'[{"gen":-1,"id":"a","score":1}]',
    b'[{"gen":true,"id":"a","score":1}]',
    b'[{"u":"00000000","id":"a","score":1}]',
    b'[{"u":[],"id":"a","score":1}]',
    b"[" * 100_000,
    b"\xff\xfe",
    b" " * (MAX_VALUE_BYTES + 1),
]


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: repr(value[:30]))
def test_hostile_values_raise_the_one_documented_error(value: bytes) -> None:
    with pytest.raises(StoredValueError, match=pseudonym("u1")):
        decode_list(value, "u1")


@given(st.binary(max_size=60))
def test_arbitrary_bytes_raise_nothing_else(value: bytes) -> None:
    with pytest.raises(StoredValueError):
        decode_list(value, "u1")


@pytest.mark.parametrize("cut", range(1, 90, 7))
def test_a_torn_value_is_noticed(cut: int) -> None:
    value = encode_lists(make_lists(["u1"], "a"), 17, include_reasons=True)[0].as_py().encode()

    with pytest.raises(StoredValueError):
        decode_list(value[:-cut], "u1")


def test_another_users_list_is_noticed() -> None:
    value = encode_lists(make_lists(["u1"], "a"), 17, include_reasons=True)[0].as_py().encode()

    with pytest.raises(StoredValueError, match="another user"):
        decode_list(value, "u2")


def test_a_list_that_no_publication_wrote_has_generation_zero() -> None:
    assert decode_list(b'[{"id":"a","score":1}]', "u1").generation == 0

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rec_pipeline.engine.data.ids import MAX_BYTES, are_valid_ids, check_id, is_valid_id, look_alikes
from rec_pipeline.engine.errors import InvalidIdError

ACCEPTED = [
    "007",
    "7",
    "1e5",
    "NA",
    "null",
    "a:b/c.d@e*?[",
    "two words",
    "ユーザー",
    "Жанна",
    "👩‍🚀",
    "é",
    "e\u0301",
    "x" * MAX_BYTES,
]
REFUSED = [
    "",
    " a",
    "a ",
    "\u3000a",
    "a\nb",
    "a\tb",
    "a\x00",
    "a\x7fb",
    "a\x85b",
    "\u2028",
    "a{b",
    "a}b",
    "x" * 257,
    "é" * 129,
]


@pytest.mark.parametrize("text", ACCEPTED)
def test_ids_of_any_script_are_accepted(text: str) -> None:
    check_id(text)

    assert is_valid_id(text)
    assert are_valid_ids(pa.array([text])).tolist() == [True]


@pytest.mark.parametrize("text", [*REFUSED, "\ud800"])
def test_texts_that_break_logs_keys_or_files_are_refused(text: str) -> None:
    with pytest.raises(InvalidIdError, match="user_id"):
        check_id(text, "user_id")

    assert not is_valid_id(text)


def test_the_rule_for_arrays_refuses_the_same_and_nulls() -> None:
    assert not are_valid_ids(pa.array([*REFUSED, None])).any()


@given(st.lists(st.text(max_size=6)))
def test_the_rule_for_arrays_is_the_rule_for_one(texts: list[str]) -> None:
    texts = [text for text in texts if text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)]

    assert are_valid_ids(pa.array(texts, pa.string())).tolist() == [is_valid_id(text) for text in texts]


def test_ids_that_differ_in_case_or_composition_are_told_but_not_merged() -> None:
    assert look_alikes(["\u00e9", "e\u0301", "E\u0301", "e", "ß", "SS", "x"]) == [
        ("\u00e9", "e\u0301", "E\u0301"),
        ("ß", "SS"),
    ]

import numpy as np
import pandas as pd
import pytest

from rec_pipeline.engine.embeddings.item_text import item_texts


def test_text_is_title_categories_description() -> None:
    items = pd.DataFrame(
        {
            "description": ["A cowboy doll\n is   threatened. "],
            "categories": ["Adventure|Animation"],
            "title": [" Toy Story "],
            "price": [3.5],
        }
    )

    assert item_texts(items) == ["Toy Story. Adventure, Animation. A cowboy doll is threatened."]


@pytest.mark.parametrize("categories", [["Crime", " ", None, "Drama"], np.array(["Crime", "Drama"], dtype=object)])
def test_categories_may_be_a_list(categories: object) -> None:
    assert item_texts(pd.DataFrame({"categories": [categories]})) == ["Crime, Drama."]


def test_a_bar_divides_categories_only() -> None:
    assert item_texts(pd.DataFrame({"title": ["a|b"], "description": ["c|d!"]})) == ["a|b. c|d!"]


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA, "", " \t\n\u3000", [], 7])
@pytest.mark.parametrize("column", ["title", "categories", "description"])
def test_nothing_said_is_an_empty_text(column: str, missing: object) -> None:
    assert item_texts(pd.DataFrame({column: pd.Series([missing], dtype=object)})) == [""]


def test_absent_columns_give_empty_texts() -> None:
    assert item_texts(pd.DataFrame({"item_id": ["a", "b"]})) == ["", ""]


def test_no_items_give_no_texts() -> None:
    assert item_texts(pd.DataFrame({"title": pd.Series([], dtype="str")})) == []

"""Each check of the ingestion fails for what it is there to find."""

from collections.abc import Sequence
from dataclasses import replace

import dagster as dg
import numpy as np
import pandas as pd
import pytest

from rec_pipeline.checks import ingestion
from rec_pipeline.engine.data.split import InteractionSplit, SplitParams, split_interactions
from rec_pipeline.engine.data.table import Table
from rec_pipeline.engine.data.validation import ValidatedTable

N_USERS, N_ITEMS = 40, 50


def interactions_table() -> pd.DataFrame:
    rng = np.random.default_rng(7)
    pairs = [(user, item) for user in range(N_USERS) for item in rng.choice(N_ITEMS, 10, replace=False)]
    seconds = rng.permutation(len(pairs))
    return pd.DataFrame(
        {
            "user_id": [f"u{user}" for user, _ in pairs],
            "item_id": [f"i{item}" for _, item in pairs],
            "timestamp": pd.Timestamp("2024-01-01", tz="UTC") + pd.to_timedelta(seconds, unit="h"),
            "weight": np.ones(len(pairs), dtype=np.float32),
        }
    )


def items_table() -> pd.DataFrame:
    return pd.DataFrame({"item_id": [f"i{item}" for item in range(N_ITEMS)], "title": "A title"})


def validated(table: pd.DataFrame, n_quarantined: int = 0) -> ValidatedTable:
    refused = Table((pd.DataFrame({"row_number": range(n_quarantined), "reason": "bad"}),))
    return ValidatedTable(Table((table,)), refused, n_rows_in=len(table) + n_quarantined, n_duplicates=0)


@pytest.fixture(scope="module")
def split() -> InteractionSplit:
    return split_interactions(interactions_table(), items_table(), SplitParams())


def outcomes(results: Sequence[dg.AssetCheckResult]) -> list[bool]:
    return [result.passed for result in results]


def test_something_was_read() -> None:
    rows, none = interactions_table(), interactions_table().head(0)

    read = [ingestion.interactions_were_read(Table((table,))) for table in (rows, none)]
    assert outcomes(read) == [True, False]
    assert outcomes([ingestion.items_were_read(items_table()), ingestion.items_were_read(none)]) == [True, False]


@pytest.mark.parametrize("column", ["user_id", "item_id"])
def test_one_user_or_one_item_alone_is_refused(column: str) -> None:
    rows = interactions_table()

    assert ingestion.many_users_and_items_interacted(Table((rows,))).passed
    assert not ingestion.many_users_and_items_interacted(Table((rows.assign(**{column: "the only one"}),))).passed


def test_blank_and_absent_titles_are_noticed_without_stopping_anything() -> None:
    titled = items_table()
    blank = titled.assign(title=["", " ", *["A title"] * (N_ITEMS - 2)])

    results = [ingestion.nearly_all_items_have_a_title(table) for table in (titled, blank, titled[["item_id"]])]

    assert outcomes(results) == [True, False, False]
    assert results[1].severity is dg.AssetCheckSeverity.WARN
    assert results[1].metadata["share_with_title"].value == 48 / 50


def test_a_repeated_item_is_refused() -> None:
    table = items_table()

    assert ingestion.item_ids_are_unique(validated(table)).passed
    assert not ingestion.item_ids_are_unique(validated(pd.concat([table, table.head(1)]))).passed


@pytest.mark.parametrize("check", [ingestion.few_items_are_quarantined, ingestion.few_interactions_are_quarantined])
def test_more_than_one_row_in_a_thousand_in_quarantine_is_noticed(check: dg.AssetChecksDefinition) -> None:
    table = pd.DataFrame({"item_id": [f"i{row}" for row in range(999)]})

    assert outcomes([check(validated(table, 1)), check(validated(table, 2))]) == [True, False]


def test_an_interaction_with_an_unknown_item_is_refused() -> None:
    rows, items = interactions_table(), items_table()
    check = ingestion.interactions_are_with_known_items

    assert check(validated(rows), validated(items)).passed
    assert not check(validated(rows), validated(items[items["item_id"] != rows["item_id"][0]])).passed


def test_a_pair_in_two_parts_is_refused(split: InteractionSplit) -> None:
    leaking = replace(split, test=pd.concat([split.test, split.train.head(1)], ignore_index=True))

    assert ingestion.parts_do_not_overlap(split).passed
    assert not ingestion.parts_do_not_overlap(leaking).passed


def test_too_few_tested_users_are_noticed(split: InteractionSplit) -> None:
    few = replace(split, test=split.test[split.test["user_idx"] < 5])

    assert outcomes([ingestion.enough_users_are_tested(part) for part in (split, few)]) == [
        split.test["user_idx"].nunique() >= ingestion.MIN_TEST_USERS,
        False,
    ]

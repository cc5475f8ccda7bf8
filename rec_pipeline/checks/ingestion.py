"""Checks of what was read, validated and split."""

import dagster as dg
import numpy as np
import pandas as pd

from rec_pipeline.checks.verdict import WARN, verdict
from rec_pipeline.engine import columns as c
from rec_pipeline.engine.data.event_log import EventLog
from rec_pipeline.engine.data.split import InteractionSplit, count_repeated_pairs
from rec_pipeline.engine.data.table import Table
from rec_pipeline.engine.data.tally import Tally
from rec_pipeline.engine.data.validation import ValidatedTable

WARN_QUARANTINED_SHARE = 0.001  # a tenth of the share that stops a run
MIN_TEST_USERS = 30  # below it, intervals of the report are too wide to decide anything
DAYS_LOOKED_AT = 7  # of the event log: what is older was looked at when it was new
MIN_SHARE_WITH_TITLE = 0.99  # lists are shown by title


@dg.asset_check(asset="raw_interactions", blocking=True)
def interactions_were_read(raw_interactions: Table) -> dg.AssetCheckResult:
    """The source gave at least one row."""
    return verdict(len(raw_interactions), n_rows=len(raw_interactions))


@dg.asset_check(asset="raw_interactions")
def many_users_and_items_interacted(raw_interactions: Table) -> dg.AssetCheckResult:
    """One user or one item alone is nothing to learn from; a mapping of columns gone wrong looks like that."""
    n_users, n_items = (len(Tally.of(raw_interactions, name).counts) for name in (c.USER_ID, c.ITEM_ID))
    return verdict(n_users > 1 and n_items > 1, n_users=n_users, n_items=n_items)


@dg.asset_check(asset="raw_items", blocking=True)
def items_were_read(raw_items: pd.DataFrame) -> dg.AssetCheckResult:
    """The source gave at least one row."""
    return verdict(len(raw_items), n_rows=len(raw_items))


@dg.asset_check(asset="raw_items")
def nearly_all_items_have_a_title(raw_items: pd.DataFrame) -> dg.AssetCheckResult:
    """Lists are shown to people by title."""
    titles = raw_items[c.TITLE].fillna("").astype(str).str.strip() if c.TITLE in raw_items else pd.Series(dtype=str)
    share = float((titles != "").sum() / max(1, len(raw_items)))
    return verdict(share >= MIN_SHARE_WITH_TITLE, severity=WARN, share_with_title=share, bound=MIN_SHARE_WITH_TITLE)


@dg.asset_check(asset="items", blocking=True)
def item_ids_are_unique(items: ValidatedTable) -> dg.AssetCheckResult:
    """One row an item."""
    n_repeated = items.table[c.ITEM_ID].duplicated().sum()
    return verdict(n_repeated == 0, n_repeated=n_repeated)


@dg.asset_check(asset="items")
def few_items_are_quarantined(items: ValidatedTable) -> dg.AssetCheckResult:
    """A tenth of the share that would stop a run is worth a look."""
    return _few_quarantined(items)


@dg.asset_check(asset="event_log")
def events_are_in_the_day_they_belong_to(event_log: EventLog) -> dg.AssetCheckResult:
    """Of the last days with events, every event lies in the day of its timestamp (UTC)."""
    n_strays = {day: event_log.strays(day) for day in event_log.days()[-DAYS_LOOKED_AT:]}
    return verdict(sum(n_strays.values()) == 0, n_strays=sum(n_strays.values()), n_days=len(n_strays))


@dg.asset_check(asset="event_log")
def few_entries_of_the_stream_are_refused(event_log: EventLog) -> dg.AssetCheckResult:
    """Entries that are no events come from an application that writes the stream itself, and does it wrong."""
    reasons = event_log.read_refused()[c.REASON]
    n_events = sum(event_log.read_day(day, [c.EVENT_ID]).table.num_rows for day in event_log.days()[-DAYS_LOOKED_AT:])
    share = len(reasons) / max(1, len(reasons) + n_events)
    return verdict(
        share <= WARN_QUARANTINED_SHARE,
        severity=WARN,
        refused_share=share,
        bound=WARN_QUARANTINED_SHARE,
        last_reason=reasons.iloc[-1] if len(reasons) else "none",
    )


@dg.asset_check(asset="interactions")
def few_interactions_are_quarantined(interactions: ValidatedTable) -> dg.AssetCheckResult:
    """A tenth of the share that would stop a run is worth a look."""
    return _few_quarantined(interactions)


@dg.asset_check(asset="interactions", blocking=True, additional_ins={"items": dg.AssetIn()})
def interactions_are_with_known_items(interactions: ValidatedTable, items: ValidatedTable) -> dg.AssetCheckResult:
    """Every interaction is with an item of the catalogue."""
    n_unknown = sum(
        (~part[c.ITEM_ID].isin(items.table[c.ITEM_ID])).sum() for part in interactions.kept.iterate([c.ITEM_ID])
    )
    return verdict(n_unknown == 0, n_unknown=n_unknown)


@dg.asset_check(asset="interaction_split", blocking=True)
def parts_do_not_overlap(interaction_split: InteractionSplit) -> dg.AssetCheckResult:
    """No (user, item) pair is both learnt from and tested on, or there twice."""
    n_repeated = count_repeated_pairs(interaction_split)
    return verdict(n_repeated == 0, n_repeated=n_repeated)


@dg.asset_check(asset="interaction_split")
def enough_users_are_tested(interaction_split: InteractionSplit) -> dg.AssetCheckResult:
    """Enough users of the test part have a history for its numbers to mean something."""
    parts = interaction_split.by_user
    is_tested, is_known = (np.diff(part.starts) > 0 for part in (parts.test, parts.fitting))
    n_users, n_known = int(is_tested.sum()), int((is_tested & is_known).sum())
    return verdict(
        n_known >= MIN_TEST_USERS, severity=WARN, n_test_users=n_users, n_with_history=n_known, bound=MIN_TEST_USERS
    )


def _few_quarantined(validated: ValidatedTable) -> dg.AssetCheckResult:
    share = len(validated.refused) / max(1, validated.n_rows_in)
    return verdict(
        share <= WARN_QUARANTINED_SHARE, severity=WARN, quarantined_share=share, bound=WARN_QUARANTINED_SHARE
    )

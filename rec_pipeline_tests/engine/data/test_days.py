"""Interactions in days: what is kept is what the same files give as one table, whichever days were read when."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rec_pipeline.engine import columns as c
from rec_pipeline.engine import crash_points
from rec_pipeline.engine.data import table, validation
from rec_pipeline.engine.data.days import DailyTable, Days, TakenDays, forget_in_days, take_days, validate_days
from rec_pipeline.engine.data.fetching import local_path
from rec_pipeline.engine.data.files import ReadLimits, write_checksums
from rec_pipeline.engine.data.source import FileSource
from rec_pipeline.engine.data.table import in_parts, put_aside
from rec_pipeline.engine.data.validation import ValidatedTable, ValidationParams, validate_interactions
from rec_pipeline.engine.errors import ConfigurationError, InputRejectedError
from rec_pipeline.engine.remote import RemoteFolder, open_store

pytestmark = pytest.mark.filterwarnings(
    "ignore:Series.values returning an ndarray that drops timezone"  # pyarrow 25 asks pandas 3.1 for it when writing
)

NOW = pd.Timestamp("2024-06-01", tz="UTC")
PARAMS = ValidationParams(
    min_interactions=1,
    min_users=0,
    min_items=1,
    max_quarantined_share=1,
    max_unreadable_share=1,
    max_user_interactions=12,
)
ITEMS = pd.DataFrame({c.ITEM_ID: pd.Series([f"i{n}" for n in range(8)], dtype="str")})
FIRST, LAST = "2024-03-01", "2024-03-09"
DATES = [f"2024-03-{day:02}" for day in (1, 2, 4)]


class Daily:
    """A folder of days, and what was made of it."""

    def __init__(self, folder: Path, url: str | None = None) -> None:
        self.folder = folder / "input"
        self.scratch = folder / "scratch"
        self.scratch.mkdir(parents=True)
        self.store = open_store(folder / "artifacts", url)
        self.raw = DailyTable(self.store, "raw_interactions")
        self.examined = DailyTable(self.store, "interactions")
        self.n_validated = 0

    @property
    def source(self) -> FileSource:
        return FileSource(self.folder)

    def write(self, day: str, rows: pd.DataFrame, name: str = "part.parquet") -> None:
        (self.folder / f"day={day}").mkdir(parents=True, exist_ok=True)
        rows.to_parquet(self.folder / f"day={day}" / name, index=False)

    def take(self, *asked: str, others: bool = False) -> TakenDays:
        taken = take_days(self.raw, self.source.by_day(FIRST, LAST), asked, others=others)
        self.store.write("raw_interactions", taken.applied_to(self.raw.meant()).save, kind=Days.__name__)
        return taken

    def validate(
        self, params: ValidationParams = PARAMS, items: pd.DataFrame = ITEMS, asked: tuple[str, ...] = ()
    ) -> tuple[ValidatedTable, tuple[str, ...]]:
        self.n_validated += 1
        scratch = self.scratch / str(self.n_validated)
        rows = self.raw.read(self.raw.meant())
        return validate_days(rows, items, params, NOW, scratch=scratch, examined=self.examined, asked=asked)

    def whole(self, params: ValidationParams = PARAMS, items: pd.DataFrame = ITEMS) -> ValidatedTable:
        """Validate the same files as one table."""
        self.n_validated += 1
        scratch = self.scratch / str(self.n_validated)
        raw = put_aside(in_parts(self.source.iterate_interactions()), scratch / "raw")
        return validate_interactions(raw, items, params, NOW, scratch=scratch / "whole")


def messy(rng: np.random.Generator, day: str, n: int = 120) -> pd.DataFrame:
    """Return rows of which many break rules, repeat each other or lie on another day, and one user is a bot."""

    def some(good: list[str], bad: list[str]) -> list[str]:
        return [str(rng.choice(bad if rng.random() < 0.08 else good)) for _ in range(n)]

    seconds = int(pd.Timestamp(day, tz="UTC").timestamp())
    times = [str(seconds + int(hours) * 3600) for hours in rng.integers(-24, 48, size=n)]
    events = {
        c.USER_ID: some(["u1", "u2", "bot"], ["", "a{b", " x"]),
        c.ITEM_ID: [f"i{item}" for item in rng.integers(9, size=n)],  # i8 is not in the catalogue
        c.TIMESTAMP: [time if rng.random() < 0.9 else "soon" for time in times],
        c.RATING: some(["1", "2", "5"], ["x", ""]),
        c.EVENT_TYPE: some(["click", "view", "buy"], [""]),
        c.EVENT_ID: [f"e{number}" if number < 300 else "" for number in rng.integers(400, size=n)],
    }
    return pd.DataFrame({name: pd.Series(values, dtype="str") for name, values in events.items()})


@pytest.fixture
def daily(tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> Daily:
    for module in (table, validation):
        monkeypatch.setattr(module, "PART_ROWS", 50)
    made = Daily(tmp_path)
    for day in DATES:
        made.write(day, messy(rng, day))
    return made


def assert_equal(found: ValidatedTable, expected: ValidatedTable) -> None:
    pd.testing.assert_frame_equal(found.table, expected.table)
    pd.testing.assert_frame_equal(found.quarantine, expected.quarantine)
    assert (found.n_rows_in, found.n_duplicates) == (expected.n_rows_in, expected.n_duplicates)
    assert (found.warnings, found.profile) == (expected.warnings, expected.profile)


def test_days_give_what_one_table_gives_and_add_up_each_and_in_all(daily: Daily) -> None:
    daily.take(others=True)

    found, looked_at = daily.validate()

    assert_equal(found, daily.whole())
    assert looked_at == tuple(DATES)
    assert list(found.by_day) == DATES
    for name in ("n_rows_in", "n_duplicates"):
        assert sum(getattr(counts, name) for counts in found.by_day.values()) == getattr(found, name)
    assert sum(counts.n_kept for counts in found.by_day.values()) == len(found.kept)
    assert found.n_duplicates > 20
    assert any("beyond the cap" in reason for reason in found.quarantine[c.REASON])


def test_an_event_id_seen_on_another_day_is_a_duplicate_and_counted_on_its_own_day(tmp_path: Path) -> None:
    daily = Daily(tmp_path)
    for number, day in enumerate(DATES):
        rows = {c.USER_ID: [f"u{number}"], c.ITEM_ID: ["i1"], c.TIMESTAMP: [f"{day}T12:00"], c.EVENT_ID: ["e1"]}
        daily.write(day, pd.DataFrame(rows))
    daily.take(others=True)

    found, _ = daily.validate()

    assert found.table[c.USER_ID].tolist() == ["u0"]
    assert [counts.n_duplicates for counts in found.by_day.values()] == [0, 1, 1]


def test_only_days_asked_for_are_read_and_looked_at(daily: Daily) -> None:
    assert daily.take(DATES[0], DATES[1]).read == (DATES[0], DATES[1])
    assert daily.validate(asked=(DATES[0], DATES[1]))[1] == (DATES[0], DATES[1])

    taken = daily.take(DATES[2])
    found, looked_at = daily.validate(asked=(DATES[2],))

    assert taken.read == looked_at == (DATES[2],)
    assert_equal(found, daily.whole())


def test_nothing_is_read_where_nothing_is_new(daily: Daily) -> None:
    daily.take(others=True)
    first, _ = daily.validate()

    taken = daily.take(others=True)
    again, looked_at = daily.validate()

    assert taken.read == looked_at == ()
    assert_equal(again, first)


def test_late_events_new_days_and_days_that_went_are_taken_up(daily: Daily, rng: np.random.Generator) -> None:
    daily.take(others=True)
    daily.validate()
    daily.write(DATES[1], messy(rng, DATES[1], n=7), "late.parquet")
    daily.write(LAST, messy(rng, LAST))
    (daily.folder / f"day={DATES[0]}" / "part.parquet").unlink()

    taken = daily.take(others=True)
    found, looked_at = daily.validate()

    assert taken.read == looked_at == (DATES[1], LAST)
    assert taken.gone == (DATES[0],)
    assert daily.examined.days() == [DATES[1], DATES[2], LAST]
    assert_equal(found, daily.whole())


def test_rules_and_the_catalogue_may_change_after_a_day_was_taken(daily: Daily) -> None:
    daily.take(others=True)
    daily.validate()
    stricter = PARAMS.model_copy(update={"min_rating": 2.0, "max_user_interactions": 5})
    more = pd.DataFrame({c.ITEM_ID: pd.Series([f"i{n}" for n in range(3, 9)], dtype="str")})

    by_other_rules, looked_at = daily.validate(stricter)
    with_other_items, not_again = daily.validate(stricter, more)

    assert looked_at == tuple(DATES)
    assert not_again == ()
    assert_equal(by_other_rules, daily.whole(stricter))
    assert_equal(with_other_items, daily.whole(stricter, more))


def test_the_share_of_refused_rows_that_stops_a_run_is_that_of_all_days(daily: Daily) -> None:
    daily.take(others=True)
    uncapped = PARAMS.model_copy(update={"max_user_interactions": 1000})
    share = len(daily.validate(uncapped)[0].refused) / (len(DATES) * 120)

    daily.validate(uncapped.model_copy(update={"max_quarantined_share": share}))
    with pytest.raises(InputRejectedError, match="interactions are refused, a share of"):
        daily.validate(uncapped.model_copy(update={"max_quarantined_share": share - 0.001}))


def test_a_day_that_is_not_there_is_named_and_nothing_is_read(daily: Daily) -> None:
    with pytest.raises(InputRejectedError, match=r"holds nothing of 2024-03-03, which was asked for; it holds 3 days"):
        daily.take(*DATES[:2], "2024-03-03")

    assert daily.raw.days() == []


def test_a_day_that_cannot_be_read_changes_nothing_and_those_before_it_are_not_read_again(daily: Daily) -> None:
    path = daily.folder / f"day={DATES[1]}" / "part.parquet"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])

    with pytest.raises(InputRejectedError, match=f"day={DATES[1]}.*truncated or corrupt"):
        daily.take(others=True)

    assert daily.raw.meant() == Days({})
    path.write_bytes(content)
    assert daily.take(others=True).read == (DATES[1], DATES[2])


def test_a_damaged_day_is_read_again(daily: Daily) -> None:
    daily.take(others=True)
    daily.validate()
    for stored in (daily.raw, daily.examined):
        (part, *_) = (daily.store.root / stored.key / "days" / DATES[0]).glob("*/rows/00000.parquet")
        part.write_bytes(part.read_bytes()[:-9])

    assert daily.take(others=True).read == (DATES[0],)
    assert daily.validate()[1] == (DATES[0],)


def test_what_is_meant_is_kept_however_many_runs_are_killed(daily: Daily) -> None:
    daily.take(others=True)
    before = daily.validate()[0]
    for seed in range(5):
        daily.write(DATES[0], messy(np.random.default_rng(seed), DATES[0]))
        take_days(daily.raw, daily.source.by_day(FIRST, LAST), (), others=True)  # and no more: nothing is meant by it

    assert_equal(daily.validate()[0], before)


def test_checksums_of_the_whole_folder_hold_for_a_day(daily: Daily) -> None:
    write_checksums(daily.folder)
    path = daily.folder / f"day={DATES[2]}" / "part.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)

    daily.take(DATES[0])
    with pytest.raises(InputRejectedError, match="SHA256SUMS says"):
        daily.take(DATES[2])


def test_a_folder_that_is_not_in_days_is_refused(tmp_path: Path) -> None:
    daily = Daily(tmp_path)
    (daily.folder / "day=2024-03-01").mkdir(parents=True)
    with pytest.raises(InputRejectedError, match=r"without a \.parquet file"):
        daily.take(others=True)

    daily.write("2024-02-30", pd.DataFrame({c.USER_ID: ["u"], c.ITEM_ID: ["i"], c.TIMESTAMP: [1]}))
    with pytest.raises(InputRejectedError, match="in no folder day=YYYY-MM-DD"):
        daily.take(others=True)

    file = daily.folder / "day=2024-02-30" / "part.parquet"
    with pytest.raises(ConfigurationError, match="must be a folder"):
        FileSource(file).by_day(FIRST, LAST)


def test_days_before_the_first_are_left_out(daily: Daily) -> None:
    daily.write("2024-02-29", messy(np.random.default_rng(1), "2024-02-29"))

    files = daily.source.by_day(FIRST, LAST)

    assert (list(files.days), files.left_out) == (DATES, ("2024-02-29",))
    with pytest.raises(InputRejectedError, match="holds no day from 2025-01-01"):
        daily.source.by_day("2025-01-01", "2025-01-02")


def test_all_days_are_read_again_where_the_columns_of_the_first_have_changed(daily: Daily) -> None:
    daily.take(others=True)
    rows = pd.read_parquet(daily.folder / f"day={DATES[0]}" / "part.parquet")
    daily.write(DATES[0], rows.assign(device="tv"))

    daily.take(DATES[0])
    with pytest.raises(InputRejectedError, match=f"interactions of {DATES[1]} have the columns"):
        daily.validate()

    assert daily.take(others=True).read == (DATES[1], DATES[2])  # the first was asked for and read just now
    assert_equal(daily.validate()[0], daily.whole())


def test_a_column_that_later_files_lack_is_empty_there(daily: Daily) -> None:
    rows = pd.read_parquet(daily.folder / f"day={DATES[2]}" / "part.parquet")
    daily.write(DATES[2], rows.drop(columns=[c.EVENT_TYPE]))
    daily.take(others=True)

    assert_equal(daily.validate()[0], daily.whole())


def test_folders_within_a_day_are_columns_as_they_are_in_one_table(tmp_path: Path) -> None:
    daily = Daily(tmp_path)
    for day in DATES:
        for event_type in ("click", "view"):
            rows = {c.USER_ID: ["u1"], c.ITEM_ID: ["i1"], c.TIMESTAMP: [f"{day}T12:00"]}
            (daily.folder / f"day={day}" / f"event_type={event_type}").mkdir(parents=True)
            daily.write(day, pd.DataFrame(rows), f"event_type={event_type}/part.parquet")
    daily.take(others=True)

    found, _ = daily.validate()

    assert found.table[c.EVENT_TYPE].tolist() == ["click", "view"] * 3
    assert_equal(found, daily.whole())


def test_the_unit_of_timestamps_is_told_by_all_days(tmp_path: Path) -> None:
    daily = Daily(tmp_path)
    for day, factor in zip(DATES, (1, 1, 1000), strict=True):
        seconds = int(pd.Timestamp(day, tz="UTC").timestamp())
        users = [f"u{row}" for row in range(5)]
        daily.write(day, pd.DataFrame({c.USER_ID: users, c.ITEM_ID: "i1", c.TIMESTAMP: [seconds * factor] * 5}))
    daily.take(others=True)

    found, _ = daily.validate()

    assert_equal(found, daily.whole())
    assert [counts.n_kept for counts in found.by_day.values()] == [5, 5, 0]


@pytest.mark.parametrize("is_remote", [False, True])
def test_a_forgotten_user_is_in_no_version_of_any_day(daily: Daily, tmp_path: Path, is_remote: bool) -> None:
    daily = Daily(tmp_path / "away", f"file://{tmp_path}/bucket") if is_remote else daily
    for day in DATES:
        daily.write(day, messy(np.random.default_rng(0), day))
    daily.take(others=True)
    daily.validate()
    daily.write(DATES[1], messy(np.random.default_rng(1), DATES[1], n=9), "late.parquet")
    daily.take(others=True)  # there are two versions of that day
    rows = daily.raw.read(daily.raw.meant()).read([c.USER_ID])[c.USER_ID]

    assert forget_in_days(daily.raw, daily.examined, "u1") == (rows == "u1").sum()

    stored = [pq.read_table(path).column(c.USER_ID) for path in tmp_path.rglob("rows/*.parquet")]
    assert "u1" not in pa.chunked_array([chunk for column in stored for chunk in column.chunks]).to_pylist()
    found, looked_at = daily.validate()
    assert looked_at == tuple(DATES)
    assert set(found.table[c.USER_ID]) == {"u2", "bot"}
    assert forget_in_days(daily.raw, daily.examined, "u1") == 0
    assert daily.take(others=True).read == ()


def test_a_day_of_one_user_who_is_forgotten_is_empty(daily: Daily) -> None:
    rows = {c.USER_ID: ["alone"] * 3, c.ITEM_ID: "i1", c.TIMESTAMP: [f"{LAST}T0{hour}:00" for hour in range(3)]}
    daily.write(LAST, pd.DataFrame(rows))
    daily.take(others=True)

    forget_in_days(daily.raw, daily.examined, "alone")

    assert daily.validate()[0].by_day[LAST].n_rows_in == 0


def test_forgetting_that_was_killed_is_finished_by_the_next(daily: Daily, monkeypatch: pytest.MonkeyPatch) -> None:
    daily.take(others=True)
    daily.validate()

    def killed(name: str) -> None:
        if name == f"renamed-raw_interactions/days/{DATES[1]}":
            raise KeyboardInterrupt

    monkeypatch.setattr(crash_points, "reach", killed)
    with pytest.raises(KeyboardInterrupt):
        forget_in_days(daily.raw, daily.examined, "u1")
    monkeypatch.undo()
    assert "u1" in set(daily.validate()[0].table[c.USER_ID])

    assert forget_in_days(daily.raw, daily.examined, "u1") > 0
    assert "u1" not in set(daily.validate()[0].table[c.USER_ID])


def test_of_a_folder_at_a_url_only_what_changed_is_fetched_and_days_are_told_alike_everywhere(
    daily: Daily, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    get = RemoteFolder.get

    def counted(self: RemoteFolder, name: str, file: Path) -> None:
        fetched.append(name)
        get(self, name, file)

    monkeypatch.setattr(RemoteFolder, "get", counted)
    url = f"file://{daily.folder}"

    def days(machine: str) -> dict[str, str]:
        return dict(FileSource(local_path(url, tmp_path / machine)).by_day(FIRST, LAST).days)

    before = days("one")
    daily.write(LAST, messy(np.random.default_rng(0), LAST))
    after = days("one")

    assert fetched == [f"input/day={day}/part.parquet" for day in (*DATES, LAST)]
    assert {day: after[day] for day in DATES} == before
    assert days("other") == after


def test_more_rows_than_allowed_on_one_day_are_refused(daily: Daily) -> None:
    limited = FileSource(daily.folder, limits=ReadLimits(max_rows=119)).by_day(FIRST, LAST)

    with pytest.raises(InputRejectedError, match="has 120 rows, more than the 119 allowed"):
        take_days(daily.raw, limited, (), others=True)

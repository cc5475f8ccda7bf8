import gzip
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rec_pipeline.engine import columns as c
from rec_pipeline.engine.artifacts import read_table, write_table
from rec_pipeline.engine.data import delimited
from rec_pipeline.engine.data.delimited import UNREADABLE, read_delimited
from rec_pipeline.engine.data.source import FileSource, SampleSource, SourceParams, open_source
from rec_pipeline.engine.data.table import Table
from rec_pipeline.engine.data.validation import MANGLED, ValidationParams, validate_interactions
from rec_pipeline.engine.errors import ConfigurationError, InputRejectedError, RecPipelineError

pytestmark = pytest.mark.filterwarnings(
    "ignore:Series.values returning an ndarray that drops timezone"  # pyarrow 25 asks pandas 3.1 for it when writing
)

CSV = "user_id,item_id,timestamp\n007,a,1700000000\n7,b,1700000001\n"
NOW = pd.Timestamp("2024-06-01", tz="UTC")
LENIENT = ValidationParams(
    min_interactions=1, min_users=0, min_items=1, max_quarantined_share=1, max_unreadable_share=1
)
IDS = ["007", "7", "1e5", "NA", "null", "nan", "", "None", "1.0", "0x1", "TRUE", " x", "用户"]


def source_of(path: Path, content: str | bytes, **columns: str) -> FileSource:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return FileSource(path, columns=columns)


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".tsv", ".parquet"])
def test_ids_stay_the_texts_they_are(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"events{suffix}"
    table = pd.DataFrame({c.USER_ID: IDS, c.ITEM_ID: "i", c.TIMESTAMP: "1700000000"})
    if suffix == ".parquet":
        table.to_parquet(path)
    else:
        table.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")

    read = FileSource(path).read_interactions()

    assert read[c.USER_ID].tolist() == IDS


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".csv.gz"])
def test_rows_with_bytes_that_are_no_utf8_are_told_apart_and_no_other_row_is_lost(tmp_path: Path, suffix: str) -> None:
    content = CSV.encode() + b"\xffx,c,1\n8,\xe9t\xe9,2\n9,d,3\n"
    content = content.replace(b",", b"\t") if suffix == ".tsv" else content
    path = tmp_path / f"events{suffix}"
    source = source_of(path, gzip.compress(content, mtime=0) if suffix == ".csv.gz" else content)

    read = source.read_interactions()
    validated = validate_interactions(read, pd.DataFrame({c.ITEM_ID: list("abcd")}), LENIENT, NOW)

    assert read[c.USER_ID].tolist() == ["007", "7", f"{UNREADABLE}x", "8", "9"]
    assert validated.quarantine[[c.ROW_NUMBER, c.REASON]].to_numpy().tolist() == [
        [2, MANGLED], [3, MANGLED], [4, "timestamp is before 1990-01-01"]
    ]  # fmt: skip


def test_text_of_parquet_that_is_no_utf8_is_told_apart_and_no_other_row_is_lost(tmp_path: Path) -> None:
    users = pa.array([b"007", b"\xffx", None, b"8"]).view(pa.string())
    table = pa.table({c.USER_ID: users, c.ITEM_ID: ["a", "b", "c", "d"], c.TIMESTAMP: [1_700_000_000] * 4})
    pq.write_table(table, tmp_path / "events.parquet")

    read = FileSource(tmp_path / "events.parquet").read_interactions()
    validated = validate_interactions(read, pd.DataFrame({c.ITEM_ID: list("abcd")}), LENIENT, NOW)

    assert validated.table[c.USER_ID].tolist() == ["007", "8"]
    assert validated.quarantine[[c.ROW_NUMBER, c.REASON]].to_numpy().tolist() == [
        [1, MANGLED], [2, "user_id is missing"]
    ]  # fmt: skip


def test_raw_tables_can_be_stored(tmp_path: Path) -> None:
    source = source_of(tmp_path / "events.csv", CSV)

    write_table(tmp_path / "raw.parquet", source.read_interactions())

    pd.testing.assert_frame_equal(read_table(tmp_path / "raw.parquet"), source.read_interactions())


def test_whole_number_ids_of_parquet_are_written_out_even_beside_nulls(tmp_path: Path) -> None:
    path = tmp_path / "events.parquet"
    table = pa.table({c.USER_ID: [7, None, 2**60 + 1], c.ITEM_ID: [1, 2, 3], c.TIMESTAMP: [0, 0, 0]})
    pq.write_table(table, path)  # not by pandas, which would note its own types in the file

    read = FileSource(path).read_interactions()

    assert read[c.USER_ID].fillna("").tolist() == ["7", "", str(2**60 + 1)]
    assert read[c.ITEM_ID].tolist() == ["1", "2", "3"]


def test_fractional_ids_of_parquet_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "events.parquet"
    pd.DataFrame({c.USER_ID: [1.5], c.ITEM_ID: ["i"], c.TIMESTAMP: 0}).to_parquet(path)

    with pytest.raises(InputRejectedError, match=r"events\.parquet: column 'user_id' holds floating"):
        FileSource(path).read_interactions()


def test_columns_are_mapped_and_the_mapped_one_wins(tmp_path: Path) -> None:
    content = "reviewerID,user_id,asin,when\nr1,x,a1,1\n"
    source = source_of(
        tmp_path / "events.csv", content, user_id="reviewerID", item_id="asin", timestamp="when", title="name"
    )

    read = source.read_interactions()

    assert read.to_dict("list") == {"user_id": ["r1"], "item_id": ["a1"], "timestamp": ["1"]}


def test_folder_of_parquet_is_one_table(tmp_path: Path) -> None:
    for number in (1, 2):
        part = pd.DataFrame({c.USER_ID: [f"u{number}"], c.ITEM_ID: ["i"], c.TIMESTAMP: [number]})
        part.to_parquet(tmp_path / f"part-{number}.parquet")

    assert FileSource(tmp_path).read_interactions()[c.USER_ID].tolist() == ["u1", "u2"]


def test_folders_that_only_divide_the_rows_are_no_columns_and_those_of_ours_are(tmp_path: Path) -> None:
    for event_type in ("view", "buy"):
        folder = tmp_path / "day=2024-01-01" / f"event_type={event_type}"
        folder.mkdir(parents=True)
        part = pd.DataFrame({c.USER_ID: ["u"], c.ITEM_ID: ["i"], c.TIMESTAMP: [1]})
        part.to_parquet(folder / "part.parquet")

    read = FileSource(tmp_path).read_interactions()
    mapped = FileSource(tmp_path, columns={c.LOCATION: "day"}).read_interactions()

    assert read.columns.tolist() == [c.USER_ID, c.ITEM_ID, c.TIMESTAMP, c.EVENT_TYPE]
    assert read[c.EVENT_TYPE].tolist() == ["buy", "view"]
    assert mapped[c.LOCATION].tolist() == ["2024-01-01"] * 2


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".tsv.gz"])
def test_files_are_read_some_rows_at_a_time_in_order(tmp_path: Path, suffix: str) -> None:
    rows = np.arange(300_000)
    table = pd.DataFrame({c.USER_ID: rows.astype(str), c.ITEM_ID: "i", c.TIMESTAMP: rows})
    path = tmp_path / f"events{suffix}"
    if suffix == ".parquet":
        path.mkdir()
        for number in range(3):
            table[number * 100_000 : (number + 1) * 100_000].to_parquet(path / f"part-{number}.parquet")
    else:
        table.to_csv(path, index=False, sep="\t" if ".tsv" in suffix else ",")

    parts = list(FileSource(path).iterate_interactions())

    assert max(map(len, parts)) < 200_000
    assert pd.concat(parts)[c.TIMESTAMP].astype(int).tolist() == rows.tolist()


LINES = ["007,a,1700000000", '"7\nor ""8""",b,1700000001', "8,\xe9t\xe9,2", "9,用户,3", "", "10,d,4"] * 40


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_where_the_pieces_that_are_read_end_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    content = ending.join(["user_id,item_id,timestamp", *LINES, ""]).encode()
    content = content.replace("\xe9".encode(), b"\xe9\xe9")  # of another encoding
    source = source_of(tmp_path / "events.csv", content)
    several = tmp_path / "events.dat"
    several.write_bytes(content.replace(b",", b"::"))

    def read() -> tuple[pd.DataFrame, pd.DataFrame, int]:
        parts = list(source.iterate_interactions())
        return pd.concat(parts, ignore_index=True), read_delimited(several, delimiter="::"), len(parts)

    whole, of_several, n_parts = read()
    monkeypatch.setattr(delimited, "_CHUNK_BYTES", 64)
    in_pieces, of_several_in_pieces, n_pieces = read()

    assert (n_parts, n_pieces > 20) == (1, True)
    assert whole[c.ITEM_ID].tolist() == ["a", "b", f"{UNREADABLE}t{UNREADABLE}", "用户", "d"] * 40
    for table in (of_several, in_pieces, of_several_in_pieces):
        pd.testing.assert_frame_equal(table, whole)


def test_a_refused_row_far_down_a_file_has_its_own_number(tmp_path: Path) -> None:
    rows = [f"u{row % 50},{'no such item' if row == 90_000 else 'a'},{1_700_000_000 + row}" for row in range(100_000)]
    source = source_of(tmp_path / "events.csv", "\n".join(["user_id,item_id,timestamp", *rows, ""]))

    parts = list(source.iterate_interactions())
    validated = validate_interactions(Table(tuple(parts)), pd.DataFrame({c.ITEM_ID: ["a"]}), LENIENT, NOW)

    assert len(parts) > 1
    assert validated.quarantine[c.ROW_NUMBER].tolist() == [90_000]


def test_a_reader_that_stops_early_leaves_no_file_open(tmp_path: Path) -> None:
    rows = "".join(f"u{row},a,1\n" for row in range(300_000))
    source = source_of(tmp_path / "events.csv", "user_id,item_id,timestamp\n" + rows)

    parts = source.iterate_interactions()
    next(parts)
    parts.close()

    assert str(tmp_path / "events.csv") not in {str(path.resolve()) for path in Path("/proc/self/fd").iterdir()}


def test_without_items_the_catalogue_is_what_was_interacted_with(tmp_path: Path) -> None:
    items = source_of(tmp_path / "events.csv", CSV + "8,a,1700000002\n").read_items()

    assert items.to_dict("list") == {c.ITEM_ID: ["a", "b"], c.TITLE: ["", ""]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("e.csv", "", r"e.csv is empty \(0 bytes\)"),
        ("e.csv", "user_id,item_id,timestamp\n", "e.csv holds no rows"),
        ("e.csv", b"user_id,item\xff,timestamp\n1,2,3\n", "e.csv cannot be read as .*: the header .* no UTF-8"),
        ("e.csv", CSV + "8," + "c" * 3_000_000 + ",1\n", "e.csv cannot be read .*: it has a line of more than 1048576"),
        ("e.csv", CSV[:-4], r"e.csv does not end in a newline .* '7,b,170000"),
        ("e.csv", CSV + "8,c\n", "e.csv cannot be read as delimited text: .*Expected 3 columns, got 2"),
        ("e.csv", CSV + "8,c,1,2\n", "e.csv cannot be read as delimited text: .*Expected 3 columns, got 4"),
        ("e.csv", CSV.replace("item_id", "user_id"), "e.csv: the header names column 'user_id' twice"),
        ("e.csv", CSV.replace("timestamp", "time"), "e.csv: column 'timestamp' is missing, found 'user_id', 'item_id'"),
        ("e.csv.gz", gzip.compress(CSV.encode(), mtime=0)[:-9], "e.csv.gz is a truncated or corrupt gzip"),
        ("e.csv.gz", CSV, "e.csv.gz is a truncated or corrupt gzip"),
        ("e.csv.gz", gzip.compress(b"\n" * 10_000_000, mtime=0), "inflates to more than 200 times"),
        ("e.parquet", b"PAR1 and then nothing", "e.parquet cannot be read as Parquet"),
        ("e.parquet", b"", r"e.parquet is empty \(0 bytes\)"),
    ],
)  # fmt: skip
def test_broken_file_is_refused_by_name(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    source = source_of(tmp_path / name, content)

    with pytest.raises(InputRejectedError, match=message):
        source.read_interactions()


def test_truncated_parquet_is_refused_at_any_length(tmp_path: Path) -> None:
    path = tmp_path / "events.parquet"
    pd.DataFrame({c.USER_ID: ["u"] * 500, c.ITEM_ID: "i", c.TIMESTAMP: range(500)}).to_parquet(path)
    content = path.read_bytes()

    for length in range(1, len(content), len(content) // 20):
        path.write_bytes(content[:length])
        with pytest.raises(InputRejectedError, match=r"events\.parquet"):
            FileSource(path).read_interactions()


def test_any_bytes_are_read_or_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    for name in ("e.csv", "e.csv.gz", "e.tsv", "e.parquet"):
        for _ in range(25):
            content = bytes(rng.integers(0, 256, size=int(rng.integers(0, 60)), dtype="uint8")) + b"\n"
            with pytest.raises(RecPipelineError):
                source_of(tmp_path / name, content).read_interactions()


def test_mapped_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    source = source_of(tmp_path / "events.csv", CSV, rating="overall")

    with pytest.raises(InputRejectedError, match="column 'overall', to be read as 'rating', is missing"):
        source.read_interactions()


def test_fingerprint_changes_with_the_file_alone(tmp_path: Path) -> None:
    source = source_of(tmp_path / "events.csv", CSV)
    before = source.fingerprint()

    assert source.fingerprint() == before
    os.utime(tmp_path / "events.csv", ns=(0, 0))
    assert source.fingerprint() != before


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"dataset": "netflix"}, "'netflix' is unknown, expected one of sample, ml-100k"),
        ({"dataset": "files"}, "needs the path of the interactions"),
        ({"dataset": "files", "interactions": "nowhere.csv"}, "no file or folder nowhere.csv"),
        ({"dataset": "files", "interactions": __file__, "items": "nowhere.csv"}, "no file or folder nowhere.csv"),
        ({"dataset": "files", "interactions": __file__, "columns": {"uid": "u"}}, "'uid' is not a column of ours"),
        ({"dataset": "ml-1m", "data_dir": "nowhere"}, "no folder nowhere, expected the unpacked ml-1m.zip"),
    ],
)
def test_settings_that_cannot_be_used_say_what_to_do(params: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        open_source(SourceParams(**params))


def test_file_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    source = source_of(tmp_path / "events.xlsx", CSV)

    with pytest.raises(ConfigurationError, match=r"expected a name ending in \.csv"):
        source.read_interactions()


def test_missing_file_and_empty_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputRejectedError, match=r"without a \.parquet file"):
        FileSource(tmp_path).read_interactions()
    with pytest.raises(InputRejectedError, match=r"there is no file .*gone\.csv"):
        FileSource(tmp_path / "gone.csv").read_interactions()


def test_sample_is_read_where_it_lies_and_generated_where_it_does_not(tmp_path: Path) -> None:
    lying, generated = SampleSource(), SampleSource(tmp_path / "absent")

    pd.testing.assert_frame_equal(lying.read_items(), generated.read_items())
    assert "generated" in generated.describe()
    assert generated.fingerprint() != lying.fingerprint()
    assert isinstance(open_source(SourceParams()), SampleSource)

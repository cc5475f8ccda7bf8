"""What a damaged input does: it is refused, or it is read as if it were not damaged; never as something else."""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rec_pipeline.engine import columns as c
from rec_pipeline.engine.artifacts import write_table
from rec_pipeline.engine.data import delimited
from rec_pipeline.engine.data.files import SUMS, ReadLimits, unchanged, write_checksums
from rec_pipeline.engine.data.movielens import MovieLensSource
from rec_pipeline.engine.data.source import SAMPLE_DIRECTORY, FileSource, SampleSource
from rec_pipeline.engine.errors import InputRejectedError, RecPipelineError

pytestmark = pytest.mark.filterwarnings(
    "ignore:Series.values returning an ndarray that drops timezone"  # pyarrow 25 asks pandas 3.1 for it when writing
)
N_FLIPS = 500
PAGE = 4096
FORMATS = ("csv", "tsv", "csv.gz", "tsv.gz", "parquet")


def events(n_rows: int) -> pd.DataFrame:
    rng = np.random.default_rng(5)
    return pd.DataFrame(
        {
            c.USER_ID: [f"u{number:04d}" for number in rng.integers(0, 500, n_rows)],
            c.ITEM_ID: [f"i{number:04d}" for number in rng.integers(0, 900, n_rows)],
            c.TIMESTAMP: [str(1_700_000_000 + number) for number in rng.integers(0, 10**6, n_rows)],
            c.RATING: [str(number) for number in rng.integers(1, 6, n_rows)],
        }
    )


def write(path: Path, table: pd.DataFrame, *, summed: bool = True) -> Path:
    if path.name.endswith(".parquet"):
        write_table(path, table)
    else:
        table.to_csv(path, index=False, sep="\t" if ".tsv" in path.name else ",")
    if summed:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        path.with_name(f"{path.name}.sha256").write_text(f"{digest}  {path.name}\n")
    return path


def outcome(path: Path, original: pd.DataFrame) -> str:
    try:
        read = FileSource(path).read_interactions()
    except InputRejectedError:
        return "rejected"
    return "identical" if read.equals(original) else "different"


def outcomes_of_flips(path: Path, n_flips: int) -> set[str]:
    original, whole = FileSource(path).read_interactions(), path.read_bytes()
    rng = np.random.default_rng(17)
    found = set()
    for position, bit in zip(rng.integers(0, len(whole), n_flips), rng.integers(0, 8, n_flips), strict=True):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << bit
        path.write_bytes(damaged)
        found.add(outcome(path, original))
    return found


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_flipped_bit_is_never_read_as_other_data(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"events.{suffix}", events(300))

    assert outcomes_of_flips(path, N_FLIPS) <= {"rejected", "identical"}


@pytest.mark.parametrize("suffix", ["csv", "csv.gz"])
def test_a_flipped_bit_in_a_file_of_many_pieces_is_never_read_as_other_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(delimited, "_CHUNK_BYTES", 256)
    path = write(tmp_path / f"events.{suffix}", events(300))

    assert outcomes_of_flips(path, N_FLIPS) <= {"rejected", "identical"}


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_without_a_checksum_flipped_bits_go_unnoticed_in_text(tmp_path: Path, suffix: str) -> None:
    """The twin of the test above: what the checksum is for."""
    path = write(tmp_path / f"events.{suffix}", events(300), summed=False)

    assert "different" in outcomes_of_flips(path, 60)


@pytest.mark.parametrize("suffix", ["csv.gz", "parquet"])
def test_pages_and_archives_notice_flipped_bits_by_themselves(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"events.{suffix}", events(300), summed=False)
    original, whole = FileSource(path).read_interactions(), path.read_bytes()
    rng = np.random.default_rng(23)
    end = len(whole) - 8 if suffix == "csv.gz" else len(whole) // 3  # pages come first, the footer has no checksum

    for position in rng.integers(4, end, 100):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        assert outcome(path, original) in {"rejected", "identical"}


MOVIELENS = {
    "ml-100k": ("u.data", "u.item"),
    "ml-1m": ("ratings.dat", "movies.dat"),
    "ml-latest-small": ("ratings.csv", "movies.csv"),
}


def movielens_set(folder: Path, name: str) -> MovieLensSource:
    """Write a small set in one of GroupLens's layouts, with overviews and a list of checksums."""
    rng, (ratings, movies) = np.random.default_rng(11), MOVIELENS[name]
    rows = [[str(value) for value in rng.integers(1, 900, 4)] for _ in range(60)]
    flags = "|".join(["0"] * 19)
    titles = {
        "u.item": [f"{number}|Film {number} (1995)|||http://|{flags}" for number in range(40)],
        "movies.dat": [f"{number}::Film {number} (1995)::Drama|War" for number in range(40)],
        "movies.csv": ["movieId,title,genres", *(f'{number},"Film, {number}",Drama|War' for number in range(40))],
    }
    separator = {"u.data": "\t", "ratings.dat": "::", "ratings.csv": ","}[ratings]
    header = ["userId,movieId,rating,timestamp"] if ratings == "ratings.csv" else []
    lines = {ratings: [*header, *(separator.join(row) for row in rows)], movies: titles[movies]}
    for file, content in lines.items():
        (folder / file).write_text("".join(f"{line}\n" for line in content))
    overviews = pd.DataFrame({"movieId": [str(number) for number in range(40)], "description": "Of a film."})
    write_table(folder / "overviews.parquet", overviews)
    names = (ratings, movies, "overviews.parquet")
    sums = [f"{hashlib.sha256((folder / file).read_bytes()).hexdigest()}  {file}\n" for file in names]
    (folder / SUMS).write_text("".join(sums))
    return MovieLensSource(name, folder)


def outcomes_of_flips_in(files: Sequence[Path], read: Callable[[], pd.DataFrame]) -> set[str]:
    """Flip one bit at a time in any of the files, ``N_FLIPS`` times in all, and read everything."""
    original, rng = read(), np.random.default_rng(29)
    found = set()
    for file in rng.choice(np.array(files, dtype=object), N_FLIPS):
        whole = file.read_bytes()
        damaged = bytearray(whole)
        damaged[int(rng.integers(len(whole)))] ^= 1 << int(rng.integers(8))
        file.write_bytes(damaged)
        try:
            found.add("identical" if read().equals(original) else "different")
        except RecPipelineError:
            found.add("rejected")
        file.write_bytes(whole)
    return found


@pytest.mark.parametrize("name", MOVIELENS)
def test_a_flipped_bit_in_a_movielens_set_or_its_list_is_never_read_as_other_data(tmp_path: Path, name: str) -> None:
    source = movielens_set(tmp_path, name)

    def read() -> pd.DataFrame:
        return pd.concat([source.read_interactions(), source.read_items()])

    assert outcomes_of_flips_in(sorted(tmp_path.iterdir()), read) <= {"rejected", "identical"}


def test_a_flipped_bit_in_a_folder_or_its_list_is_never_read_as_other_data(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / f"part-{number}.parquet", events(40), summed=False)
    write_checksums(tmp_path)
    source = FileSource(tmp_path)

    found = outcomes_of_flips_in(sorted(tmp_path.iterdir()), source.read_interactions)

    assert found <= {"rejected", "identical"}


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_flipped_bit_in_items_or_their_checksum_is_never_read_as_other_data(tmp_path: Path, suffix: str) -> None:
    table = pd.DataFrame({c.ITEM_ID: [f"i{number}" for number in range(50)], c.TITLE: "A title"})
    write(tmp_path / f"items.{suffix}", table)
    source = FileSource(tmp_path / "none.csv", tmp_path / f"items.{suffix}")

    assert outcomes_of_flips_in(sorted(tmp_path.iterdir()), source.read_items) <= {"rejected", "identical"}


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_cut_at_any_page_or_in_a_row_is_refused(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"events.{suffix}", events(2000))
    whole = path.read_bytes()
    lengths = [*range(0, len(whole), PAGE), *range(len(whole) - 40, len(whole))]

    for length in lengths:
        path.write_bytes(whole[:length])
        with pytest.raises(InputRejectedError, match=path.name):
            FileSource(path).read_interactions()


def test_a_cut_at_the_end_of_a_row_is_found_by_the_checksum_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "events.csv", events(50))
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-10]))

    with pytest.raises(InputRejectedError, match=r"events\.csv .* has sha256 .* but events\.csv\.sha256 says"):
        FileSource(path).read_interactions()
    (tmp_path / "events.csv.sha256").unlink()
    assert len(FileSource(path).read_interactions()) == 40


def test_a_folder_is_held_to_its_list(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / f"part-{number}.parquet", events(20), summed=False)
    write_checksums(tmp_path)
    assert len(FileSource(tmp_path).read_interactions()) == 60

    kept = (tmp_path / "part-1.parquet").read_bytes()
    (tmp_path / "part-1.parquet").unlink()
    with pytest.raises(InputRejectedError, match=r"lacks 'part-1.parquet', unlike its SHA256SUMS"):
        FileSource(tmp_path).read_interactions()
    (tmp_path / "part-1.parquet").write_bytes(kept)
    write(tmp_path / "part-9.parquet", events(20), summed=False)
    with pytest.raises(InputRejectedError, match=r"holds 'part-9.parquet', unlike its SHA256SUMS"):
        FileSource(tmp_path).read_interactions()


def test_a_required_checksum_must_be_there(tmp_path: Path) -> None:
    strict = ReadLimits(require_checksums=True)
    path = write(tmp_path / "events.csv", events(5))
    assert len(FileSource(path, limits=strict).read_interactions()) == 5

    (tmp_path / "events.csv.sha256").unlink()

    with pytest.raises(InputRejectedError, match=r"no checksum, which is required here: `sha256sum events\.csv >"):
        FileSource(path, limits=strict).read_interactions()


@pytest.mark.parametrize("content", ["", "deadbeef  events.csv\n", "not a digest at all\n", "\x00\xff"])
def test_something_else_in_place_of_a_checksum_is_refused(tmp_path: Path, content: str) -> None:
    path = write(tmp_path / "events.csv", events(5))
    (tmp_path / "events.csv.sha256").write_text(content)

    with pytest.raises(InputRejectedError, match=r"events\.csv\.sha256"):
        FileSource(path).read_interactions()


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_more_rows_than_allowed_are_refused_before_they_are_parsed(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"events.{suffix}", events(11))

    assert len(FileSource(path, limits=ReadLimits(max_rows=11)).read_interactions()) == 11
    with pytest.raises(InputRejectedError, match="more than the 9 allowed"):
        FileSource(path, limits=ReadLimits(max_rows=9)).read_interactions()


def test_a_parquet_file_made_to_fill_the_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "events.parquet"
    bomb = pd.DataFrame({c.USER_ID: ["u" * 200] * 400_000, c.ITEM_ID: "i", c.TIMESTAMP: 0})
    bomb.to_parquet(path, compression="zstd", use_dictionary=False)

    with pytest.raises(InputRejectedError, match="inflates to more than 200 times"):
        FileSource(path).read_interactions()


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder, outside = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    outside.mkdir()
    secret = write(outside / "secret.parquet", events(5), summed=False)
    (folder / "part-0.parquet").symlink_to(secret)
    (folder / "events.csv").symlink_to(write(outside / "events.csv", events(5), summed=False))

    for path in (folder, folder / "events.csv"):
        with pytest.raises(InputRejectedError, match=r"is a link to .* out of its folder"):
            FileSource(path).read_interactions()


def test_a_link_within_the_folder_is_followed(tmp_path: Path) -> None:
    write(tmp_path / "2024-02-10.csv", events(5), summed=False)
    (tmp_path / "latest.csv").symlink_to("2024-02-10.csv")

    assert len(FileSource(tmp_path / "latest.csv").read_interactions()) == 5


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "events.csv")

    with pytest.raises(InputRejectedError, match="there is no file"):
        FileSource(tmp_path / "events.csv").read_interactions()


@pytest.mark.parametrize(
    "change",
    [lambda path: path.write_text("longer than it was"), lambda path: os.utime(path, ns=(1, 1))],
    ids=["grown", "touched"],
)
def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, change: Callable[[Path], object]) -> None:
    path = write(tmp_path / "events.csv", events(5))

    with pytest.raises(InputRejectedError, match="changed while it was read"), unchanged(path):
        change(path)


def test_the_bundled_sample_is_held_to_its_list(tmp_path: Path) -> None:
    for path in SAMPLE_DIRECTORY.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert len(SampleSource(tmp_path).read_items()) > 1000
    assert (tmp_path / SUMS).is_file()

    content = bytearray((tmp_path / "items.parquet").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "items.parquet").write_bytes(content)

    with pytest.raises(InputRejectedError, match=r"items\.parquet .* has sha256"):
        SampleSource(tmp_path).read_items()

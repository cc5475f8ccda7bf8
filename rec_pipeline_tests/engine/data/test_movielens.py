import hashlib
import io
import threading
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pytest

from rec_pipeline.engine import columns as c
from rec_pipeline.engine.data import movielens
from rec_pipeline.engine.data.movielens import MovieLensSource, download_movielens
from rec_pipeline.engine.data.source import SourceParams, open_source
from rec_pipeline.engine.errors import ConfigurationError

RATINGS = [("1", "10", "5", "978300760"), ("2", "20", "3", "978302109")]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """Yield a folder and the address at which a local server offers it."""
    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def archive_of(files: dict[str, str]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as zipped:
        for name, text in files.items():
            zipped.writestr(name, text)
    return content.getvalue()


def offer(served: tuple[Path, str], content: bytes, monkeypatch: pytest.MonkeyPatch) -> str:
    """Serve ``content`` as ml-1m.zip with its checksum being the expected one; return the base address."""
    folder, url = served
    (folder / "ml-1m.zip").write_bytes(content)
    monkeypatch.setitem(movielens.ARCHIVES, "ml-1m", f"sha256:{hashlib.sha256(content).hexdigest()}")
    return url


ARCHIVE = archive_of(
    {"ml-1m/ratings.dat": "1::10::5::978300760\n", "ml-1m/movies.dat": "10::Heat (1995)::Action|Crime\n"}
)


def test_layout_of_100k(tmp_path: Path) -> None:
    flags = ["0"] * 19
    flags[1] = flags[7] = "1"
    unknown = ["1"] + ["0"] * 18
    (tmp_path / "u.data").write_text("".join("\t".join(row) + "\n" for row in RATINGS))
    films = [
        ["10", 'Cité "perdue", La (1995)', "01-Jan-1995", "", "", *flags],
        ["20", "unknown", "", "", "", *unknown],
    ]
    (tmp_path / "u.item").write_text("".join("|".join(row) + "\n" for row in films), encoding="latin-1")

    source = MovieLensSource("ml-100k", tmp_path)

    assert list(source.read_interactions().itertuples(index=False, name=None)) == RATINGS
    assert source.read_items().to_dict("list") == {
        c.ITEM_ID: ["10", "20"],
        c.TITLE: ['Cité "perdue", La (1995)', "unknown"],
        c.DESCRIPTION: ["", ""],
        c.CATEGORIES: ["Action|Documentary", ""],
    }


def test_layout_of_1m(tmp_path: Path) -> None:
    (tmp_path / "ratings.dat").write_text("".join("::".join(row) + "\n" for row in RATINGS))
    (tmp_path / "movies.dat").write_text("10::Léon: The Pro (1994)::Crime|Drama\n", encoding="latin-1")

    source = MovieLensSource("ml-1m", tmp_path)

    assert list(source.read_interactions().itertuples(index=False, name=None)) == RATINGS
    assert source.read_items()[c.TITLE].tolist() == ["Léon: The Pro (1994)"]
    assert source.read_items()[c.CATEGORIES].tolist() == ["Crime|Drama"]


def test_layout_of_the_csv_sets_and_overviews(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text(
        "userId,movieId,rating,timestamp\n" + "".join(",".join(r) + "\n" for r in RATINGS)
    )
    (tmp_path / "movies.csv").write_text(
        'movieId,title,genres\n10,"Ringer, The (2005)",Comedy\n20,Zoo,(no genres listed)\n30,Ark,Drama\n'
    )
    source = MovieLensSource("ml-32m", tmp_path)
    before = source.fingerprint()
    overviews = pd.DataFrame({"movieId": [20, 10], "description": ["Of animals.", "Of another film."]})
    overviews.assign(overview_id_matches=[True, False]).to_parquet(tmp_path / "overviews.parquet")

    items = source.read_items()

    assert list(source.read_interactions().itertuples(index=False, name=None)) == RATINGS
    assert items[c.TITLE].tolist() == ["Ringer, The (2005)", "Zoo", "Ark"]
    assert items[c.DESCRIPTION].tolist() == ["", "Of animals.", ""]
    assert items[c.CATEGORIES].tolist() == ["Comedy", "", "Drama"]
    assert source.fingerprint() != before


def test_folder_of_something_else_is_described(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()

    with pytest.raises(ConfigurationError, match=r"holds holiday.jpg; expected the files of ml-1m: u\.data"):
        MovieLensSource("ml-1m", tmp_path).read_items()


def test_archive_is_fetched_once_and_read(
    served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = offer(served, ARCHIVE, monkeypatch)
    params = SourceParams(dataset="ml-1m", download_dir=str(tmp_path / "downloads"), movielens_url=url)

    first = open_source(params)
    (served[0] / "ml-1m.zip").unlink()
    again = open_source(params)

    assert first.read_items()[c.TITLE].tolist() == again.read_items()[c.TITLE].tolist() == ["Heat (1995)"]
    assert [path.name for path in (tmp_path / "downloads").iterdir()] == ["ml-1m"]


def test_wrong_checksum_leaves_nothing_behind(served: tuple[Path, str], tmp_path: Path) -> None:
    (served[0] / "ml-1m.zip").write_bytes(ARCHIVE)

    with pytest.raises(ConfigurationError, match=r"checksum md5:[0-9a-f]{32}, expected md5:c4d9eecf.*--data-dir"):
        download_movielens("ml-1m", tmp_path / "downloads", served[1])
    assert not list((tmp_path / "downloads").iterdir())


def test_what_is_no_archive_leaves_nothing_behind(
    served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = offer(served, b"<html>we have moved</html>", monkeypatch)

    with pytest.raises(ConfigurationError, match="not a whole zip archive"):
        download_movielens("ml-1m", tmp_path / "downloads", url)
    assert not list((tmp_path / "downloads").iterdir())


def test_missing_archive_and_refused_connection_say_what_to_do(served: tuple[Path, str], tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as unused:
        closed = f"http://127.0.0.1:{unused.server_port}"

    with pytest.raises(ConfigurationError, match=r"404.*fetch http://.*/ml-1m.zip by other means.*--data-dir"):
        download_movielens("ml-1m", tmp_path, served[1])
    with pytest.raises(ConfigurationError, match=r"cannot be downloaded.*refused.*--data-dir"):
        download_movielens("ml-1m", tmp_path, closed)


def test_address_of_a_local_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="begins with https"):
        download_movielens("ml-1m", tmp_path, "file:///etc")


def test_s13_members_of_an_archive_cannot_land_outside(
    served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = offer(served, archive_of({"../../outside.txt": "x", "/etc/absolute.txt": "y"}), monkeypatch)

    folder = download_movielens("ml-1m", tmp_path / "downloads", url)

    assert sorted(path.name for path in folder.iterdir()) == ["absolute.txt", "outside.txt"]
    assert not list(tmp_path.glob("*outside*"))


@pytest.mark.parametrize(
    ("name", "n_ratings", "n_items", "n_described"),
    [("ml-100k", 100_000, 1_682, 0), ("ml-latest-small", 100_836, 9_742, 9_202)],
)
def test_real_sets_have_their_published_counts(
    shared_data: Callable[[str], Path], name: str, n_ratings: int, n_items: int, n_described: int
) -> None:
    source = MovieLensSource(name, shared_data(name))

    items = source.read_items()

    assert len(source.read_interactions()) == n_ratings
    assert len(items) == n_items
    assert (items[c.DESCRIPTION] != "").sum() == n_described

"""
MovieLens in GroupLens's own layouts, from a folder or from GroupLens's server.

Harper & Konstan (2015), "The MovieLens Datasets", ACM TiiS 5(4). Three layouts: ``u.data`` (100k), ``ratings.dat`` (1m)
and ``ratings.csv`` (all others). If the folder also holds ``overviews.parquet`` (``movieId``, ``description`` and,
optionally, ``overview_id_matches``) the items carry those texts; where the flag is false the text tells of another film
of that title more often than not, and the item stays without one.
"""

import hashlib
import http.client
import os
import shutil
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pandas as pd

from rec_pipeline.engine import columns as c
from rec_pipeline.engine.data.delimited import iterate_delimited, read_delimited
from rec_pipeline.engine.data.files import fingerprint_of
from rec_pipeline.engine.data.reading import ids_as_text, read_parquet, require_columns
from rec_pipeline.engine.data.table import joined
from rec_pipeline.engine.errors import ConfigurationError

MOVIELENS_URL: Final = "https://files.grouplens.org/datasets/movielens"
# As published beside the archives (.md5), or, for latest-small, as found alike in many projects that use it.
ARCHIVES: Final = {
    "ml-100k": "md5:0e33842e24a9c977be4e0107933c0723",
    "ml-latest-small": "sha256:696d65a3dfceac7c45750ad32df2c259311949efec81f0f144fdfb91ebc9e436",
    "ml-1m": "md5:c4d9eecfca2ab87c1945afe126590906",
    "ml-20m": "md5:cd245b17a1ae2cc31bb14903e1204af3",
    "ml-25m": "md5:6b51fb2759a8657d3bfcbfc42b592ada",
    "ml-32m": "md5:d472be332d4daa821edc399621853b57",
}
OVERVIEWS: Final = "overviews.parquet"
TIMEOUT_SECONDS: Final = 30
_CHUNK_BYTES: Final = 1 << 18
_RATINGS: Final = (c.USER_ID, c.ITEM_ID, c.RATING, c.TIMESTAMP)
_NO_GENRES: Final = ("(no genres listed)", "unknown")
_GENRES_100K: Final = (
    "unknown", "Action", "Adventure", "Animation", "Children", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip


@dataclass(frozen=True)
class MovieLensSource:
    """
    One MovieLens set in a local folder.

    Attributes
    ----------
    dataset
        Its name, for messages.
    folder
        Where its files are.
    """

    dataset: str
    folder: Path

    def read_interactions(self) -> pd.DataFrame:
        """Return all that ``iterate_interactions`` yields."""
        return joined(self.iterate_interactions())

    def iterate_interactions(self) -> Iterator[pd.DataFrame]:
        """Yield ``user_id``, ``item_id``, ``rating``, ``timestamp`` as text, in order, some rows at a time."""
        path, _ = self._paths()
        if path.name == "ratings.csv":
            for table in iterate_delimited(path):
                require_columns(table, ("userId", "movieId", "rating", "timestamp"), str(path))
                yield table.rename(columns={"userId": c.USER_ID, "movieId": c.ITEM_ID})[list(_RATINGS)]
        else:
            delimiter = "\t" if path.name == "u.data" else "::"
            yield from iterate_delimited(path, delimiter=delimiter, names=_RATINGS, quoted=False)

    def read_items(self) -> pd.DataFrame:
        """Return ``item_id``, ``title``, ``description`` (empty if there is none) and ``categories`` ("|"-joined)."""
        _, path = self._paths()
        if path.name == "u.item":
            fields = (c.ITEM_ID, c.TITLE, "released", "video", "imdb", *_GENRES_100K)
            table = read_delimited(path, delimiter="|", names=fields, encoding="latin-1", quoted=False)
            flags = table[list(_GENRES_100K)].to_numpy() == "1"
            genres = ["|".join(genre for genre, on in zip(_GENRES_100K, row, strict=True) if on) for row in flags]
        elif path.name == "movies.dat":
            columns = (c.ITEM_ID, c.TITLE, c.CATEGORIES)
            table = read_delimited(path, delimiter="::", names=columns, encoding="latin-1", quoted=False)
            genres = table[c.CATEGORIES].to_list()
        else:
            table = read_delimited(path)
            require_columns(table, ("movieId", "title", "genres"), str(path))
            table = table.rename(columns={"movieId": c.ITEM_ID})
            genres = table["genres"].to_list()
        items = table[[c.ITEM_ID, c.TITLE]].copy()
        items[c.DESCRIPTION] = self._descriptions(items[c.ITEM_ID])
        items[c.CATEGORIES] = pd.Series(["" if genre in _NO_GENRES else genre for genre in genres], dtype="str")
        return items

    def fingerprint(self) -> str:
        """Return the digest of the files' names, sizes and times."""
        overviews = self.folder / OVERVIEWS
        return fingerprint_of([*self._paths(), *([overviews] if overviews.is_file() else [])])

    def describe(self) -> str:
        """Name data set and folder."""
        return f"{self.dataset} in {self.folder}"

    def _paths(self) -> tuple[Path, Path]:
        for pair in (("u.data", "u.item"), ("ratings.csv", "movies.csv"), ("ratings.dat", "movies.dat")):
            ratings, movies = (self.folder / name for name in pair)
            if ratings.is_file() and movies.is_file():
                return ratings, movies
        found = ", ".join(sorted(path.name for path in self.folder.iterdir())[:10]) or "nothing"
        raise ConfigurationError(
            f"{self.folder} holds {found}; expected the files of {self.dataset}: u.data and u.item, ratings.csv and "
            "movies.csv, or ratings.dat and movies.dat"
        )

    def _descriptions(self, item_ids: pd.Series) -> pd.Series:
        path = self.folder / OVERVIEWS
        if not path.is_file():
            return pd.Series("", index=item_ids.index, dtype="str")
        overviews = read_parquet(path)
        require_columns(overviews, ("movieId", c.DESCRIPTION), str(path))
        if "overview_id_matches" in overviews:
            overviews = overviews[overviews["overview_id_matches"]]
        overviews = ids_as_text(overviews.rename(columns={"movieId": c.ITEM_ID}), str(path)).drop_duplicates(c.ITEM_ID)
        return item_ids.map(overviews.set_index(c.ITEM_ID)[c.DESCRIPTION]).fillna("").astype("str")


def download_movielens(dataset: str, directory: Path, base_url: str = MOVIELENS_URL) -> Path:
    """
    Return the folder of a MovieLens set below ``directory``, fetched and checked first unless it is there.

    Raises
    ------
    ConfigurationError
        If it cannot be fetched, or what was fetched has another checksum or is not an archive. Nothing is left behind.
    """
    folder = directory / dataset
    if folder.is_dir():
        return folder
    url = f"{base_url.rstrip('/')}/{dataset}.zip"
    by_hand = f"fetch {url} by other means, unpack it and name its folder with --data-dir"
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{dataset}-", dir=directory) as name:
        archive, unpacked = Path(name) / "archive.zip", Path(name) / "unpacked"
        try:
            found = _fetch(url, archive, hashlib.new(ARCHIVES[dataset].split(":")[0], usedforsecurity=False))
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            raise ConfigurationError(f"{url} cannot be downloaded ({error}); {by_hand}") from error
        if found != ARCHIVES[dataset]:
            raise ConfigurationError(
                f"{url} has checksum {found}, expected {ARCHIVES[dataset]}; try again, or {by_hand}"
            )
        try:
            _unpack(archive, unpacked)
        except zipfile.BadZipFile as error:
            raise ConfigurationError(f"{url} is not a whole zip archive ({error}); try again, or {by_hand}") from error
        try:
            unpacked.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was here first, with the same content
                raise
    return folder


def _fetch(url: str, target: Path, digest: "hashlib._Hash") -> str:
    """Write what ``url`` gives to ``target``, showing progress, and return its checksum as ``algorithm:hex``."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    if not url.startswith(("https://", "http://")):
        raise ConfigurationError(f"{url}: expected an address that begins with https:// or http://")
    shown = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    bar = Progress(*shown, console=Console(stderr=True))
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response, target.open("wb") as file, bar:  # noqa: S310 - scheme checked above
        length = response.headers.get("Content-Length")
        task = bar.add_task(url.rsplit("/", 1)[-1], total=int(length) if length else None)
        while chunk := response.read(_CHUNK_BYTES):
            file.write(chunk)
            digest.update(chunk)
            bar.advance(task, len(chunk))
        file.flush()
        os.fsync(file.fileno())
    return f"{digest.name}:{digest.hexdigest()}"


def _unpack(archive: Path, target: Path) -> None:
    """Extract the files of the archive's one folder; only their names count, so that none can land elsewhere."""
    target.mkdir()
    with zipfile.ZipFile(archive) as zipped:
        for member in zipped.infolist():
            name = Path(member.filename).name
            if member.is_dir() or not name or name.startswith("."):
                continue
            with zipped.open(member) as source, (target / name).open("xb") as file:
                shutil.copyfileobj(source, file)

"""
Sealed generations: every user's list on disk, checked, numbered and never changed again.

A generation is the directory ``<root>/<number:08d>`` with Parquet parts of one row a user, the popular list, and a
manifest written last. It is what a publication sends, what a rollback sends again, and where ``trace`` looks a list up.
Reading is by row group, so memory is bounded by ``ROWS_PER_GROUP`` lists however many users there are. Where the root
has a mirror, the generations are those of the mirror, and a file of one is fetched when it is read.
"""

import os
import shutil
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rec_pipeline.engine import crash_points, mirrors
from rec_pipeline.engine.artifacts import (
    MANIFEST,
    Manifest,
    read_json,
    read_manifest,
    seal_directory,
    sha256_of,
    verify_directory,
    verify_file,
    write_json,
)
from rec_pipeline.engine.columns import ITEM_ID, ORIGIN, REASON, SCORE, SOURCES, USER_ID
from rec_pipeline.engine.data.ids import are_valid_ids
from rec_pipeline.engine.errors import ArtifactIntegrityError, GateRefusedError
from rec_pipeline.engine.pseudonyms import pseudonym
from rec_pipeline.engine.recommenders.list_schema import LIST_SCHEMA, PERSONAL, POPULAR, POPULAR_USER_ID

KIND: Final = "generation"
POPULAR_FILE: Final = "popular.parquet"
REFERENCE_FILE: Final = "generation.json"
ROWS_PER_GROUP: Final = 4096
ROWS_PER_PART: Final = 100 * ROWS_PER_GROUP
MAX_LIST_LENGTH: Final = 1000
GENERATIONS_KEPT: Final = 3
MIN_AGE_SECONDS: Final = 3600


@dataclass(frozen=True)
class RowGroup:
    """
    A group of rows of one part, the unit in which a generation is read.

    Attributes
    ----------
    path, index, n_users
        The part, the group's number in it, and how many rows it has.
    mirror, sha256
        Where a process that does not have the part fetches it, and its digest.
    """

    path: Path
    index: int
    n_users: int
    mirror: mirrors.Mirrored | None
    sha256: str

    def read(self, columns: Sequence[str] | None = None) -> pa.RecordBatch:
        """
        Read the rows, checking page checksums.

        Raises
        ------
        ArtifactIntegrityError
            If they cannot be read.
        """
        if self.mirror:
            self.mirror.fetch(self.path, self.sha256)
        with _damage_named(self.path), pq.ParquetFile(self.path, page_checksum_verification=True) as file:
            table = file.read_row_group(self.index, columns=columns)
        return pa.RecordBatch.from_arrays([column.combine_chunks() for column in table.columns], schema=table.schema)


@dataclass(frozen=True)
class Generation:
    """
    A reference to one sealed generation.

    As an artefact of the lineage it stores itself as this reference: number, directory and digest of the manifest.

    Attributes
    ----------
    number
        Position in the order of generations, >= 1; a higher number replaces a lower one.
    directory
        Where it is sealed.
    manifest
        Digests of its files, and the facts stated when it was sealed.
    """

    number: int
    directory: Path
    manifest: Manifest = field(repr=False)

    @classmethod
    def open(cls, directory: Path) -> Self:
        """
        Open a sealed directory without reading its lists.

        Raises
        ------
        ArtifactIntegrityError
            If it is not a sealed generation.
        """
        manifest = read_manifest(directory)
        number = manifest.metadata.get("number")
        if manifest.kind != KIND or not isinstance(number, int) or directory.name != _folder(number):
            raise ArtifactIntegrityError(f"{directory} is not a generation: {manifest.kind!r} with number {number!r}")
        return cls(number, directory, manifest)

    @property
    def n_users(self) -> int:
        """Users with a list."""
        return int(self.manifest.metadata["n_users"])

    @property
    def n_items(self) -> int:
        """Distinct items in all lists."""
        return int(self.manifest.metadata["n_items"])

    @property
    def n_popular_users(self) -> int:
        """Users who get the popular list, having no history of their own."""
        return int(self.manifest.metadata["n_popular_users"])

    @property
    def content_number(self) -> int:
        """Number under which these lists were sealed first; differs from ``number`` after ``renumber``."""
        return int(self.manifest.metadata.get("renumbered_from", self.number))

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Facts about its making, as given to ``GenerationWriter.seal``, and its counts."""
        return self.manifest.metadata

    @property
    def manifest_sha256(self) -> str:
        """Digest of the manifest, which names it among all generations that ever had this number."""
        return sha256_of(self.directory / MANIFEST)

    def verify(self) -> None:
        """
        Check every file against the manifest.

        Raises
        ------
        ArtifactIntegrityError
            If a file is missing or differs.
        """
        for name in self.manifest.files:
            self._file(name)
        verify_directory(self.directory)

    def _file(self, name: str) -> Path:
        path = self.directory / name
        mirrors.fetch(path, self.manifest.files[name]["sha256"])
        return path

    def row_groups(self) -> list[RowGroup]:
        """
        Return the row groups of all parts, in the order of writing.

        Raises
        ------
        ArtifactIntegrityError
            If a part cannot be read.
        """
        groups: list[RowGroup] = []
        for name in sorted(name for name in self.manifest.files if name.startswith("part-")):
            path = self._file(name)
            with _damage_named(path):
                rows = pq.read_metadata(path)
            groups += [self._group(name, index, rows.row_group(index).num_rows) for index in range(rows.num_row_groups)]
        return groups

    def _group(self, name: str, index: int, n_rows: int) -> RowGroup:
        path = self.directory / name
        return RowGroup(path, index, n_rows, mirrors.mirrored(path), self.manifest.files[name]["sha256"])

    def iterate(self, batch_size: int = ROWS_PER_GROUP) -> Iterator[pa.RecordBatch]:
        """
        Verify the generation, then stream its lists.

        Yields
        ------
        RecordBatch
            Of ``LIST_SCHEMA``, at most ``batch_size`` users each.

        Raises
        ------
        ArtifactIntegrityError
            If a file differs from the manifest; before the first batch.
        """
        self.verify()
        for group in self.row_groups():
            batch = group.read()
            yield from (batch.slice(start, batch_size) for start in range(0, len(batch), batch_size))

    def popular(self) -> pa.RecordBatch:
        """
        Verify the popular list alone and return it, one row of ``LIST_SCHEMA`` under ``POPULAR_USER_ID``.

        Raises
        ------
        ArtifactIntegrityError
            If it differs from the manifest.
        """
        self._file(POPULAR_FILE)
        verify_file(self.directory, POPULAR_FILE, self.manifest)
        return self._group(POPULAR_FILE, 0, 1).read()

    def find(self, user_id: str) -> dict[str, Any] | None:
        """
        Look one user up; reads the id column of every part, so not for serving.

        Returns
        -------
        dict with the columns of ``LIST_SCHEMA``, or None for a user without a list here.
        """
        for group in self.row_groups():
            position = pc.index(group.read([USER_ID])[USER_ID], user_id).as_py()
            if position >= 0:
                row: dict[str, Any] = group.read().slice(position, 1).to_pylist()[0]
                return row
        return None

    def save(self, directory: Path) -> None:
        """Write the reference ``generation.json``."""
        reference = {
            "number": self.number,
            "directory": str(self.directory.absolute()),
            "manifest_sha256": self.manifest_sha256,
        }
        write_json(directory / REFERENCE_FILE, reference)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """
        Open the generation that a saved reference names.

        Raises
        ------
        ArtifactIntegrityError
            If it is gone, or another one stands in its place.
        """
        reference = read_json(directory / REFERENCE_FILE)
        generation = cls.open(Path(reference["directory"]))
        if generation.manifest_sha256 != reference["manifest_sha256"]:
            raise ArtifactIntegrityError(f"{generation.directory} is not the generation it was: its manifest differs")
        return generation


class GenerationWriter:
    """
    Writes one generation as a stream of batches and seals it.

    A context manager; left without ``seal`` it deletes what it wrote. The number is reserved on entry, so that several
    writers on one root never share one.

    Parameters
    ----------
    root
        Folder of all generations; made if absent.
    after : int
        The number will be higher than this and than any sealed under ``root``; pass ``last_number(client)`` so that a
        store which remembers more generations than the disk still accepts the new one.

    Examples
    --------
    >>> with GenerationWriter(root) as writer:  # doctest: +SKIP
    ...     for batch in batches:
    ...         writer.add(batch)
    ...     generation = writer.seal({"run_id": run_id}, popular=popular_row)
    """

    def __init__(self, root: Path, after: int = 0) -> None:
        self._root = root
        self._after = after
        self._parts: list[pq.ParquetWriter] = []
        self._rows_in_part = 0
        self._user_hashes: list[npt.NDArray[np.uint64]] = []
        self._items: set[str] = set()
        self._n_popular = 0

    def __enter__(self) -> Self:
        self._root.mkdir(parents=True, exist_ok=True)
        self.number, self._directory = _reserve(self._root, self._after)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for part in self._parts:
            part.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def n_users(self) -> int:
        """Users added so far."""
        return sum(map(len, self._user_hashes))

    @property
    def n_popular_users(self) -> int:
        """Users added so far who get the popular list."""
        return self._n_popular

    def add(self, lists: pa.RecordBatch | pd.DataFrame) -> None:
        """
        Check and write one batch of lists.

        Parameters
        ----------
        lists
            Columns of ``LIST_SCHEMA``; a frame is converted. Any number of rows; memory is a few times their size.

        Raises
        ------
        GateRefusedError
            If a list breaks a rule of ``check_lists``.
        """
        batch = _to_batch(lists)
        if not len(batch):
            return
        check_lists(batch)
        valid = are_valid_ids(batch[USER_ID])
        if not valid.all():
            raise GateRefusedError(f"{batch[USER_ID][int(np.argmin(valid))].as_py()!r} cannot be a user id")
        if not self._parts or self._rows_in_part >= ROWS_PER_PART:
            if self._parts:
                self._parts[-1].close()
            path = self._directory / f"part-{len(self._parts):05d}.parquet"
            self._parts.append(pq.ParquetWriter(path, LIST_SCHEMA, compression="zstd", write_page_checksum=True))
            self._rows_in_part = 0
        self._parts[-1].write_batch(batch, row_group_size=ROWS_PER_GROUP)
        self._rows_in_part += len(batch)
        # 64-bit hashes instead of ids: uniqueness over 100 M users then needs 0.8 GB and not 10.
        ids = np.asarray(batch[USER_ID].to_pylist(), dtype=object)
        self._user_hashes.append(pd.util.hash_array(ids, categorize=False))
        self._items.update(batch[ITEM_ID].flatten().unique().to_pylist())
        self._n_popular += pc.sum(pc.equal(batch[ORIGIN], POPULAR)).as_py()

    def seal(self, metadata: Mapping[str, Any], *, popular: pa.RecordBatch | pd.DataFrame) -> Generation:
        """
        Flush, check and number the generation; afterwards it never changes.

        Parameters
        ----------
        metadata
            JSON facts about its making: run id, digests of the bundle, gate results.
        popular
            The list for anybody without one: one row of ``LIST_SCHEMA`` whose user id is ``POPULAR_USER_ID``.

        Raises
        ------
        GateRefusedError
            If there is no user, a user occurs twice, or the popular list breaks a rule.
        OSError
            If the disk refuses; nothing is left behind.
        """
        if not self.n_users:
            raise GateRefusedError("generation holds no users, expected at least one: nothing is sealed")
        for part in self._parts:
            part.close()
        self._check_users_are_unique()
        popular_batch = _to_batch(popular)
        check_lists(popular_batch)
        if popular_batch[USER_ID].to_pylist() != [POPULAR_USER_ID]:
            raise GateRefusedError(
                f"popular list must be one row with user id {POPULAR_USER_ID!r}, found {len(popular_batch)} rows"
            )
        pq.write_table(pa.Table.from_batches([popular_batch]), self._directory / POPULAR_FILE, write_page_checksum=True)
        written = sum(pq.read_metadata(path).num_rows for path in self._directory.glob("part-*.parquet"))
        if written != self.n_users:
            raise ArtifactIntegrityError(f"{self._directory} holds {written} users, expected {self.n_users}")
        counts = {"n_users": self.n_users, "n_items": len(self._items), "n_popular_users": self._n_popular}
        return _seal(self._directory, self._root, {**metadata, **counts, "number": self.number})

    def _check_users_are_unique(self) -> None:
        hashes = np.sort(np.concatenate(self._user_hashes))
        repeated = hashes[1:][hashes[1:] == hashes[:-1]]
        if not len(repeated):
            return
        ids = pd.Series(
            [
                user_id
                for path in self._directory.glob("part-*.parquet")
                for user_id in pq.read_table(path, columns=[USER_ID])[USER_ID].to_pylist()
            ],
            dtype=object,
        )
        twice = sorted(set(ids[ids.duplicated()]))
        if twice:
            examples = ", ".join(map(pseudonym, twice[:5]))
            raise GateRefusedError(f"{len(twice)} users have more than one list, for instance {examples}")


def check_lists(batch: pa.RecordBatch) -> None:
    """
    Refuse lists that must not be published, whatever made them.

    Every list has 1 to ``MAX_LIST_LENGTH`` items, parallel columns and no nulls; item ids are ids and differ within a
    list; scores are finite and do not increase; every item has at least one source with a finite share; origins are
    known.

    Raises
    ------
    GateRefusedError
        Naming the rule, the first user who breaks it and how many do.

    Examples
    --------
    >>> source = {"name": "content", "rank": 1, "share": 1.0}
    >>> row = {"user_id": "u", "item_id": ["a", "a"], "score": [0.5, 0.4], "sources": [[source]] * 2}
    >>> row |= {"reason": ["", ""], "origin": "personal"}
    >>> check_lists(pa.RecordBatch.from_pylist([row], LIST_SCHEMA))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    rec_pipeline.engine.errors.GateRefusedError: user#...: item ids repeat within the list (1 of 1 lists)
    """
    items, scores, sources, reasons = (batch[name] for name in (ITEM_ID, SCORE, SOURCES, REASON))

    def refuse(bad: npt.NDArray[np.bool_], rule: str) -> None:
        if bad.any():
            user_id = batch[USER_ID][int(np.argmax(bad))].as_py()
            raise GateRefusedError(f"{pseudonym(user_id)}: {rule} ({np.count_nonzero(bad)} of {len(bad)} lists)")

    refuse(np.logical_or.reduce([np.asarray(batch[name].is_null()) for name in LIST_SCHEMA.names]), "a column is null")
    length = np.asarray(pc.list_value_length(items))
    refuse((length < 1) | (length > MAX_LIST_LENGTH), f"list length is not in 1..{MAX_LIST_LENGTH}")
    for name, column in ((SCORE, scores), (SOURCES, sources), (REASON, reasons)):
        refuse(np.asarray(pc.list_value_length(column)) != length, f"{name} and item_id differ in length")
    user = np.repeat(np.arange(len(batch)), length)  # row of each item

    def any_item(bad: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        return np.bincount(user[bad], minlength=len(batch)) > 0

    codes = items.flatten().dictionary_encode()
    refuse(any_item(np.asarray(codes.is_null())), "an item id is null")
    refuse(any_item(~are_valid_ids(codes.dictionary)[codes.indices]), "an item id is not an id")
    # Sorting (user, item) as one integer puts equal pairs side by side.
    pairs = np.sort(user * len(codes.dictionary) + np.asarray(codes.indices))
    repeated = np.zeros(len(batch), dtype=bool)
    repeated[pairs[1:][pairs[1:] == pairs[:-1]] // len(codes.dictionary)] = True
    refuse(repeated, "item ids repeat within the list")
    score = scores.flatten().to_numpy(zero_copy_only=False)
    refuse(any_item(~np.isfinite(score)), "a score is not finite")
    increasing = np.concatenate([[False], (np.diff(score) > 0) & (np.diff(user) == 0)])
    refuse(any_item(increasing), "scores increase along the list")
    refuse(any_item(np.asarray(reasons.flatten().is_null())), "a reason is null")
    refuse(any_item(np.asarray(pc.list_value_length(sources.flatten()).fill_null(0)) < 1), "an item has no source")
    flat = sources.flatten().flatten()
    source_user = np.repeat(user, np.asarray(pc.list_value_length(sources.flatten())))
    unsound = np.asarray(flat.is_null()) | np.asarray(pc.is_null(flat.field("name")))
    unsound |= ~np.asarray(pc.is_finite(flat.field("share")).fill_null(False))
    refuse(np.bincount(source_user[unsound], minlength=len(batch)) > 0, "a source has no name or no finite share")
    refuse(~np.asarray(pc.is_in(batch[ORIGIN], pa.array([PERSONAL, POPULAR]))), "origin is unknown")


def sealed_numbers(root: Path) -> list[int]:
    """Return the numbers under which generations are sealed, damaged ones included, in order."""
    if mirrors.mirrored(root):
        folders = [root / name for name in mirrors.names(root) if name.isdigit()]
        for folder in folders:
            if MANIFEST in mirrors.names(folder):
                mirrors.fetch(folder / MANIFEST)
        return sorted(int(folder.name) for folder in folders if (folder / MANIFEST).is_file())
    return sorted(int(path.parent.name) for path in root.glob(f"[0-9]*/{MANIFEST}") if path.parent.name.isdigit())


def list_generations(root: Path) -> list[Generation]:
    """
    Return the sealed generations under ``root``, oldest first; an absent root holds none.

    One that cannot be opened is not among them, so that damage to it stops nothing that can do without it.
    """
    found = []
    for number in sealed_numbers(root):
        with suppress(ArtifactIntegrityError):
            found.append(Generation.open(root / _folder(number)))
    return found


def newest_generation(root: Path) -> Generation:
    """
    Open the generation sealed last.

    Raises
    ------
    ArtifactIntegrityError
        If none is sealed under ``root``, or it cannot be opened.
    """
    if not (sealed := sealed_numbers(root)):
        raise ArtifactIntegrityError(f"no generation is sealed under {root}: `rec-pipeline run` makes one")
    return Generation.open(root / _folder(sealed[-1]))


def find_generation(root: Path, number: int) -> Generation:
    """
    Open one generation by number.

    Raises
    ------
    ArtifactIntegrityError
        If it is not sealed under ``root``; says which are.
    """
    if number not in (sealed := sealed_numbers(root)):
        raise ArtifactIntegrityError(f"generation {number} is not sealed under {root}, which holds {sealed or 'none'}")
    return Generation.open(root / _folder(number))


def renumber(generation: Generation, after: int) -> Generation:
    """
    Seal the content of ``generation`` again under a new, higher number than ``after`` and every sealed one.

    The files are hard links where the disk has them, so this costs no space.
    """
    generation.verify()
    root = generation.directory.parent
    number, directory = _reserve(root, after)
    try:
        for path in generation.directory.glob("*.parquet"):
            try:
                os.link(path, directory / path.name)
            except OSError:
                shutil.copyfile(path, directory / path.name)
        return _seal(
            directory, root, {**generation.metadata, "number": number, "renumbered_from": generation.content_number}
        )
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def delete_old_generations(
    root: Path,
    protected: Collection[int],
    *,
    keep: int = GENERATIONS_KEPT,
    min_age_seconds: float = MIN_AGE_SECONDS,
) -> list[int]:
    """
    Delete sealed generations that nobody needs, and what killed writers left.

    Parameters
    ----------
    root
        Folder of the generations.
    protected
        Numbers never deleted: current, previous, pinned.
    keep : int
        Newest generations kept besides.
    min_age_seconds : float
        Nothing that changed more recently is deleted.

    Returns
    -------
    Numbers of the deleted generations.
    """
    sealed = sealed_numbers(root)
    deleted = [number for number in sealed[: max(0, len(sealed) - keep)] if number not in protected]
    deleted = [number for number in deleted if _age_seconds(root / _folder(number)) >= min_age_seconds]
    abandoned = [path for path in root.glob(".writing-*") if _age_seconds(path) >= min_age_seconds]
    for number in deleted:
        mirrors.delete(root / _folder(number))
    for path in [root / _folder(number) for number in deleted] + abandoned:
        shutil.rmtree(path, ignore_errors=True)
    return deleted


def _seal(directory: Path, root: Path, metadata: Mapping[str, Any]) -> Generation:
    seal_directory(directory, KIND, {**metadata, "sealed_at": pd.Timestamp.now("UTC").isoformat()})
    _flush(directory)
    target = root / _folder(int(metadata["number"]))
    if there := mirrors.mirrored(target):
        if MANIFEST in there.remote.names(there.name):
            raise ArtifactIntegrityError(f"{there.remote.url}/{there.name} was sealed elsewhere meanwhile: run again")
        there.remote.push(directory, there.name)
        crash_points.reach("pushed-generation")
    directory.rename(target)
    _flush(root)
    return Generation.open(target)


def _reserve(root: Path, after: int) -> tuple[int, Path]:
    number = max([after, *sealed_numbers(root)]) + 1
    while True:
        directory = root / f".writing-{number:08d}"
        try:
            directory.mkdir()
        except FileExistsError:
            number += 1
            continue
        # Another writer may have sealed this number between the listing and the mkdir.
        if not (root / _folder(number)).exists():
            return number, directory
        directory.rmdir()
        number += 1


def _folder(number: int) -> str:
    return f"{number:08d}"


def _age_seconds(directory: Path) -> float:
    try:
        return time.time() - max(path.stat().st_mtime for path in [directory, *directory.iterdir()])
    except FileNotFoundError:  # sealed or deleted by its writer meanwhile
        return 0.0


def _to_batch(lists: pa.RecordBatch | pd.DataFrame) -> pa.RecordBatch:
    try:
        if isinstance(lists, pd.DataFrame):
            return pa.RecordBatch.from_pandas(lists, schema=LIST_SCHEMA, preserve_index=False)
        return lists.select(LIST_SCHEMA.names).cast(LIST_SCHEMA)
    except (KeyError, ValueError, TypeError) as error:  # pyarrow's own errors derive from these
        raise GateRefusedError(f"lists do not have the columns {LIST_SCHEMA.names}: {error}") from error


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise ArtifactIntegrityError(f"{path} cannot be read: {error}") from error


def _flush(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

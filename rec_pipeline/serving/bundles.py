"""The serving bundle in memory: found, verified, loaded, and swapped for a newer one while requests go on."""

import logging
import shutil
import tempfile
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import fsspec
import numpy as np
import numpy.typing as npt
import orjson
from pydantic import ValidationError

from rec_pipeline.engine.artifacts import CURRENT, MANIFEST, load_sealed, verify_directory
from rec_pipeline.engine.errors import ArtifactIntegrityError, ConfigurationError, RecPipelineError
from rec_pipeline.engine.recommenders.bundle import ServingBundle
from rec_pipeline.engine.recommenders.collaborative import CollaborativeRanker
from rec_pipeline.engine.recommenders.hybrid import HybridRanker
from rec_pipeline.engine.recommenders.params import HybridParams
from rec_pipeline.engine.recommenders.ranker import Ranker
from rec_pipeline.engine.recommenders.reasons import reason_texts
from rec_pipeline.engine.recommenders.sequence import SequenceRanker

KEY: Final = "serving_bundle"
CHECK_SECONDS: Final = 2.0
EXACT_ITEMS: Final = 5_000  # above, one user's candidates are retrieved by FAISS; scoring everything takes longer
N_RETRIEVED: Final = 200

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedBundle:
    """
    A bundle ready to answer, with what is the same for every question.

    Attributes
    ----------
    version
        Digest of its content.
    bundle, hybrid
        The parts, and the recommender over them.
    """

    version: str
    bundle: ServingBundle
    hybrid: HybridRanker

    @classmethod
    def of(cls, bundle: ServingBundle, version: str) -> "LoadedBundle":
        """Prepare ``bundle``, so that the first question is as quick as the others."""
        hybrid = bundle.recommender()
        sources = {name: for_one_user(source) for name, source in hybrid.sources.items()}
        loaded = cls(version, bundle, replace(hybrid, sources=sources))
        _ = loaded.bundle.spaces, loaded.reasons, loaded.rows, loaded.expiries
        loaded.hybrid.recommend(next(bundle.batches(np.zeros(1, dtype=np.int64), 1)), 1)
        return loaded

    def with_params(self, changes: Mapping[str, Any]) -> "LoadedBundle":
        """
        Return it with another fusion; the same ``changes`` give the same object.

        Parameters
        ----------
        changes
            Fields of ``HybridParams``. Weights that are not named stay as they are, and the named ones are those of
            every segment of users.

        Raises
        ------
        ConfigurationError
            If they do not fit the bundle.
        """
        key = orjson.dumps(changes, option=orjson.OPT_SORT_KEYS)
        if key not in self._changed:
            made = replace(self, hybrid=replace(self.hybrid, params=changed_params(self.hybrid.params, changes)))
            # These do not depend on the fusion.
            vars(made).update(reasons=self.reasons, rows=self.rows, expiries=self.expiries)
            self._changed[key] = made
        return self._changed[key]

    @cached_property
    def _changed(self) -> "dict[bytes, LoadedBundle]":
        return {}

    @cached_property
    def reasons(self) -> npt.NDArray[np.object_]:
        """Words for each row of ``reason_rows``."""
        return reason_texts(self.bundle.titles)

    @cached_property
    def rows(self) -> Mapping[str, int]:
        """Catalogue row of each item id."""
        return {item_id: row for row, item_id in enumerate(self.bundle.items.ids)}

    @cached_property
    def expiries(self) -> list[int]:
        """When items expire, in seconds since 1970, ascending."""
        return sorted(self.bundle.facts.expires_at.tolist())

    def anything_expired_since(self, made_at: float) -> bool:
        """Tell whether an item of the catalogue has expired between ``made_at`` (seconds since 1970) and now."""
        return bisect_right(self.expiries, made_at) != bisect_right(self.expiries, time.time())

    def title(self, item_id: str) -> str:
        """Return what people call an item, its id where it is not in the catalogue."""
        row = self.rows.get(item_id)
        return item_id if row is None else str(self.bundle.titles[row])


class BundleHolder:
    """
    Holds the newest good bundle of a place.

    Parameters
    ----------
    location
        A sealed bundle; a folder of its versions (``.../serving_bundle``); a folder of artefacts; a data folder that
        holds ``artifacts``; or the fsspec URL of one of these, which is copied here before it is verified.
    on_refused
        Called with the error when a newer bundle is damaged; the old one stays.
    """

    def __init__(self, location: str | Path, on_refused: Callable[[RecPipelineError], None] | None = None) -> None:
        self.location = str(location)
        self.error = ""
        self._current: LoadedBundle | None = None
        self._refused = ""
        self._preferred: str | None = None
        self._on_refused = on_refused
        self._lock = threading.Lock()
        self._next_check = 0.0

    @property
    def current(self) -> LoadedBundle | None:
        """The bundle to answer with; None before the first good one."""
        return self._current

    def prefer(self, version: str | None) -> None:
        """
        Take ``version`` rather than the newest while it can be found: the one that what is live was made with.

        After a rollback the newest bundle is the one that was taken back.
        """
        if version != self._preferred:
            self._preferred = version
            self._next_check = 0.0

    def load(self) -> LoadedBundle:
        """
        Look for a newer bundle and take it.

        Raises
        ------
        ArtifactIntegrityError
            If there is no good bundle at all; with one in memory a damaged newer one is only noted in ``error``.
        ConfigurationError
            If the location cannot be a bundle's.
        """
        with self._lock:
            self._next_check = time.monotonic() + CHECK_SECONDS
            version = ""
            try:
                place = Place.find(self.location, self._preferred)
                version = place.version
                if self._current is not None and version in {self._current.version, self._refused}:
                    return self._current
                with place.directory() as directory:
                    manifest = verify_directory(directory)
                    self._current = LoadedBundle.of(load_sealed(directory, ServingBundle.load), manifest.version)
                self.error = ""
                log.info("serving bundle %s is loaded", manifest.version)
            except (RecPipelineError, OSError, ValueError, KeyError, TypeError) as error:
                # What a parser says of files whose digests are right: made by another version of this project.
                refused = (
                    error
                    if isinstance(error, RecPipelineError)
                    else ArtifactIntegrityError(f"the bundle at {self.location} cannot be loaded: {error}")
                )
                if str(refused) != self.error:
                    self.error = str(refused)
                    log.warning("serving bundle refused: %s", refused)
                    if self._on_refused is not None:
                        self._on_refused(refused)
                if self._current is None:
                    raise refused from error
                self._refused = version
            return self._current

    def refresh_behind(self) -> None:
        """Look for a newer bundle in a thread, at most once in ``CHECK_SECONDS``; returns at once."""
        if time.monotonic() < self._next_check or self._lock.locked():
            return
        self._next_check = time.monotonic() + CHECK_SECONDS
        threading.Thread(target=self._load_quietly, name="bundle-refresh", daemon=True).start()

    def _load_quietly(self) -> None:
        try:
            self.load()
        except RecPipelineError:
            log.debug("still no serving bundle", exc_info=True)


def for_one_user(source: Ranker) -> Ranker:
    """Return a source with the quickest way to answer for one user rather than for many at once."""
    if isinstance(source, CollaborativeRanker):
        return replace(source, exact_up_to=EXACT_ITEMS, n_candidates=N_RETRIEVED)
    return replace(source, exact_up_to=EXACT_ITEMS) if isinstance(source, SequenceRanker) else source


def changed_params(params: HybridParams, changes: Mapping[str, Any]) -> HybridParams:
    """Return ``params`` with ``changes``, as ``LoadedBundle.with_params`` has them."""
    weights = changes.get("weights", {})
    if unknown := set(weights) - set(params.weights):
        raise ConfigurationError(
            f"weights of {sorted(unknown)} were asked for, but the sources are {list(params.weights)}"
        )
    merged = {
        **params.model_dump(),
        "segment_weights": {name: {**known, **weights} for name, known in params.segment_weights.items()},
        **changes,
        "weights": {**params.weights, **weights},
    }
    try:
        return HybridParams.model_validate(merged)
    except ValidationError as error:
        raise ConfigurationError(f"{dict(changes)} does not fit the fusion of the bundle: {error}") from error


@dataclass(frozen=True)
class Place:
    """
    One version of the bundle somewhere.

    Attributes
    ----------
    fs, path
        Filesystem, and folder in it.
    version
        Digest of its content, or what stands for it where only the files are known.
    """

    fs: Any
    path: str
    version: str

    @classmethod
    def find(cls, location: str, preferred: str | None = None) -> "Place":
        """
        Return the ``preferred`` version at a location of ``BundleHolder``, else the current one.

        Raises
        ------
        ArtifactIntegrityError
            If there is none.
        ConfigurationError
            If the location cannot be one.
        """
        try:
            fs, root = fsspec.core.url_to_fs(location)
        except (ValueError, ImportError) as error:
            raise ConfigurationError(f"{location!r} is no place a bundle can be read from: {error}") from error
        if fs.isfile(f"{root}/{MANIFEST}"):
            return cls(fs, root, _version(fs, root))
        for folder in (root, f"{root}/{KEY}", f"{root}/artifacts/{KEY}"):
            if fs.isfile(f"{folder}/{CURRENT}"):
                version = preferred
                if version is None or not fs.isfile(f"{folder}/{version}/{MANIFEST}"):
                    version = fs.cat_file(f"{folder}/{CURRENT}").decode().strip()
                return cls(fs, f"{folder}/{version}", version)
        raise ArtifactIntegrityError(f"no serving bundle at {location}: `rec-pipeline run` makes one")

    def directory(self) -> "_LocalCopy":
        """Return the files as a local folder, for the time of a ``with`` block."""
        return _LocalCopy(self)


class _LocalCopy:
    """The files of a place as a local folder: themselves where they are local, else a copy that ends with the block."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._copy: str | None = None

    def __enter__(self) -> Path:
        if "file" in np.atleast_1d(self._place.fs.protocol):
            return Path(self._place.path)
        self._copy = tempfile.mkdtemp(prefix="rec-pipeline-bundle-")
        self._place.fs.get(f"{self._place.path}/", f"{self._copy}/", recursive=True)
        return Path(self._copy)

    def __exit__(self, *_: object) -> None:
        if self._copy is not None:
            shutil.rmtree(self._copy, ignore_errors=True)


def _version(fs: Any, directory: str) -> str:
    """Return what changes when the manifest does; its own claim is read after it is verified."""
    return str(fs.ukey(f"{directory}/{MANIFEST}"))

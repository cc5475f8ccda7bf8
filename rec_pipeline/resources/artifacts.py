"""Artefacts as Dagster sees them: kept with their version, handed to the next asset verified."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import dagster as dg
import pandas as pd
from pydantic import Field

from rec_pipeline.engine import mirrors
from rec_pipeline.engine.artifacts import UNFINISHED, ArtifactStore, Storable, load_sealed, read_table, write_table
from rec_pipeline.engine.data.days import DailyTable, Days, forget_in_days
from rec_pipeline.engine.data.event_log import EventLog
from rec_pipeline.engine.data.remote_event_log import open_event_log
from rec_pipeline.engine.data.table import Table
from rec_pipeline.engine.remote import open_store

TABLE = "table.parquet"

StoredAs = TypeVar("StoredAs", bound=Storable)


@dataclass(frozen=True)
class SealedArtifact:
    """
    An upstream artefact, verified but not loaded: for types whose modules are too heavy to import with the definitions.

    Attributes
    ----------
    directory
        Where its files are.
    """

    directory: Path

    def open(self, kind: type[StoredAs]) -> StoredAs:
        """Load it as ``kind``."""
        return load_sealed(self.directory, kind.load)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Point at ``directory``."""
        return cls(directory)


class Artifacts(dg.ConfigurableIOManager):
    """
    Keeps what assets make as sealed artefacts and loads each asset's inputs from them by their annotated type.

    Frames are Parquet; every other type writes and reads itself (``Storable``). Nothing is pickled.
    """

    root: str = Field(description="Folder of the artefacts, one sub-folder an asset key.")
    url: str | None = Field(None, description="fsspec URL where the artefacts are, of which root then holds copies.")

    @property
    def store(self) -> ArtifactStore:
        """The engine's store."""
        return open_store(Path(self.root), self.url)

    def keep(
        self,
        context: dg.AssetExecutionContext,
        value: pd.DataFrame | Storable,
        metadata: Mapping[str, Any] | None = None,
    ) -> dg.MaterializeResult[Any]:
        """Store ``value`` as the current version of the running asset; its content digest is the data version."""
        key = context.asset_key.path[-1]
        save = (
            (lambda directory: write_table(directory / TABLE, value)) if isinstance(value, pd.DataFrame) else value.save
        )
        manifest = self.store.write(
            key, save, kind=type(value).__name__, metadata={"dagster_run_id": context.run.run_id}
        )
        return dg.MaterializeResult(
            metadata={
                **(metadata or {}),
                "dagster/uri": self.store.uri(key, manifest.version),
                "n_bytes": manifest.n_bytes,
            },
            data_version=dg.DataVersion(manifest.version),
        )

    def version(self, key: str) -> str:
        """Return the content digest of the current version of ``key``."""
        return self.store.manifest(key).version

    def digests(self, key: str) -> dict[str, str]:
        """Return the sha256 of every file of the current version of ``key``, by its path."""
        return {name: str(entry["sha256"]) for name, entry in self.store.manifest(key).files.items()}

    def checkpoints(self, context: dg.AssetExecutionContext) -> Path:
        """Return the folder where the running asset leaves what a killed run can go on from."""
        key: str = context.asset_key.path[-1]
        return self.store.root / key / "checkpoints"

    @contextmanager
    def scratch(self, key: str) -> Iterator[Path]:
        """Make a folder beside the versions of ``key`` for what does not fit in memory, gone afterwards."""
        folder = self.store.root / key
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=folder) as name:
            yield Path(name)

    def discard_checkpoints(self, context: dg.AssetExecutionContext) -> None:
        """Remove them: the asset is made."""
        folder = self.checkpoints(context)
        shutil.rmtree(folder, ignore_errors=True)
        mirrors.delete(folder)

    def quarantine(self, context: dg.AssetExecutionContext) -> Path:
        """Return the folder beside the artefacts for rows that this run refuses."""
        run_id: str = context.run.run_id
        return Path(self.root).parent / "quarantine" / run_id

    def load(self, key: str, kind: type[Any], version: str | None = None) -> Any:
        """Verify and load the artefact of ``key`` as ``kind``."""
        if kind is Table and self.store.manifest(key, version).kind == Days.__name__:
            return DailyTable(self.store, key).read(self.load(key, Days, version))
        load = (lambda folder: read_table(folder / TABLE)) if kind is pd.DataFrame else kind.load
        return load_sealed(self.store.path(key, version), load)

    def forget(self, user_id: str) -> int:
        """Remove a user's interactions from every day that is kept; returns how many."""
        raw, examined = (DailyTable(self.store, key) for key in ("raw_interactions", "interactions"))
        return forget_in_days(raw, examined, user_id)

    def load_input(self, context: dg.InputContext) -> Any:
        """Load an upstream asset as the type its consumer annotates; a log, which only grows, is read where it is."""
        key, kind = context.asset_key.path[-1], context.dagster_type.typing_type
        if kind is EventLog:
            return open_event_log(Path(self.root) / key, self.url and f"{self.url}/{key}")
        return self.load(key, kind)

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        """Refuse values returned past ``keep``, which would have neither version nor metadata."""
        raise TypeError(
            f"{context.asset_key.to_user_string()} returned {type(obj).__name__}: return artifacts.keep(...)"
        )

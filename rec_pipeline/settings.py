"""
Every setting, typed, from ``REC_*`` variables; nothing else reads the environment.

Paths are relative to the folder the process is started in, which is the project folder: the one with ``dagster.yaml``.
"""

from datetime import date
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from rec_pipeline.engine.data.events import EventRules
from rec_pipeline.engine.data.experiment import Experiment
from rec_pipeline.engine.embeddings import MAX_TOKENS


class Settings(BaseSettings):
    """Where things live and which data is read; hyper-parameters are asset config instead."""

    model_config = SettingsConfigDict(env_prefix="REC_", frozen=True, extra="ignore", populate_by_name=True)

    data_dir: Path = Field(Path("data"), description="Folder of everything the project makes.")
    compute: Literal["local", "ray"] = Field(
        "local", description="Where heavy steps are computed: this process, or a Ray cluster (the extra `ray`)."
    )
    ray_address: str | None = Field(
        None, description="Ray cluster, e.g. ray://head:10001; one on the cores of this machine when unset."
    )
    ray_workers: int | None = Field(
        None, ge=1, description="Workers of that cluster on this machine; as many as it has cores when unset."
    )
    ray_trainers: int = Field(
        1,
        ge=1,
        description="Processes that train a model together, the run's own and workers of that cluster; with more than "
        "one, numbers are added up in another order, and models differ as those of two seeds do.",
    )
    artifacts_url: str | None = Field(
        None,
        description="fsspec URL of the artefacts and the event log, e.g. s3://bucket/rec, of which data_dir then holds "
        "copies; under data_dir when unset.",
    )
    redis_url: SecretStr | None = Field(
        None, description="Redis or Valkey >= 6.2 to publish to; the embedded server under data_dir when unset."
    )
    tracking_uri: str | None = Field(
        None,
        validation_alias="MLFLOW_TRACKING_URI",
        repr=False,
        description="MLflow tracking server; SQLite under data_dir when unset.",
    )
    mlflow_ui_url: str | None = Field(
        None,
        description="Where links to MLflow runs point; the tracking server, or the local UI for SQLite, when unset.",
    )
    dagster_ui_url: str = Field("http://127.0.0.1:3000", description="Where links to Dagster runs point.")
    dataset: str = Field("sample", description="Data set read by default; see `rec-pipeline run --help`.")
    dataset_dir: str | None = Field(None, description="Local folder of that MovieLens set; downloaded when unset.")
    interactions: str | None = Field(None, description="CSV or Parquet of interactions, for the data set `files`.")
    items: str | None = Field(None, description="CSV or Parquet of items, for the data set `files`.")
    columns: dict[str, str] = Field({}, description="JSON object of our column names to the files' ones.")
    interactions_since: date | None = Field(
        None,
        description="First day of interactions that lie in folders day=YYYY-MM-DD (UTC), which then are read and "
        "validated in daily partitions; one table when unset.",
    )
    max_rows: int = Field(
        200_000_000, ge=1, description="Most rows of one input file or folder; of one day, where it comes in days."
    )
    require_checksums: bool = Field(
        False, description="Refuse files (data set `files`) without FILE.sha256 or a SHA256SUMS beside them."
    )
    signing_key_file: Path | None = Field(
        None, description="File (mode 600) with a secret that signs the manifests of artefacts; unset: unsigned."
    )
    require_signature: bool = Field(False, description="Refuse artefacts whose manifest is not signed with that key.")
    text_encoder: str = Field(
        "all-MiniLM-L6-v2", description="Sentence-transformers model: the packaged one, a local folder or a hub name."
    )
    text_tokens: int = Field(
        MAX_TOKENS, ge=3, le=8192, description="Word pieces of an item's text that the encoder reads; the rest is cut."
    )
    event_weights: dict[str, float] = Field(
        default_factory=lambda: EventRules().weights,
        description="JSON object of the event types recorded online to their weights; 0: recorded, but no interaction.",
    )
    events_since: str = Field(
        "2024-01-01", description="First daily partition of the event log; earlier events are kept in it all the same."
    )
    experiment: str = Field("default", description="Name of the experiment that runs; another one deals users anew.")
    variants: dict[str, float] = Field(
        default_factory=lambda: Experiment().shares,
        description="JSON object of the variants of that experiment to the shares of the users in them.",
    )
    variant_params: dict[str, dict[str, Any]] = Field(
        {},
        description="JSON object of variants to what differs in them from the bundle's fusion, e.g. weights.",
    )
    serve_token: SecretStr | None = Field(
        None, description="Bearer token that `rec-pipeline serve` asks for; without one it is open."
    )
    show_user_ids: bool = Field(
        False, description="Write the ids of users into messages, to look for a fault, where else a digest stands."
    )
    fault: str | None = Field(
        None, description="For tests of robustness: <point>:<count>:<signal> at which a process ends itself."
    )
    schedule: str = Field("0 3 * * *", description="Cron expression of the nightly refresh.")
    timezone: str = Field("UTC", description="IANA time zone of the nightly refresh.")

    @property
    def artifacts_dir(self) -> Path:
        """Artefacts of every asset, one folder a key."""
        return self.data_dir.absolute() / "artifacts"

    @property
    def artifacts_location(self) -> str:
        """Where what is read online is: the URL, or the folder."""
        return self.artifacts_url or str(self.artifacts_dir)

    @property
    def mirrors(self) -> dict[Path, str]:
        """Folders whose files are under ``artifacts_url`` too."""
        if self.artifacts_url is None:
            return {}
        here = self.data_dir.absolute()
        url = self.artifacts_url.rstrip("/")
        return {self.artifacts_dir: url} | {here / name: f"{url}/{name}" for name in ("generations", "quarantine")}

    @property
    def generations_dir(self) -> Path:
        """Sealed generations of recommendations."""
        return self.data_dir.absolute() / "generations"

    @property
    def tuning_dir(self) -> Path:
        """Searches for hyper-parameters, from which an interrupted one goes on."""
        return self.data_dir.absolute() / "tuning"

    @property
    def tuned_config(self) -> Path:
        """Run config with the best hyper-parameters found."""
        return self.data_dir.absolute() / "tuned.yaml"

    @property
    def mlflow_dir(self) -> Path:
        """SQLite store and artefacts of MLflow."""
        return self.data_dir.absolute() / "mlflow"

    @property
    def store_dir(self) -> Path:
        """Socket, append-only file and pid of the embedded server."""
        return self.data_dir.absolute() / "store"

    @property
    def pseudonym_key_file(self) -> Path:
        """Key of the names under which users stand in messages."""
        return self.data_dir.absolute() / "pseudonyms.key"

    @property
    def event_rules(self) -> EventRules:
        """Rules of the events recorded online."""
        return EventRules(weights=self.event_weights)

    @property
    def running_experiment(self) -> Experiment:
        """The experiment that runs, with its variants."""
        return Experiment(name=self.experiment, shares=self.variants, params=self.variant_params)


@cache
def settings() -> Settings:
    """Return the settings of this process."""
    return Settings()

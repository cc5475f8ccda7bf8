"""Which resources a deployment gets; decided here and nowhere else."""

from typing import Any
from urllib.parse import urlsplit

from rec_pipeline.engine import crash_points
from rec_pipeline.engine.artifacts import use_signer
from rec_pipeline.engine.errors import ConfigurationError
from rec_pipeline.engine.mirrors import use_mirrors
from rec_pipeline.engine.pseudonyms import use_key_file
from rec_pipeline.engine.signing import read_signer
from rec_pipeline.resources.artifacts import Artifacts
from rec_pipeline.resources.compute import ComputeResource
from rec_pipeline.resources.event_stream import EventStream
from rec_pipeline.resources.mlflow_tracker import MLflowTracker
from rec_pipeline.resources.redis_store import URL_VARIABLE, RedisStore
from rec_pipeline.resources.source import Source
from rec_pipeline.resources.text_encoder import Encoder
from rec_pipeline.settings import Settings


def resources_for(settings: Settings) -> dict[str, Any]:
    """
    Return every resource the assets, checks and sensors name, as ``settings`` decide, and arm ``REC_FAULT``.

    Raises
    ------
    ConfigurationError
        If the address of MLflow holds a password: it would be in the config of a resource, which the UI shows.
    """
    if urlsplit(settings.tracking_uri or "").password is not None:
        raise ConfigurationError(
            "MLFLOW_TRACKING_URI holds a password: put it in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, "
            "which no UI and no log shows, or, of a database, in its own password file"
        )
    crash_points.arm(None if settings.fault is None else crash_points.CrashPoint.parse(settings.fault))
    use_key_file(settings.pseudonym_key_file, show_ids=settings.show_user_ids)
    use_mirrors(settings.mirrors)
    use_signer(read_signer(settings.signing_key_file, required=settings.require_signature))
    artifacts = Artifacts(root=str(settings.artifacts_dir), url=settings.artifacts_url)
    return {
        "io_manager": artifacts,
        "artifacts": artifacts,
        "compute": ComputeResource(
            backend=settings.compute,
            ray_address=settings.ray_address,
            ray_workers=settings.ray_workers,
            ray_trainers=settings.ray_trainers,
        ),
        "source": Source(
            dataset=settings.dataset,
            data_dir=settings.dataset_dir,
            interactions=settings.interactions,
            items=settings.items,
            columns=settings.columns,
            download_dir=str(settings.data_dir.absolute() / "downloads"),
            max_rows=settings.max_rows,
            require_checksums=settings.require_checksums,
        ),
        "encoder": Encoder(
            model_id=settings.text_encoder,
            max_tokens=settings.text_tokens,
            cache_dir=str(settings.artifacts_dir / "text_vectors"),
        ),
        "tracker": MLflowTracker(
            folder=str(settings.mlflow_dir),
            tracking_uri=settings.tracking_uri,
            ui_url=settings.mlflow_ui_url,
            dagster_url=settings.dagster_ui_url,
        ),
        "redis_store": RedisStore(
            url_variable=URL_VARIABLE,
            embedded_dir=str(settings.store_dir),
            generations_dir=str(settings.generations_dir),
        ),
        "event_stream": EventStream(
            log_dir=str(settings.artifacts_dir / "event_log"),
            log_url=settings.artifacts_url and f"{settings.artifacts_url}/event_log",
            weights=settings.event_weights,
            experiment=settings.experiment,
            variants=settings.variants,
        ),
    }

"""The model in MLflow's registry: a version for each serving bundle, and the aliases that say what is live."""

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from rec_pipeline.engine.columns import ITEM_ID, RANK, SCORE, USER_ID
from rec_pipeline.engine.errors import TrackingUnavailableError
from rec_pipeline.resources.mlflow_spool import PatientClient
from rec_pipeline.resources.tracked_run import given_up_on_failure

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

MODEL_NAME = "rec-ncf"
MODEL_CODE = Path(__file__).with_name("pyfunc_model.py")
# The packages a bundle is read and scored with. This project is left out because its name is nobody's on PyPI.
MODEL_REQUIREMENTS = ("faiss-cpu", "mlflow", "numpy", "pandas", "pyarrow", "pydantic", "safetensors", "scipy", "torch")
CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"


@dataclass(frozen=True)
class ModelRegistry:
    """The registered model ``rec-ncf``, as MLflow's client shows it."""

    client: PatientClient

    def register(
        self,
        experiment_id: str,
        run_id: str,
        bundle: str,
        example_users: Sequence[str],
        description: str,
        tags: Mapping[str, str],
    ) -> str:
        """
        Register a sealed serving bundle as the next version and make it the challenger; returns the version.

        Cost: two copies of the bundle, of which one stays.
        """
        from mlflow.entities import LoggedModelOutput
        from mlflow.models import Model

        with warnings.catch_warnings():
            # mlflow 3.17 warns of the type hints of its own classes while it is imported.
            warnings.simplefilter("ignore")
            from mlflow.pyfunc import save_model

        logged = self.client.create_logged_model(experiment_id, name="ncf", source_run_id=run_id)
        try:
            with tempfile.TemporaryDirectory() as staging:
                directory = Path(staging) / "model"
                save_model(
                    directory,
                    python_model=MODEL_CODE,
                    artifacts={"bundle": bundle},
                    mlflow_model=Model(
                        artifact_path=logged.artifact_location,
                        model_uuid=logged.model_id,
                        run_id=run_id,
                        model_id=logged.model_id,
                        metadata={"rec_pipeline": version("rec-pipeline")},
                    ),
                    signature=_signature(),
                    input_example=pd.DataFrame({USER_ID: list(example_users)}),
                    # A local version label (torch's +cpu) is not on PyPI.
                    pip_requirements=[f"{name}=={version(name).split('+')[0]}" for name in MODEL_REQUIREMENTS],
                )
                self.client.log_model_artifacts(logged.model_id, str(directory))
        except BaseException:
            with given_up_on_failure(self.client.patience):
                self.client.finalize_logged_model(logged.model_id, "FAILED")
            raise
        self.client.finalize_logged_model(logged.model_id, "READY")
        self.client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
        self._ensure_model()
        model_version = self.client.create_model_version(
            MODEL_NAME,
            source=logged.artifact_location,
            run_id=run_id,
            model_id=logged.model_id,
            tags=dict(tags),
            description=description,
        )
        self.client.set_registered_model_alias(MODEL_NAME, CHALLENGER, model_version.version)
        return str(model_version.version)

    def promote(self, model_version: str) -> None:
        """Make a version the champion and the one it replaces ``previous``; promoting it again changes nothing."""
        aliases = self.client.get_registered_model(MODEL_NAME).aliases
        champion = aliases.get(CHAMPION)
        if champion is not None and str(champion) != model_version:
            self.client.set_registered_model_alias(MODEL_NAME, PREVIOUS, champion)
        self.client.set_registered_model_alias(MODEL_NAME, CHAMPION, model_version)
        if str(aliases.get(CHALLENGER)) == model_version:
            self.client.delete_registered_model_alias(MODEL_NAME, CHALLENGER)

    def _promote_bundle(self, bundle: str) -> None:
        if not (found := self.versions_of(bundle)):
            raise TrackingUnavailableError(f"no version of {MODEL_NAME} was registered from the bundle {bundle}")
        self.promote(str(max(found)))

    def align(self, champion: str, previous: str | None) -> bool:
        """
        Make the aliases say what is live; returns whether anything had to be changed.

        Parameters
        ----------
        champion
            Digest of the serving bundle whose lists are live.
        previous
            That of the bundle live before it, or None.

        Raises
        ------
        TrackingUnavailableError
            If MLflow does not answer, or no version was registered from the bundle that is live.
        """
        from mlflow.exceptions import MlflowException

        try:
            before = self.client.get_registered_model(MODEL_NAME).aliases
            self._promote_bundle(champion)
            found = self.versions_of(previous) if previous else []
            if found:
                self.client.set_registered_model_alias(MODEL_NAME, PREVIOUS, str(max(found)))
            return bool(self.client.get_registered_model(MODEL_NAME).aliases != before)
        except MlflowException as error:
            raise TrackingUnavailableError(f"the aliases of {MODEL_NAME} cannot be moved: {error}") from error

    def versions_of(self, bundle: str) -> list[int]:
        """Return the versions that were registered from the bundle of a digest."""
        found = self.client.search_model_versions(f"name = '{MODEL_NAME}' AND tags.bundle = '{bundle}'")
        return [int(version.version) for version in found]

    def _ensure_model(self) -> None:
        if not self.client.search_registered_models(f"name = '{MODEL_NAME}'"):
            description = (
                "Top-K recommendations by user id out of a serving bundle. `champion` is what is published, `previous` "
                "what it replaced, `challenger` the latest that was not published."
            )
            self.client.create_registered_model(MODEL_NAME, description=description)


def _signature() -> "ModelSignature":
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    types = {USER_ID: "string", RANK: "long", ITEM_ID: "string", SCORE: "float"}
    return ModelSignature(
        inputs=Schema([ColSpec("string", USER_ID)]),
        outputs=Schema([ColSpec(kind, name) for name, kind in types.items()]),
        params=ParamSchema([ParamSpec("top_k", "long", 10)]),
    )

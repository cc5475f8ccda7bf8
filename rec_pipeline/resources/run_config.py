"""Run config written to a file, as the Launchpad and ``rec-pipeline run --config`` take it."""

from enum import Enum
from pathlib import Path
from typing import Any

from rec_pipeline.engine.artifacts import write_atomically
from rec_pipeline.engine.models.ncf_params import NCFParams


def ncf_run_config(params: NCFParams) -> dict[str, Any]:
    """Return run config under which ``ncf_model`` is trained with ``params``."""
    return {"ops": {"ncf_model": {"config": {"params": _plain(params.model_dump())}}}}


def write_run_config(path: Path, config: dict[str, Any]) -> None:
    """Write ``config`` as YAML; the folder is made."""
    import yaml  # type: ignore[import-untyped]  # comes with Dagster, its stubs do not

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, yaml.safe_dump(config, sort_keys=False))


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    # Dagster knows the members of an enum by name, not by value.
    return {key: value.name if isinstance(value, Enum) else value for key, value in values.items()}

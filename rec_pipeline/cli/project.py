"""The project folder a command works in, and what commands print about it."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from rec_pipeline.engine.errors import ConfigurationError

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output, and nothing else.")]


def project_folder() -> Path:
    """
    Return the folder this process is in.

    Raises
    ------
    ConfigurationError
        If it is not a project folder.
    """
    folder = Path.cwd()
    for name in ("dagster.yaml", "workspace.yaml"):
        if not (folder / name).is_file():
            raise ConfigurationError(f"{folder} has no {name}: change to the project folder, where that file is")
    return folder


def emit_json(document: Any) -> None:
    """Print a document as JSON; not-a-number becomes null, as JSON has none."""
    typer.echo(json.dumps(_finite(document), indent=2, ensure_ascii=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value

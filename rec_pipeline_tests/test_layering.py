"""Which room may know which: held by walking the imports."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "rec_pipeline"
ENGINE_ORDER = (
    "columns",
    "errors",
    "compute",
    "crash_points",
    "pseudonyms",
    "signing",
    "artifacts",
    "remote",
    "mirrors",
    "data",
    "models",
    "embeddings",
    "index",
    "recommenders",
    "evaluation",
    "store",
)
EMBEDDED_STORE = "rec_pipeline.resources.embedded_valkey"
ENVIRONMENT_READERS = {PACKAGE / "settings.py", PACKAGE / "resources" / "redis_store.py"}


def modules(folder: Path) -> list[Path]:
    found = sorted(folder.rglob("*.py"))
    assert found, f"no modules under {folder}"
    return found


def imported(module: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_the_engine_knows_no_orchestrator_and_no_tracker() -> None:
    for module in modules(PACKAGE / "engine"):
        roots = {name.partition(".")[0] for name in imported(module)}
        assert not roots & {"dagster", "mlflow"}, module


def test_the_engine_imports_only_itself_from_the_project() -> None:
    for module in modules(PACKAGE / "engine"):
        outside = {name for name in imported(module) if name.startswith("rec_pipeline.")}
        assert all(name.startswith("rec_pipeline.engine") for name in outside), (module, outside)


def test_benchmarks_import_only_the_engine() -> None:
    for module in modules(PACKAGE / "benchmarks"):
        inside = {name for name in imported(module) if name.startswith("rec_pipeline.")}
        assert all(name.startswith(("rec_pipeline.engine", "rec_pipeline.benchmarks")) for name in inside), module
        assert not {name.partition(".")[0] for name in imported(module)} & {"dagster", "mlflow"}, module


def test_serving_knows_the_engine_the_settings_and_where_the_embedded_store_is() -> None:
    known = ("rec_pipeline.engine", "rec_pipeline.serving", "rec_pipeline.settings", EMBEDDED_STORE)
    for module in modules(PACKAGE / "serving"):
        names = imported(module)
        assert not {name.partition(".")[0] for name in names} & {"dagster", "mlflow"}, module
        outside = {name for name in names if name.startswith("rec_pipeline.") and not name.startswith(known)}
        assert not outside, (module, outside)


@pytest.mark.parametrize("room", ENGINE_ORDER)
def test_engine_packages_import_only_those_above_them(room: str) -> None:
    place = PACKAGE / "engine" / room
    for module in modules(place) if place.is_dir() else [place.with_suffix(".py")]:
        for name in imported(module):
            if name.startswith("rec_pipeline.engine."):
                used = name.split(".")[2]
                assert ENGINE_ORDER.index(used) <= ENGINE_ORDER.index(room), f"{module} imports {name}"


def test_every_engine_module_stands_in_the_order() -> None:
    rooms = {path.stem for path in (PACKAGE / "engine").iterdir() if not path.name.startswith("__")}
    assert rooms == set(ENGINE_ORDER)


def test_heavy_libraries_are_not_imported_by_a_package_init() -> None:
    for module in modules(PACKAGE):
        if module.name == "__init__.py":
            roots = {name.partition(".")[0] for name in imported(module)}
            assert not roots & {"torch", "faiss", "mlflow", "sentence_transformers", "pandera", "matplotlib"}, module


def test_the_environment_is_read_in_one_place() -> None:
    for module in modules(PACKAGE):
        if module not in ENVIRONMENT_READERS:
            attributes = {
                f"{node.value.id}.{node.attr}"
                for node in ast.walk(ast.parse(module.read_text()))
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
            }
            assert not attributes & {"os.getenv", "os.environ.get"}, module


def test_s01_no_load_path_can_unpickle() -> None:
    for module in modules(PACKAGE):
        text = module.read_text()
        roots = {name.partition(".")[0] for name in imported(module)}
        assert not roots & {"pickle", "cloudpickle", "joblib", "dill", "shelve"}, module
        for call in ("torch.load(", "read_pickle(", "allow_pickle=True", "trust_remote_code=True"):
            assert call not in text, f"{module} uses {call}"


def test_modules_with_assets_do_not_postpone_annotations() -> None:
    for room in ("assets", "checks", "automation", "resources"):
        for module in modules(PACKAGE / room):
            assert "from __future__ import annotations" not in module.read_text(), module

"""The folders are the lineage: files, groups, graph and README drawing say the same."""

import re
from pathlib import Path

import dagster as dg

from rec_pipeline.definitions import STAGES, defs

ROOT = Path(__file__).parents[1]
ORDER = [stage.__name__.rpartition(".")[2] for stage in STAGES]


def specs() -> dict[str, dg.AssetSpec]:
    return {spec.key.to_user_string(): spec for spec in defs.resolve_all_asset_specs()}


def test_file_stem_is_asset_key_and_folder_is_group() -> None:
    files = {
        (path.stem, path.parent.name)
        for path in (ROOT / "rec_pipeline" / "assets").glob("*/*.py")
        if path.stem != "__init__"
    }

    assert files == {(key, spec.group_name) for key, spec in specs().items()}


def test_every_stage_is_a_folder_in_lineage_order() -> None:
    folders = {path.name for path in (ROOT / "rec_pipeline" / "assets").iterdir() if (path / "__init__.py").is_file()}

    assert folders == set(ORDER)


def test_no_asset_depends_on_a_later_stage() -> None:
    known = specs()
    for key, spec in known.items():
        for dep in spec.deps:
            upstream = known[dep.asset_key.to_user_string()]
            assert ORDER.index(upstream.group_name) <= ORDER.index(spec.group_name), f"{key} depends on {upstream.key}"


def test_every_asset_says_what_it_is_who_owns_it_and_what_it_is_made_with() -> None:
    for key, spec in specs().items():
        assert spec.description, key
        assert len(spec.description.strip()) > 80, key
        assert spec.owners, key
        assert 1 <= len(spec.kinds) <= 3, key


def test_every_asset_has_at_least_two_checks() -> None:
    counts = dict.fromkeys(specs(), 0)
    for check in defs.resolve_asset_graph().asset_check_keys:
        counts[check.asset_key.to_user_string()] += 1

    assert not {key: n for key, n in counts.items() if n < 2}


def test_the_readme_draws_the_graph() -> None:
    drawing = re.search(r"```mermaid\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert drawing, "README has no mermaid drawing"
    drawn = set(re.findall(r"^\s*(\w+) --> (\w+)$", drawing.group(1), re.MULTILINE))

    edges = {(dep.asset_key.to_user_string(), key) for key, spec in specs().items() for dep in spec.deps}
    assert drawn == edges

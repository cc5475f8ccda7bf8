"""Hyper-parameters searched for on the bundled sample, by the command, and used by the next run."""

import shutil

import pytest
import yaml

from rec_pipeline_tests.fixtures.project import Project, SampleRun

pytestmark = pytest.mark.slow


def test_what_is_found_is_what_a_run_accepts(sample_project: SampleRun, project: Project) -> None:
    split = "data/artifacts/interaction_split"
    shutil.copytree(sample_project.project.folder / split, project.folder / split)

    found = project.json("tune", "--trials", "2")

    written = yaml.safe_load((project.folder / "data" / "tuned.yaml").read_text())
    assert found["run_config"] == written
    (project.folder / "empty.csv").write_text("user_id,item_id\n")
    files = ("--dataset", "files", "--interactions", "empty.csv")
    taken = project.run("run", "--config", "data/tuned.yaml", *files)
    assert "empty.csv holds no rows" in taken.stderr  # the run began, so the config was taken
    written["ops"]["ncf_model"]["config"]["params"]["embedding_dim"] = "many"
    (project.folder / "other.yaml").write_text(yaml.safe_dump(written))
    refused = project.run("run", "--config", "other.yaml", *files)
    assert "embedding_dim" in refused.stderr
    assert "empty.csv" not in refused.stderr

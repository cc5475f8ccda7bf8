from pathlib import Path

import dagster as dg
import pytest

from rec_pipeline.cli.pipeline import CHECKED_FOR_CHANGE, read_run_config, variance_accepted
from rec_pipeline.definitions import defs
from rec_pipeline.engine.models.ncf_params import NCFParams
from rec_pipeline.resources.run_config import ncf_run_config, write_run_config


def test_what_a_search_writes_is_run_config_of_the_lineage(tmp_path: Path) -> None:
    path = tmp_path / "new" / "tuned.yaml"

    write_run_config(path, ncf_run_config(NCFParams(embedding_dim=48, layers=[24])))

    found = read_run_config(path)
    job = defs.get_repository_def().get_job("train_and_evaluate")
    resolved = dg.validate_run_config(job, found)
    params = resolved["ops"]["ncf_model"]["config"]["params"]
    assert (params["embedding_dim"], params["layers"]) == (48, [24])
    found["ops"]["ncf_model"]["config"]["params"]["embeding_dim"] = 1
    with pytest.raises(dg.DagsterInvalidConfigError):
        dg.validate_run_config(job, found)


@pytest.mark.parametrize("name", ["refresh_recommendations", "train_and_evaluate", "publish_recommendations"])
def test_what_accepts_variance_is_run_config_of_every_asset_of_a_job_that_is_held_against_the_last(name: str) -> None:
    job = defs.get_repository_def().get_job(name)

    resolved = dg.validate_run_config(job, variance_accepted(name))

    checked = {key for key, op in resolved["ops"].items() if "accept_variance" in (op.get("config") or {})}
    assert checked == set(CHECKED_FOR_CHANGE[name])
    assert all(resolved["ops"][key]["config"]["accept_variance"] for key in checked)

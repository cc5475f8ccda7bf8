"""The example of a cluster under docs/deploy: what can be known of it without one."""

import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._config import process_config
from dagster._core.run_coordinator import QueuedRunCoordinator

from rec_pipeline.settings import Settings
from rec_pipeline_tests.fixtures.waiting import free_port, wait_until

DEPLOY = Path(__file__).parents[1] / "docs" / "deploy"
POSTGRES = os.pathsep.join([os.environ["PATH"], *map(str, Path("/usr/lib/postgresql").glob("*/bin"))])


@cache
def documents() -> list[dict[str, Any]]:
    listed = yaml.safe_load((DEPLOY / "kustomization.yaml").read_text())["resources"]
    return [document for name in listed for document in yaml.safe_load_all((DEPLOY / name).read_text())]


def pod_specs() -> dict[str, dict[str, Any]]:
    """Every pod's spec, by the name of what makes it."""
    specs = {}
    for document in documents():
        name, spec = document["metadata"]["name"], document.get("spec", {})
        if document["kind"] == "Deployment":
            specs[name] = spec["template"]["spec"]
        elif document["kind"] == "RayCluster":
            specs |= {
                f"{name}-{number}": group["template"]["spec"]
                for number, group in enumerate([spec["headGroupSpec"], *spec["workerGroupSpecs"]])
            }
    return specs


def containers() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, spec in pod_specs().items():
        yield from ((name, container) for container in spec["containers"])


def test_manifests_follow_the_schemas_of_kubernetes() -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="make extras")
    version = kubernetes_validate.latest_version()

    for document in documents():
        if document["kind"] != "RayCluster":  # which is KubeRay's: its pods are looked at below
            kubernetes_validate.validate(document, version, strict=True)
    for name, spec in pod_specs().items():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
        kubernetes_validate.validate(pod, version, strict=True)


def test_every_setting_named_is_one_of_ours_and_readable() -> None:
    (settings,) = (document["data"] for document in documents() if document["kind"] == "ConfigMap")
    ours = {name: value for name, value in settings.items() if name.startswith("REC_")}
    known = {f"REC_{name.upper()}" for name in Settings.model_fields}

    assert ours.keys() <= known
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        assert Settings().compute == "ray"
    for page in (DEPLOY / "README.md", DEPLOY.parent / "SCALING.md"):
        named = set(re.findall(r"\bREC_[A-Z_]+", page.read_text()))
        assert named, page
        assert named <= known, page


def test_every_pod_is_bounded_unprivileged_and_made_of_the_one_image() -> None:
    names = {name for name, _ in containers()}
    assert len(names) == 7

    for name, container in containers():
        assert container["image"] == "rec-pipeline", name
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys(), name
        assert "memory" in container["resources"]["limits"], name
        assert container["securityContext"]["allowPrivilegeEscalation"] is False, name
        assert pod_specs()[name]["securityContext"]["runAsNonRoot"] is True, name


def test_no_manifest_holds_a_secret_and_services_find_their_pods() -> None:
    labels = [
        document["spec"]["template"]["metadata"]["labels"]
        for document in documents()
        if document["kind"] == "Deployment"
    ]
    for document in documents():
        assert document["kind"] != "Secret"
        if document["kind"] == "Service":
            assert document["spec"]["selector"] in labels
    for path in DEPLOY.glob("*.yaml"):
        assert not [line for line in path.read_text().splitlines() if "password:" in line and "env:" not in line], path


CHART: dict[str, set[str]] = {
    # What helm/dagster/schema of dagster 1.13 knows; it forbids the rest.
    "": {
        "concurrency", "dagster-user-deployments", "dagsterDaemon", "dagsterWebserver",
        "generatePostgresqlPasswordSecret", "global", "postgresql", "retention", "runLauncher", "telemetry",
    },
    "runLauncher": {"type", "config"},
    "concurrency": {"enabled", "pools", "runs"},
    "concurrency.pools": {"defaultLimit", "granularity", "opGranularityRunBuffer"},
    "concurrency.runs": {"maxConcurrentRuns", "tagConcurrencyLimits"},
    "dagsterDaemon": {"runMonitoring", "runRetries", "resources"},
    "dagster-user-deployments": {"enabled", "enableSubchart", "imagePullSecrets", "deployments"},
    "postgresql": {
        "enabled", "postgresqlHost", "postgresqlUsername", "postgresqlPassword", "postgresqlDatabase", "service",
    },
}  # fmt: skip


@cache
def chart_values() -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((DEPLOY / "dagster-values.yaml").read_text())
    return values


def test_the_values_of_the_chart_are_ones_it_knows_and_say_what_the_instance_of_the_manifests_says() -> None:
    values, instance = chart_values(), yaml.safe_load((DEPLOY / "dagster.yaml").read_text())
    for path, known in CHART.items():
        part = values
        for name in filter(None, path.split(".")):
            part = part[name]
        assert part.keys() <= known, path

    def snake(part: Any) -> Any:
        if isinstance(part, dict):
            return {re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower(): snake(value) for name, value in part.items()}
        return [snake(value) for value in part] if isinstance(part, list) else part

    daemon = snake(values["dagsterDaemon"])
    assert daemon["run_monitoring"] == instance["run_monitoring"]
    assert daemon["run_retries"]["max_retries"] == instance["run_retries"]["max_retries"]
    assert {name: snake(values["concurrency"][name]) for name in ("runs", "pools")} == instance["concurrency"]


def test_the_launcher_of_the_chart_is_one_that_dagster_builds_and_its_pods_follow_the_schemas() -> None:
    dagster_k8s = pytest.importorskip("dagster_k8s", reason="make extras")
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="make extras")
    launcher = chart_values()["runLauncher"]["config"]["k8sRunLauncher"]
    (deployment,) = chart_values()["dagster-user-deployments"]["deployments"]

    of_run = launcher["runK8sConfig"]
    built = dagster_k8s.job.UserDefinedDagsterK8sConfig.from_dict(
        {"pod_spec_config": of_run["podSpecConfig"], "job_spec_config": of_run["jobSpecConfig"]}
    )
    assert built.pod_spec_config["security_context"]["run_as_non_root"] is True
    config = {
        "job_namespace": "rec-pipeline",
        "service_account_name": "dagster",
        "dagster_home": "/dagster",
        "instance_config_map": "dagster-instance",
        "image_pull_policy": launcher["imagePullPolicy"],
        "load_incluster_config": launcher["loadInclusterConfig"],
        "fail_pod_on_run_failure": launcher["failPodOnRunFailure"],
        **{name: launcher[name] for name in ("resources", "volumes")},
        "volume_mounts": launcher["volumeMounts"],
    }
    checked = process_config(dagster_k8s.K8sRunLauncher.config_type(), config)
    assert checked.success, checked.errors
    for part in (launcher, deployment):
        container = {"name": "main", "image": "rec-pipeline", "resources": part["resources"]}
        spec: dict[str, Any] = {"containers": [container]}
        if "volumes" in part:
            container["volumeMounts"], spec["volumes"] = part["volumeMounts"], part["volumes"]
        else:
            container["securityContext"], spec["securityContext"] = part["securityContext"], part["podSecurityContext"]
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": spec}
        kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)


@pytest.fixture
def postgres(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A real server of this test alone, named by the variables of the example."""
    pytest.importorskip("dagster_postgres", reason="make extras")
    initdb, postgres = (shutil.which(name, path=POSTGRES) for name in ("initdb", "postgres"))
    if not (initdb and postgres):
        pytest.skip("no Postgres server on the PATH or where Debian puts it: make extras")
    account = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}
    folder = Path(tempfile.mkdtemp(prefix="rec-postgres-"))  # pytest's own are closed to that account
    if account:
        shutil.chown(folder, account["user"])
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder, **account}
    command = [initdb, "-D", str(folder / "data"), "-A", "trust", "-U", "dagster", "--no-sync"]
    subprocess.run(command, check=True, **quiet)  # noqa: S603 - a test's server
    port = free_port()
    server = [postgres, "-D", str(folder / "data"), "-p", str(port), "-h", "127.0.0.1", "-k", "", "-F"]
    process = subprocess.Popen(server, **quiet)  # noqa: S603 - as above
    try:
        wait_until(lambda: answers(port, process), despite=(OSError,))
        values = {"HOST": "127.0.0.1", "DB": "postgres", "USER": "dagster", "PASSWORD": "unused"}
        for name, value in values.items():
            monkeypatch.setenv(f"DAGSTER_PG_{name}", value)
        monkeypatch.setenv("DAGSTER_SCRATCH", str(folder / "scratch"))
        monkeypatch.setenv("PGPORT", str(port))
        yield
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def answers(port: int, process: "subprocess.Popen[bytes]") -> bool:
    assert process.poll() is None, "the server has ended"
    socket.create_connection(("127.0.0.1", port), 1).close()
    return True


@dg.asset(pool="gpu")
def counted() -> int:
    return 3


@pytest.mark.usefixtures("postgres")
def test_the_instance_keeps_runs_in_postgres_behind_a_queue(tmp_path: Path) -> None:
    text = (DEPLOY / "dagster.yaml").read_text()
    assert text.count("port: 5432") == 1
    (tmp_path / "dagster.yaml").write_text(text.replace("port: 5432", f"port: {os.environ['PGPORT']}"))

    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        result = dg.materialize([counted], instance=instance)
    with dg.DagsterInstance.from_config(str(tmp_path)) as again:
        assert again.get_run_by_id(result.run_id).status == dg.DagsterRunStatus.SUCCESS
        assert again.get_latest_materialization_event(dg.AssetKey("counted")) is not None
        assert isinstance(again.run_coordinator, QueuedRunCoordinator)
        assert again.get_concurrency_config().run_queue_config.max_concurrent_runs == 2
        assert again.run_monitoring_enabled
        assert again.run_retries_enabled
        assert again.run_retries_max_retries == 2
        again.event_log_storage.set_concurrency_slots("gpu", 1)
        assert again.event_log_storage.get_concurrency_info("gpu").slot_count == 1

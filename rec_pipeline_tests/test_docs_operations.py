"""The commands of docs/OPERATIONS.md work in the order of the page; those on access and TLS run in security/."""

import re
import subprocess
from pathlib import Path

import redis

from rec_pipeline.engine.signing import read_signer
from rec_pipeline.engine.store.connection import StoreAddress, publisher_client
from rec_pipeline.engine.store.status import status
from rec_pipeline.resources.embedded_valkey import ensure_server
from rec_pipeline.settings import settings
from rec_pipeline_tests.fixtures.cli import invoke, published_project
from rec_pipeline_tests.fixtures.operations import PAGE, blocks

__all__ = ["published_project"]
COMMAND = "rec-pipeline "


def run(line: str, folder: Path) -> None:
    if line.startswith(COMMAND):
        done = invoke(*line.removeprefix(COMMAND).split())
        assert done.code == 0, (line, done)
    else:
        subprocess.run(["/bin/sh", "-c", line], cwd=folder, check=True, capture_output=True)  # noqa: S603


def test_every_command_for_when_something_breaks_and_for_a_backup_works(published_project: Path) -> None:
    folder = published_project
    (folder / "events.csv").write_text("user_id\nu1\n")
    repairs, backups = blocks("When something breaks", "sh"), blocks("Backup and restore", "sh")
    assert (len(repairs), len(backups)) == (7, 2)

    for line in "".join(repairs).splitlines():
        run(line, folder)
    with publisher_client(ensure_server(settings().store_dir)) as client:
        (order,) = blocks("When something breaks", "redis")
        client.execute_command(*order.split())
        before = status(client, settings().generations_dir)
        assert client.get("recommendations:u00002") is None
    for line in "".join(backups).splitlines():
        run(line, folder)

    with publisher_client(ensure_server(settings().store_dir)) as client:
        restored = status(client, settings().generations_dir)
        assert restored.n_users == 1
        assert restored.sealed[:-1] == before.sealed or restored.sealed == before.sealed
        assert client.get("recommendations:u00001") is not None
        assert client.get("recommendations:u00002") is None
    assert (folder / "events.csv.sha256").read_text().endswith("events.csv\n")


def test_the_key_that_is_made_signs(tmp_path: Path) -> None:
    (commands,) = blocks("Signed artefacts", "sh")

    subprocess.run(["/bin/sh", "-c", commands], cwd=tmp_path, check=True)  # noqa: S603

    assert read_signer(tmp_path / "signing.key", required=True).sign(b"content")


def test_the_address_with_tls_is_one() -> None:
    (_, export) = blocks("TLS", "sh")
    url = export.partition('"')[2].partition('"')[0].replace("$PWD", "/etc")

    client = StoreAddress.parse(url).connect(retries=0, backoff=redis.backoff.NoBackoff())

    assert client.get_connection_kwargs()["ssl_ca_certs"] == "/etc/ca.crt"


def test_every_fault_is_on_the_page() -> None:
    section = PAGE.partition("\n## When something breaks\n")[2].partition("\n## ")[0]
    found = set()
    for heading in re.findall(r"^### .*\((.*)\)$", section, re.MULTILINE):
        for first, last in re.findall(r"F(\d\d)(?: to F(\d\d))?", heading):
            found |= set(range(int(first), int(last or first) + 1))

    assert set(range(1, 33)) <= found


def test_s16_the_threat_model_names_who_can_write_where() -> None:
    rows = [row.split("|")[1].strip() for row in PAGE.partition("\n## Threat model\n")[2].splitlines() if "|" in row]

    assert {"the store", "MLflow", "input files"} <= set(rows)
    assert any("data/artifacts" in row for row in rows)
    assert any("hub cache" in row for row in rows)

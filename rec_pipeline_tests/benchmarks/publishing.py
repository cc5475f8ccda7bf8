"""
Users staged, verified and flipped per second over a unix socket, beside what the bare server does.

Run with ``python -m rec_pipeline_tests.benchmarks.publishing``; prints JSON. A generation is published by a process of
its own, over one that is live, as every night's is. The bare figures are those of the same commands, packed beforehand
and sent as the same pipelines by a loop that only counts the bytes of the replies.
"""

import json
import multiprocessing
import resource
import shutil
import socket
import tempfile
import time
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import typer

from rec_pipeline.engine.recommenders.list_schema import LIST_SCHEMA, PERSONAL, POPULAR_USER_ID
from rec_pipeline.engine.store import keys, scripts
from rec_pipeline.engine.store.codec import encode_lists
from rec_pipeline.engine.store.commands import pack, pack_script
from rec_pipeline.engine.store.connection import publisher_client
from rec_pipeline.engine.store.generation import (
    ROWS_PER_GROUP,
    Generation,
    GenerationWriter,
    list_generations,
    renumber,
)
from rec_pipeline.engine.store.publication import USERS_PER_FLIP, PublishParams
from rec_pipeline.engine.store.publisher import publish
from rec_pipeline.resources.embedded_valkey import ensure_server, stop_server

PHASES = ("stage", "verify", "flip")
MAX_BARE_USERS = 200_000


def main(
    n_users: int = 1_000_000,
    list_length: int = 50,
    *,
    reasons: bool = False,
    append_only_file: bool = True,
    shards: int = 8,
    sealed: Path | None = None,
) -> None:
    """
    Publish ``n_users`` lists twice and time the second publication; then the bare server.

    ``sealed`` keeps the generation, which takes longer to make than to publish, for the next run.
    """
    params = PublishParams(include_reasons=reasons, shards=shards)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            url = ensure_server(folder / "store")
            with publisher_client(url) as client:
                client.config_set("appendonly", "yes" if append_only_file else "no")
            root = sealed or folder / "generations"
            first = list_generations(root)[0] if root.exists() else seal(root, n_users, list_length)
            published(url, first, params)
            second = renumber(first, after=first.number)
            measured = published(url, second, params)
            shutil.rmtree(second.directory)
            bare = bare_server(url, first, params)
        finally:
            stop_server(folder / "store")
    phases = {
        phase: {"users_per_second": round(first.n_users / measured["seconds"][phase]), "bare_server": bare[phase]}
        for phase in PHASES
    }
    facts = {
        "n_users": first.n_users,
        "list_length": list_length,
        "bytes_per_list": round(measured["n_bytes"] / first.n_users),
        "append_only_file": append_only_file,
        "shards": shards,
        "phases": phases,
        "end_to_end_seconds": measured["end_to_end_seconds"],
        "publisher_max_rss_mb": measured["max_rss_mb"],
    }
    typer.echo(json.dumps(facts, indent=2))


def seal(root: Path, n_users: int, list_length: int) -> Generation:
    """Seal lists of random items of a catalogue of 100,000, with scores of a similarity."""
    rng = np.random.default_rng(0)
    with GenerationWriter(root) as writer:
        for start in range(0, n_users, ROWS_PER_GROUP):
            size = min(ROWS_PER_GROUP, n_users - start)
            writer.add(lists([f"user{start + row}" for row in range(size)], list_length, rng))
        return writer.seal({}, popular=lists([POPULAR_USER_ID], list_length, rng))


def lists(user_ids: list[str], length: int, rng: np.random.Generator) -> pa.RecordBatch:
    """Return one list a user; items of one list are one step apart in the catalogue, so they differ."""
    n_lists, n_items = len(user_ids), len(user_ids) * length
    step = rng.integers(1, 100_000 // length, (n_lists, 1))
    rows = (rng.integers(100_000, size=(n_lists, 1)) + step * np.arange(length)) % 100_000
    offsets = np.arange(0, n_items + 1, length, dtype=np.int32)
    sources = pa.StructArray.from_arrays(
        [
            pa.array(["collaborative"] * n_items),
            pa.array(np.ones(n_items, np.int32)),
            pa.array(np.ones(n_items, np.float32)),
        ],
        fields=list(LIST_SCHEMA.field("sources").type.value_type.value_type),
    )
    columns = [
        pc.binary_join_element_wise("i", pa.array(rows.ravel()).cast(pa.string()), ""),
        pa.array(-np.sort(-rng.random((n_lists, length), dtype=np.float32), axis=1).ravel()),
        pa.ListArray.from_arrays(np.arange(n_items + 1, dtype=np.int32), sources),
        pa.array(["Readers of what you read also read it"] * n_items),
    ]
    return pa.RecordBatch.from_arrays(
        [
            pa.array(user_ids),
            *(pa.ListArray.from_arrays(offsets, column) for column in columns),
            pa.array([PERSONAL] * n_lists),
        ],
        schema=LIST_SCHEMA,
    )


def published(url: str, generation: Generation, params: PublishParams) -> dict[str, Any]:
    """Publish from a process of its own; return what it did, how long it took and its largest memory."""
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_publish, args=(url, generation.directory, params, sending))
    process.start()
    found: dict[str, Any] = receiving.recv()
    process.join()
    return found


def _publish(url: str, directory: Path, params: PublishParams, sending: Any) -> None:
    generation = Generation.open(directory)
    started = time.perf_counter()
    with publisher_client(url) as client:
        done = publish(client, generation, params)
    facts = {
        "end_to_end_seconds": round(time.perf_counter() - started, 1),
        "max_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    sending.send({**asdict(done), **facts})


def bare_server(url: str, generation: Generation, params: PublishParams) -> dict[str, int]:
    """Return users per second of each phase's commands, of the first ``MAX_BARE_USERS`` users."""
    number = generation.number + 2
    seconds = dict.fromkeys(PHASES, 0.0)
    n_users = 0
    with publisher_client(url) as client, socket.socket(socket.AF_UNIX) as connection:
        connection.connect(url.removeprefix("unix://"))
        sha = client.script_load(scripts.FLIP)
        for group in generation.row_groups():
            if n_users >= MAX_BARE_USERS:
                break
            batch = group.read()
            n_users += len(batch)
            values = encode_lists(batch, number, include_reasons=params.include_reasons)
            live, stage = keys.live_keys(batch["user_id"]), keys.stage_keys(batch["user_id"], number)
            expiry = pa.array([str(int(time.time() + params.ttl_seconds) * 1000)] * len(batch))
            n_value_bytes = np.asarray(pc.binary_length(values))
            n_flipped = np.diff(np.append(np.arange(0, len(batch), USERS_PER_FLIP), len(batch)))
            phases = {
                "stage": (1, pack("SET", stage, values, "PXAT", expiry), np.full(len(batch), len("+OK\r\n"))),
                "verify": (1, pack("GET", stage), n_value_bytes + n_digits(n_value_bytes) + len("$\r\n\r\n")),
                "flip": (
                    USERS_PER_FLIP,
                    pack_script(sha, (live, stage), str(number), USERS_PER_FLIP),
                    len("*\r\n") + n_digits(n_flipped) + len(":1\r\n") * n_flipped,
                ),
            }
            for phase, (users_per_command, commands, n_reply_bytes) in phases.items():
                pipelines = np.arange(0, len(commands), params.batch_size // users_per_command)
                expected = np.add.reduceat(n_reply_bytes, pipelines)
                packed = [b"".join(map(str.encode, commands[a:b].to_pylist())) for a, b in pairwise([*pipelines, None])]
                started = time.perf_counter()
                for pipeline, n_bytes in zip(packed, expected.tolist(), strict=True):
                    connection.sendall(pipeline)
                    while n_bytes > 0:
                        n_bytes -= len(connection.recv(n_bytes))
                seconds[phase] += time.perf_counter() - started
    return {phase: round(n_users / seconds[phase]) for phase in PHASES}


def n_digits(numbers: Any) -> Any:
    """Return how many decimal digits each number has, int64 of the same shape."""
    return np.char.str_len(numbers.astype(str))


if __name__ == "__main__":
    typer.run(main)

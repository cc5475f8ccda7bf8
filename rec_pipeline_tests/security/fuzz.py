"""
Hostile bytes for everything that reads what others wrote: only the documented errors may come back.

``python -m rec_pipeline_tests.security.fuzz --minutes 10`` mutates the seeds of each target for that long, and what
they have found so far. An input on which a target fails becomes a file of ``corpus/<target>``, which the suite replays
from then on.
"""

import argparse
import gzip
import hashlib
import io
import json
import random
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from redis.crc import key_slot

from rec_pipeline.engine.artifacts import MANIFEST, read_manifest, seal_directory
from rec_pipeline.engine.data.entries import entry_fields, read_entries
from rec_pipeline.engine.data.events import Event, EventRules, Served, make_event
from rec_pipeline.engine.data.ids import are_valid_ids, check_id
from rec_pipeline.engine.data.source import FileSource
from rec_pipeline.engine.data.validation import ValidationParams, validate_interactions
from rec_pipeline.engine.errors import (
    ArtifactIntegrityError,
    ConfigurationError,
    InputRejectedError,
    InvalidEventError,
    InvalidIdError,
    RecPipelineError,
    StoredValueError,
)
from rec_pipeline.engine.store import keys
from rec_pipeline.engine.store.codec import decode_list, user_checksum
from rec_pipeline.engine.store.connection import StoreAddress
from rec_pipeline.engine.store.suppression import FILE, suppressed_on_disk
from rec_pipeline.serving.answers import Answer

CORPUS: Final = Path(__file__).parent / "corpus"
MAX_GROWTH_BYTES: Final = 512 << 20
MAX_BYTES: Final = 1 << 16
NOW: Final = pd.Timestamp("2024-06-01", tz="UTC")
RULES: Final = EventRules()
LENIENT: Final = ValidationParams(
    min_interactions=1, min_users=0, min_items=1, max_quarantined_share=1, max_unreadable_share=1
)
TOKENS: Final = (
    b"\0", b"\n", b"\r\n", b'"', b",", b"\t", b"{", b"}", b"[" * 2000, b"]", b"\xff", b"\xed\xa0\x80", b"\xe2\x80\xa8",
    b"NaN", b"-1", b"0", b"1e999", b"1e308", b"-0.0", b"18446744073709551616", b"9223372036854775807", b"null", b"true",
    b"../../etc/passwd", b"*", b"\\ud800", b"\\u0000", b"1970-01-01", b"9999-12-31T23:59:59Z", b"a" * 300, b"|", b"::",
)  # fmt: skip


def identifier(data: bytes) -> None:
    text = data.decode(errors="surrogateescape")
    try:
        check_id(text)
    except InvalidIdError:
        is_valid = False
    else:
        is_valid = True
        live, stage = keys.live_key(text), keys.stage_key(text, 7)
        assert key_slot(live.encode()) == key_slot(stage.encode()), "a stage in another slot"
        assert not set(live) & set("\r\n\0{}"), "a key that breaks out"
    if text.isprintable() and text.encode(errors="ignore").decode() == text:
        assert bool(are_valid_ids(pa.array([text]))[0]) == is_valid, "the two forms of the rule differ"


def event(data: bytes) -> None:
    try:
        given = json.loads(data)
    except (ValueError, RecursionError):
        return
    names = ("user_id", "item_id", "event_type", "timestamp", "context", "event_id")
    fields = {name: given[name] for name in names if name in given} if isinstance(given, dict) else {}
    try:
        made = make_event(RULES, **{"user_id": "u", "item_id": "i", "event_type": "click", **fields})
    except InvalidEventError:
        return
    flat = [part.encode() for field in entry_fields(made).items() for part in field]
    # The clock of the entry is the one that the event was checked against.
    table, refused = read_entries([(f"{time.time_ns() // 1_000_000}-0".encode(), flat)], RULES)
    assert (len(table), len(refused)) == (1, 0), f"an event that is none as an entry: {refused.to_pylist()}"


def entry(data: bytes) -> None:
    parts = data.split(b"\x1f")
    flat = parts[: len(parts) // 2 * 2]
    table, refused = read_entries([(b"1717200000000-0", flat), (b"1717200000001-0", [])], RULES)
    assert len(table) + len(refused) >= 2, "an entry went missing"
    assert are_valid_ids(table["user_id"].combine_chunks()).all(), "an event of a user that is none"


def table_of(suffix: str) -> Callable[[bytes], None]:
    def read(data: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"events{suffix}"
            path.write_bytes(gzip.compress(data, mtime=0, compresslevel=1) if suffix == ".csv.gz" else data)
            raw = FileSource(path).read_interactions()
        items = pd.DataFrame({"item_id": pd.Series(raw["item_id"].dropna().unique(), dtype="str")})
        kept = validate_interactions(raw, items, LENIENT, NOW)  # which asserts that the rows add up
        assert are_valid_ids(pa.array(kept.table["user_id"])).all(), "an id that is none was kept"

    return read


def checksum(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.csv"
        path.write_bytes(CSV)
        path.with_name("events.csv.sha256").write_bytes(data)
        assert len(FileSource(path).read_interactions()) == 2


def stored_list(data: bytes) -> None:
    published = decode_list(data, "u1")
    assert published.items, "a list without items"


def stored_answer(data: bytes) -> None:
    answer = Answer.decode(data, "u1")
    assert all(isinstance(item["id"], str) for item in answer.items[:5])
    assert all(isinstance(shares, dict) for shares in answer.shares[:5])
    orjson.dumps([answer.left_out, answer.items, answer.age_seconds, answer.generation])


def manifest(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / MANIFEST).write_bytes(data)
        found = read_manifest(Path(folder))
        assert not any(Path(name).is_absolute() or ".." in Path(name).parts for name in found.files)


def forgotten(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / FILE).write_bytes(data)
        assert all(isinstance(digest, str) for digest in suppressed_on_disk(Path(folder)))


def address(data: bytes) -> None:
    StoreAddress.parse(data.decode(errors="replace"))


@dataclass(frozen=True)
class Target:
    """
    What is fed, the errors it may answer with, and inputs it takes.

    Attributes
    ----------
    feed, allowed, seeds
        See above.
    """

    feed: Callable[[bytes], None]
    allowed: type[RecPipelineError]
    seeds: tuple[bytes, ...]


def _parquet() -> bytes:
    table = pa.table({"user_id": ["u1", "u2"], "item_id": ["a", "b"], "timestamp": [1_700_000_000, 1_700_000_001]})
    content = io.BytesIO()
    pq.write_table(table, content, compression="zstd")
    return content.getvalue()


def _manifest() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "file").write_text("x")
        seal_directory(Path(folder), "kind", {"run": 1})
        return (Path(folder) / MANIFEST).read_bytes()


def _entry() -> bytes:
    shown = Event("u1", "i1", "click", 1_717_200_000_000, "e1", {"device": "tv"}, Served(("ncf", "content"), 3))
    return b"\x1f".join(part.encode() for field in entry_fields(shown).items() for part in field)


CSV: Final = b"user_id,item_id,timestamp,rating\nu1,a,1700000000,5\nu2,b,2024-01-01T00:00:00Z,3.5\n"
EVENT: Final = (
    b'{"user_id":"u1","item_id":"i1","event_type":"click","timestamp":"2024-02-10T15:30:00Z",'
    b'"context":{"device":"tv"},"event_id":"e1"}'
)
LIST: Final = (
    f'[{{"gen":17,"u":"{user_checksum("u1")}","id":"i5","score":0.9,"sources":["ncf"],"reason":"r"}},'
    '{"id":"i9","score":0.8}]'
).encode()
ANSWER: Final = Answer("u1", [{"id": "i1", "score": 0.5}], "generated", 3, "b", 1.7e9, shares=({"ncf": 1.0},)).encode()
TARGETS: Final[dict[str, Target]] = {
    "id": Target(identifier, InvalidIdError, (b"u1", "用户".encode(), b"a:b/c*d?[e]")),
    "event": Target(event, InvalidEventError, (EVENT, EVENT.replace(b'"2024-02-10T15:30:00Z"', b"1707579000.5"))),
    "entry": Target(entry, InvalidEventError, (_entry(),)),
    "csv": Target(table_of(".csv"), InputRejectedError, (CSV, CSV.replace(b"u1", b'"u\n""1"'))),
    "tsv": Target(table_of(".tsv"), InputRejectedError, (CSV.replace(b",", b"\t"),)),
    "gzip": Target(table_of(".csv.gz"), InputRejectedError, (CSV,)),
    "parquet": Target(table_of(".parquet"), InputRejectedError, (_parquet(),)),
    "checksum": Target(checksum, InputRejectedError, (f"{hashlib.sha256(CSV).hexdigest()}  events.csv\n".encode(),)),
    "list": Target(stored_list, StoredValueError, (LIST,)),
    "answer": Target(stored_answer, StoredValueError, (ANSWER,)),
    "manifest": Target(manifest, ArtifactIntegrityError, (_manifest(),)),
    "forgotten": Target(forgotten, ArtifactIntegrityError, (b'["00ff", "11ee"]',)),
    "address": Target(
        address,
        ConfigurationError,
        (b"rediss+sentinel://u:p@a:1,b/main/2?sentinel_password=x&ssl_ca_certs=/c", b"redis://:p@h:6379/0"),
    ),
}


def feed(name: str, data: bytes) -> None:
    """Feed one target; raises whatever is not documented."""
    target = TARGETS[name]
    try:
        target.feed(data)
    except target.allowed:
        return


def mutated(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """Return the input changed in one to eight places."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        place = rng.randint(0, len(found))
        match rng.randrange(7):
            case 0 if found:
                found[place % len(found)] ^= 1 << rng.randrange(8)
            case 1:
                found[place:place] = rng.choice(TOKENS)
            case 2:
                token = rng.choice(TOKENS)
                found[place : place + len(token)] = token
            case 3:
                del found[place : place + rng.randint(1, 16)]
            case 4:
                found[place:place] = found[place : place + rng.randint(1, 64)]
            case 5:
                other = rng.choice(others)
                cut = rng.randint(0, len(other))
                found[place:] = other[cut:]
            case _:
                found[place:place] = rng.randbytes(rng.randint(1, 8))
    return bytes(found[:MAX_BYTES])


def corpus_of(name: str) -> list[bytes]:
    """Return the seeds of a target and what failed in the past."""
    return [*TARGETS[name].seeds, *(path.read_bytes() for path in sorted((CORPUS / name).glob("*")))]


def explore(name: str, seconds: float, rng: random.Random) -> tuple[int, list[str]]:
    """Mutate the inputs of a target for a time; return how many were fed, and what failed, each kind once."""
    inputs, n_fed, failures = corpus_of(name), 0, {}
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        data = mutated(rng.choice(inputs), rng, inputs)
        n_fed += 1
        try:
            feed(name, data)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            kind = f"{type(error).__name__} at {Path(where.filename).name}:{where.lineno}"
            if kind not in failures:
                failures[kind] = f"{name}: {kind}: {str(error)[:200]}"
                folder = CORPUS / name
                folder.mkdir(parents=True, exist_ok=True)
                (folder / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    return n_fed, list(failures.values())


def main() -> int:
    """Fuzz every target for its share of the time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", choices=sorted(TARGETS), action="append")
    options = parser.parse_args()
    chosen: list[str] = options.target or list(TARGETS)
    found: list[str] = []
    for name in chosen:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        rng = random.Random(f"{options.seed} {name}")  # noqa: S311 - repeatable, not secret
        n_fed, failures = explore(name, 60 * options.minutes / len(chosen), rng)
        growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
        if growth > MAX_GROWTH_BYTES:
            failures.append(f"{name}: memory grew by {growth >> 20} MB")
        found += failures
        sys.stdout.write(f"{name:10} {n_fed:9,} inputs  {len(failures)} failures  {growth >> 20} MB more\n")
        sys.stdout.flush()
    sys.stdout.write("".join(f"{failure}\n" for failure in found))
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())

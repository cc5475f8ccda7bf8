"""
Answers and events over HTTP and in Python, under load that does not wait: latency and throughput.

Run with ``python -m rec_pipeline_tests.benchmarks.serving``; prints JSON. One ``rec-pipeline serve`` on one core
answers from a bundle of 10,000 items (random interactions: what is timed depends on sizes and not on taste), published
to an embedded store; requests come from this process, on another core. Arrivals are Poisson and latency counts from the
moment a request was due, so that a service that falls behind cannot hide it; at most 64 requests are under way.
"""

import asyncio
import gc
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import scipy.sparse as sp
import typer
import uvloop

from rec_pipeline.engine.artifacts import ArtifactStore
from rec_pipeline.engine.data.id_map import IdMap
from rec_pipeline.engine.data.sequences import UserSequences
from rec_pipeline.engine.embeddings.item_embeddings import ItemEmbeddings, sequence_embeddings
from rec_pipeline.engine.index.vector_index import IndexParams, build_index
from rec_pipeline.engine.models.ncf_params import NCFParams, TrainingOptions
from rec_pipeline.engine.models.ncf_training import fit_ncf
from rec_pipeline.engine.models.popularity import PopularityModel
from rec_pipeline.engine.models.sequence_params import SequenceParams
from rec_pipeline.engine.models.sequence_training import fit_sequence
from rec_pipeline.engine.models.trending import TrendingModel
from rec_pipeline.engine.recommenders.bundle import ServingBundle
from rec_pipeline.engine.recommenders.context import ContextLifts
from rec_pipeline.engine.recommenders.filters import ItemFacts
from rec_pipeline.engine.recommenders.lists import popular_list, recommend_all
from rec_pipeline.engine.recommenders.params import HybridParams
from rec_pipeline.engine.store.connection import publisher_client
from rec_pipeline.engine.store.generation import Generation, GenerationWriter
from rec_pipeline.engine.store.publisher import publish
from rec_pipeline.resources.embedded_valkey import ensure_server, stop_server
from rec_pipeline.serving.recommenders import HybridRecommender
from rec_pipeline_tests.fixtures.project import new_project

EVENTS_PER_USER = 30
TEXT_DIM = 384
CONNECTIONS = 64
ZIPF = 1.1
IDLE_SECONDS = 2.0


def main(n_items: int = 10_000, n_users: int = 5_000, seconds: float = 20, seed: int = 0) -> None:
    """Measure each promise for ``seconds``."""
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as name:
        project = new_project(Path(name))
        data = project.folder / "data"
        try:
            bundle = random_bundle(rng, n_users, n_items)
            ArtifactStore(data / "artifacts").write("serving_bundle", bundle.save, kind="ServingBundle")
            url = ensure_server(data / "store")
            seal_and_publish(data, url)
            results = {"load_average_before": os.getloadavg()[0], "python": asyncio.run(python(data, url, n_users))}
            with served(project.folder) as (port, cpu_seconds):
                client = Client(port)
                load = Load(client, rng, n_users, n_items, seconds, cpu_seconds)
                results |= uvloop.run(load.all())
                results["published_under_load"] = uvloop.run(load.while_publishing(data, url))
            results["load_average_after"] = os.getloadavg()[0]
        finally:
            stop_server(data / "store")
    typer.echo(json.dumps(results, indent=2))


def random_bundle(rng: np.random.Generator, n_users: int, n_items: int) -> ServingBundle:
    """Return a bundle of models of the default sizes, trained for an epoch on random interactions."""
    users = IdMap(np.array([f"u{row:05d}" for row in range(n_users)], dtype=object))
    items = IdMap(np.array([f"i{row:05d}" for row in range(n_items)], dtype=object))
    item_idx = (n_items ** rng.random((n_users, EVENTS_PER_USER))).astype(np.int64) - 1
    user_idx = np.repeat(np.arange(n_users), EVENTS_PER_USER)
    history = sp.csr_matrix((np.ones(user_idx.size, np.float32), (user_idx, item_idx.ravel())), (n_users, n_items))
    history.data[:] = 1
    sequences = UserSequences(np.arange(0, user_idx.size + 1, EVENTS_PER_USER), item_idx.ravel())
    options = TrainingOptions(device="cpu", seed=1, n_threads=1)
    ncf = fit_ncf(history, NCFParams(epochs=1, pretrain_epochs=1), options).model
    sequence = fit_sequence(sequences, n_items, SequenceParams(epochs=1), options).model
    texts = rng.normal(size=(n_items, TEXT_DIM)).astype(np.float32)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    everywhere = np.ones(n_items, dtype=bool)
    content = ItemEmbeddings(items, texts, everywhere, "random")
    following = sequence_embeddings(items, sequence.item_vectors(), sequence.is_fitted_item)
    facts = ItemFacts.of(pd.DataFrame({"categories": rng.choice(["drama", "comedy", "horror|drama"], n_items)}))
    events = pd.DataFrame({"device": rng.choice(["mobile", "tv"], user_idx.size)})
    counts = np.bincount(history.indices, minlength=n_items).astype(np.float32)
    return ServingBundle(
        users=users,
        items=items,
        history=history,
        sequences=sequences,
        titles=items.ids,
        facts=facts,
        lifts=ContextLifts.fit(events, item_idx.ravel(), facts.in_category),
        ncf=ncf,
        sequence=sequence,
        popularity=PopularityModel.fit(history),
        trending=TrendingModel(counts, 7.0, counts, 7.0),
        content_embeddings=content,
        content_index=build_index(content, IndexParams()),
        collaborative_index=build_index(ItemEmbeddings(items, ncf.item_vectors(), everywhere, "ncf"), IndexParams()),
        sequence_index=build_index(following, IndexParams()),
        params=HybridParams(),
        metadata={},
    )


def seal(bundle: ServingBundle, data: Path) -> Generation:
    """Seal what the bundle recommends."""
    version = ArtifactStore(data / "artifacts").manifest("serving_bundle").version
    with GenerationWriter(data / "generations") as writer:
        for lists in recommend_all(bundle, top_k=20):
            writer.add(lists)
        return writer.seal({"bundle": version}, popular=popular_list(bundle, top_k=20))


def seal_and_publish(data: Path, url: str) -> int:
    """Publish what the bundle recommends; return the number of the generation."""
    generation = seal(ServingBundle.load(ArtifactStore(data / "artifacts").path("serving_bundle")), data)
    with publisher_client(url) as store:
        publish(store, generation)
    return generation.number


@contextmanager
def served(folder: Path) -> Iterator[tuple[int, Callable[[], float]]]:
    """Run the command on the first core; give its port and what tells the processor seconds it has used."""
    cores = sorted(os.sched_getaffinity(0))
    command = [sys.executable, "-m", "rec_pipeline", "serve", "--port", "18300", "--rate", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True, env=environment) as process:  # noqa: S603
        try:
            os.sched_setaffinity(process.pid, cores[:1])
            os.sched_setaffinity(0, cores[1:] or cores)
            assert process.stdout is not None
            port = int(process.stdout.readline().rpartition(":")[2])
            stat = Path(f"/proc/{process.pid}/stat")
            while httpx.get(f"http://127.0.0.1:{port}/health/ready", trust_env=False).status_code != httpx.codes.OK:
                time.sleep(0.2)
            gc.collect()
            gc.freeze()  # or the one who asks stands still for 0.2 s, looking through its modules
            yield port, lambda: cpu_seconds(stat)
        finally:
            os.sched_setaffinity(0, cores)
            process.terminate()


def cpu_seconds(stat: Path) -> float:
    """Return the processor seconds a process has used."""
    fields = stat.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Client:
    """HTTP/1.1 over connections that stay open, for as long as the service keeps idle ones."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter, float]] = []

    async def ask(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """Return the document of a 2xx response."""
        while self._free:
            reader, writer, idle_since = self._free.pop()
            if time.monotonic() - idle_since < IDLE_SECONDS:
                break
            writer.close()
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        content = b"" if body is None else json.dumps(body).encode()
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
        )
        writer.write(head.encode() + b"\r\n\r\n" + content)
        head_received = await reader.readuntil(b"\r\n\r\n")
        length = int(head_received.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        document = json.loads(await reader.readexactly(length))
        self._free.append((reader, writer, time.monotonic()))
        if head_received[9:10] != b"2":
            raise RuntimeError(document)
        return document  # type: ignore[no-any-return]

    def close(self) -> None:
        """Close the connections."""
        for _, writer, _ in self._free:
            writer.close()
        self._free.clear()


class Load:
    """What is asked of the service, and how quickly it answers."""

    def __init__(
        self,
        client: Client,
        rng: np.random.Generator,
        n_users: int,
        n_items: int,
        seconds: float,
        cpu: Callable[[], float],
    ) -> None:
        self.client, self.rng, self.n_users, self.n_items, self.seconds, self.cpu = (
            client, rng, n_users, n_items, seconds, cpu,
        )  # fmt: skip
        self.generations: set[int] = set()
        self.sources: dict[str, int] = {}

    async def all(self) -> dict[str, Any]:
        """Ask everything, one kind after the other."""
        users = self.users(4000)
        for user in set(users):
            await self.cached(user)
        found = {
            "cached_500_per_second": await self.at(500, self.cached, users),
            "cached_1000_per_second": await self.at(1000, self.cached, users),
            "live_50_per_second": await self.at(50, self.live, self.anybody(4000)),
            "generated_20_per_second": await self.at(20, self.generated, self.anybody(4000)),
            "events_single_500_per_second": await self.at(500, self.event, users),
            "events_batched": await self.batches(),
        }
        self.client.close()
        return found

    async def while_publishing(self, data: Path, url: str) -> dict[str, Any]:
        """Ask for cached answers while a process of its own seals and publishes the next generation."""
        users = self.users(4000)
        for user in set(users):
            await self.cached(user)
        loop = asyncio.get_running_loop()
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as publisher:
            await loop.run_in_executor(publisher, os.getpid)  # it has started
            self.generations.clear()
            publishing = loop.run_in_executor(publisher, seal_and_publish, data, url)
            found = await self.at(500, self.cached, users, until=publishing)
            self.client.close()
            return found | {"generations": sorted(self.generations), "live": await publishing}

    def users(self, n: int) -> list[str]:
        """Draw users, few of them often."""
        rows = np.minimum(self.rng.zipf(ZIPF, n), 10**9) % self.n_users
        return [f"u{row:05d}" for row in rows]

    def anybody(self, n: int) -> list[str]:
        """Draw users, all as often."""
        return [f"u{row:05d}" for row in self.rng.integers(self.n_users, size=n)]

    async def cached(self, user: str) -> None:
        """Ask as the page does."""
        answer = await self.client.ask("GET", f"/recommendations/{user}?top_k=10")
        if answer["user_id"] != user or len(answer["items"]) != 10:
            raise RuntimeError(answer)
        self.generations.add(answer["generation"])
        self._note(answer)

    async def alive(self, _: str) -> None:
        """Ask for what takes nothing but the way there and back."""
        await self.client.ask("GET", "/health/live")

    async def live(self, user: str) -> float:
        """Record a click and ask, the answer timed alone; returns the seconds that do not count."""
        started = time.perf_counter()
        await self.event(user)
        spent = time.perf_counter() - started
        answer = await self.client.ask("GET", f"/recommendations/{user}?top_k=10")
        self._note(answer)
        return spent

    async def generated(self, user: str) -> None:
        """Ask what nobody has asked before."""
        answer = await self.client.ask("GET", f"/recommendations/{user}?exclude=i{self.rng.integers(10**6):06d}")
        self._note(answer)

    async def event(self, user: str) -> None:
        """Record a click."""
        item = f"i{self.rng.integers(self.n_items):05d}"
        await self.client.ask("POST", "/events", {"user_id": user, "item_id": item, "event_type": "click"})

    async def batches(self) -> dict[str, Any]:
        """Send batches of 500 events, one after another."""
        n_events, started, before = 0, time.perf_counter(), self.cpu()
        while time.perf_counter() - started < self.seconds / 2:
            items = self.rng.integers(self.n_items, size=500)
            events = [
                {"user_id": user, "item_id": f"i{item:05d}", "event_type": "click", "context": {"device": "tv"}}
                for user, item in zip(self.users(500), items, strict=True)
            ]
            n_events += (await self.client.ask("POST", "/events", {"events": events}))["recorded"]
        spent = time.perf_counter() - started
        return {
            "events_per_second": round(n_events / spent),
            "events_per_cpu_second_of_the_service": round(n_events / (self.cpu() - before)),
        }

    def _note(self, answer: dict[str, Any]) -> None:
        name = answer["source"] + (" degraded" if answer["degraded"] else "")
        self.sources[name] = self.sources.get(name, 0) + 1

    async def at(
        self,
        rate: float,
        ask: Callable[[str], Awaitable[float | None]],
        users: Sequence[str],
        until: "asyncio.Future[Any] | None" = None,
    ) -> dict[str, Any]:
        """Ask at ``rate`` a second, at random moments, for the time of a measurement or until something is done."""
        self.client.close()  # the service ends connections that were idle for long
        self.sources = {}
        latency: list[float] = []
        errors: list[str] = []
        gate = asyncio.Semaphore(CONNECTIONS)

        async def one(due: float, user: str) -> None:
            async with gate:
                try:
                    spent = await ask(user) or 0.0
                    latency.append(time.perf_counter() - due - spent)
                except (RuntimeError, OSError, asyncio.IncompleteReadError) as error:
                    errors.append(str(error)[:200])

        before, started = self.cpu(), time.perf_counter()
        due, asked = started, []
        while not until.done() if until else due - started < self.seconds:
            due += self.rng.exponential(1 / rate)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            asked.append(asyncio.create_task(one(due, users[len(asked) % len(users)])))
        await asyncio.gather(*asked)
        spent = time.perf_counter() - started
        return {
            "n": len(latency),
            "per_second": round(len(latency) / spent, 1),
            **milliseconds(latency),
            "cpu_ms_of_the_service": round((self.cpu() - before) / max(1, len(latency)) * 1000, 3),
            "sources": dict(self.sources),
            "n_errors": len(errors),
            "first_error": errors[0] if errors else "",
        }


def milliseconds(latency: Sequence[float]) -> dict[str, float]:
    """Return median, upper quantiles, and the shares that came within 5 and 20 ms."""
    names, spent = {"p50_ms": 50, "p99_ms": 99, "p99.9_ms": 99.9}, 1000 * np.asarray(latency)
    return {name: round(float(np.percentile(spent, share)), 2) for name, share in names.items()} | {
        f"share_within_{bound}_ms": round(float((spent <= bound).mean()), 4) for bound in (5, 20)
    }


async def python(data: Path, url: str, n_users: int, n: int = 3000) -> dict[str, Any]:
    """Ask for cached answers in Python and for the same lists by a bare GET of the same client, by turns."""
    async with HybridRecommender({"bundle": str(data), "rt_config": {"redis_url": url}}) as recommender:
        users = [f"u{row:05d}" for row in range(min(n_users, 500))]
        for user in users:
            await recommender.get_recommendations(user)
        bare = recommender.service.store._client()
        spent: dict[str, list[float]] = {"recommender": [], "get": []}
        for turn in range(n):
            user = users[turn % len(users)]
            started = time.perf_counter()
            await recommender.get_recommendations(user)
            middle = time.perf_counter()
            json.loads(await bare.get(f"recommendations:{user}"))
            spent["recommender"].append(middle - started)
            spent["get"].append(time.perf_counter() - middle)
    ratio = statistics.median(spent["recommender"]) / statistics.median(spent["get"])
    return {name: milliseconds(values) for name, values in spent.items()} | {"ratio_of_medians": round(ratio, 2)}


if __name__ == "__main__":
    typer.run(main)

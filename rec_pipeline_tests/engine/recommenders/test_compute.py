"""What is computed elsewhere is what this process would have made, to the last bit, ties included."""

import json
import os
import pickle
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import redis
import torch

from rec_pipeline.benchmarks.scale import MOVED
from rec_pipeline.engine.compute import LOCAL, Compute, Group
from rec_pipeline.engine.data.batches import Ranking
from rec_pipeline.engine.embeddings.encoder import SentenceTransformerEncoder, TextEncoder
from rec_pipeline.engine.embeddings.item_embeddings import EmbeddingCache, embed_items
from rec_pipeline.engine.errors import ComputeFailedError, GateRefusedError, PublishFailedError
from rec_pipeline.engine.evaluation.params import EvaluationParams
from rec_pipeline.engine.evaluation.protocol import evaluate_recommenders
from rec_pipeline.engine.evaluation.report import TABLES, EvaluationReport
from rec_pipeline.engine.index.exact import search_exactly
from rec_pipeline.engine.models.ncf_params import TrainingOptions
from rec_pipeline.engine.models.sequence_training import fit_sequence
from rec_pipeline.engine.recommenders import lists
from rec_pipeline.engine.recommenders.bundle import ServingBundle
from rec_pipeline.engine.recommenders.global_ranker import GlobalRanker
from rec_pipeline.engine.store import keys
from rec_pipeline.engine.store.publication import PublishParams
from rec_pipeline.engine.store.publisher import publish
from rec_pipeline.resources.deployment import resources_for
from rec_pipeline.settings import Settings
from rec_pipeline_tests.engine.embeddings.test_item_embeddings import HashEncoder
from rec_pipeline_tests.engine.models import test_sequence as sequence
from rec_pipeline_tests.fixtures.split import split_of
from rec_pipeline_tests.fixtures.store import seal_lists

N_WORKERS = 2
TOP_K, NOW = 5, 1.7e9


class LastFirst:
    """Computes the last shard first and each from a copy of what is shared, as processes do that share nothing."""

    n_trainers, together = LOCAL.n_trainers, LOCAL.together

    def map(self, function: Callable[[Any, Any], Any], shards: Iterable[Any], shared: Any, **_: bool) -> Iterator[Any]:
        whole, given = pickle.dumps(shared), [pickle.dumps(shard) for shard in shards]
        results = [pickle.dumps(function(pickle.loads(whole), pickle.loads(shard))) for shard in reversed(given)]  # noqa: S301 - ours
        return map(pickle.loads, reversed(results))


@pytest.fixture(scope="module", params=["last first", "ray"])
def elsewhere(request: pytest.FixtureRequest) -> Iterator[Compute]:
    if request.param == "last first":
        yield LastFirst()
        return
    pytest.importorskip("ray", reason="Ray is not installed: make extras")
    from rec_pipeline.resources.ray_compute import RayCompute

    with closing(RayCompute(n_workers=N_WORKERS)) as compute:
        yield compute


def lists_of(bundle: ServingBundle, compute: Compute, batch_size: int) -> list[pa.RecordBatch]:
    return list(lists.recommend_all(bundle, top_k=TOP_K, batch_size=batch_size, now=NOW, compute=compute))


@pytest.mark.parametrize("batch_size", [1, 7, 1024])
def test_every_list_is_the_same(bundle: ServingBundle, elsewhere: Compute, batch_size: int) -> None:
    here = lists_of(bundle, LOCAL, batch_size)
    assert sum(map(len, here)) == len(bundle.users)
    assert lists_of(bundle, elsewhere, batch_size) == here


def evaluated(bundle: ServingBundle, compute: Compute, batch_size: int) -> EvaluationReport:
    """Every user is held one item out that is not in the history; popularity, of whole numbers, is full of ties."""
    user_idx, item_idx = bundle.history.nonzero()
    held_out = np.array([np.setdiff1d(np.arange(38), row.indices)[0] for row in bundle.history])
    days = {"2024-01-01": (user_idx, item_idx), "2024-02-01": (np.arange(len(bundle.users)), held_out)}
    train, test = (
        pd.DataFrame({"user_idx": users.astype(np.int64), "item_idx": items.astype(np.int64)}).assign(
            timestamp=pd.Timestamp(day, tz="UTC"), weight=np.float32(1)
        )
        for day, (users, items) in days.items()
    )
    split = split_of(
        train=train,
        validation=train[:0],
        test=test,
        users=bundle.users,
        items=bundle.items,
        strategy="time",
        boundaries={"test_from": "2024-02-01"},
    )
    rankers = [GlobalRanker("popularity", bundle.trending.weight), bundle.recommender()]
    return evaluate_recommenders(
        rankers,
        split,
        item_vectors=bundle.content_embeddings.vectors,
        params=EvaluationParams(batch_size=batch_size, n_resamples=100),
        compute=compute,
    )


@pytest.mark.parametrize("batch_size", [7, 1024])
def test_an_evaluation_is_the_same(bundle: ServingBundle, elsewhere: Compute, batch_size: int) -> None:
    here, there = evaluated(bundle, LOCAL, batch_size), evaluated(bundle, elsewhere, batch_size)

    for table in TABLES:
        pd.testing.assert_frame_equal(getattr(there, table), getattr(here, table), check_exact=True)
    assert there.data == here.data


def embedded(encoder: TextEncoder, compute: Compute, folder: Path) -> bytes:
    items = pd.DataFrame({"item_id": ["a", "b", "c"], "title": ["A heist", "Ægir 獅子 and a lion", "Snow"]})
    return embed_items(items, encoder, EmbeddingCache(folder), compute=compute)[0].vectors.tobytes()


@pytest.fixture
def two_texts_a_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rec_pipeline.engine.embeddings.item_embeddings.CHUNK_SIZE", 2)


@pytest.mark.usefixtures("two_texts_a_shard")
def test_vectors_of_texts_are_the_same(elsewhere: Compute, tmp_path: Path) -> None:
    here, there = (embedded(HashEncoder(), compute, tmp_path / str(id(compute))) for compute in (LOCAL, elsewhere))
    assert there == here


@pytest.mark.parametrize("elsewhere", ["ray"], indirect=True)
def test_the_encoder_is_loaded_where_it_is_used(elsewhere: Compute, tmp_path: Path) -> None:
    encoder = SentenceTransformerEncoder(device="cpu")

    there = embedded(encoder, elsewhere, tmp_path / "there")
    assert "_model" not in vars(encoder)
    assert there == embedded(encoder, LOCAL, tmp_path / "here")


@pytest.mark.parametrize("n_queries", [9, 300], ids=["shards of items", "shards of queries"])
@pytest.mark.parametrize("shard_rows", [7, 37, 1000])
def test_exact_search_by_shards_orders_ties_as_one_process_does(
    elsewhere: Compute, n_queries: int, shard_rows: int
) -> None:
    rng = np.random.default_rng(4)
    vectors = rng.integers(0, 3, (100, 4)).astype(np.float32)  # whole numbers: sums are exact, and full of ties
    queries = rng.integers(0, 2, (n_queries, 4)).astype(np.float32)
    expected = Ranking.from_scores(queries @ vectors.T, 20)
    assert (np.diff(expected.score, axis=1) == 0).mean() > 0.5

    found = search_exactly(vectors, queries, 20, shard_rows=shard_rows, compute=elsewhere)

    np.testing.assert_array_equal(found.item_idx, expected.item_idx)
    np.testing.assert_array_equal(found.score, expected.score)


USERS = [f"u{number}" for number in range(450)]


def published(compute: Compute, store: "redis.Redis", root: Path) -> dict[str, Any]:
    publication = publish(store, seal_lists(root, USERS, "a"), PublishParams(), compute=compute)
    assert publication.n_users == len(USERS)
    lists = {user: json.loads(store.get(keys.live_key(user))) for user in USERS}
    return {user: [(entry["id"], entry["score"]) for entry in entries] for user, entries in lists.items()}


def test_what_is_published_is_the_same(elsewhere: Compute, store: "redis.Redis", tmp_path: Path) -> None:
    there = published(elsewhere, store, tmp_path / "there")
    store.flushall()
    assert published(LOCAL, store, tmp_path / "here") == there


def zeros(_: object, n: int) -> "np.ndarray[Any, Any]":
    return np.zeros(n, dtype=np.uint8)


@pytest.mark.parametrize("elsewhere", ["ray"], indirect=True)
def test_what_moved_is_told_as_the_benchmark_reads_it(elsewhere: Compute, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(elsewhere, "_tell", lines.append)

    results = elsewhere.map(zeros, [1_000_000, 2_000_000], zeros(None, 500_000))
    assert [len(next(results)) for _ in range(2)] == [1_000_000, 2_000_000]

    (line,) = lines
    found = MOVED.match(f"    {line}")
    assert found is not None
    assert int(found.group(1).replace(",", "")) == pytest.approx(3_500_000, rel=1e-2)


def refused(_: None, shard: int) -> int:
    if shard:
        raise GateRefusedError(f"shard {shard} is refused")
    return shard


def test_what_a_shard_raises_comes_as_it_is(elsewhere: Compute) -> None:
    with pytest.raises(GateRefusedError, match=r"^shard 1 is refused$"):
        list(elsewhere.map(refused, [0, 1], None))


def test_a_cluster_that_does_not_start_is_a_failure_that_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed: make extras")
    from rec_pipeline.resources.ray_compute import RayCompute

    def too_slow(**_: object) -> None:
        raise Exception("The current node timed out during startup.")  # noqa: TRY002 - what Ray raises

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", too_slow)

    with pytest.raises(ComputeFailedError, match=r"^Ray at this machine cannot be used: .* timed out") as caught:
        RayCompute(n_workers=1).map(refused, [0], None)

    assert caught.value.is_transient


@pytest.fixture
def trainers(elsewhere: Compute, monkeypatch: pytest.MonkeyPatch) -> Compute:
    monkeypatch.setattr(elsewhere, "n_trainers", N_WORKERS + 1)
    return elsewhere


def quality(seed: int, compute: Compute, checkpoint_dir: Path | None = None) -> float:
    """Return ndcg@10 of the last items of planted sequences, of which a part is noise."""
    train, validation = sequence.held_out(sequence.walks(seed=5))
    params = sequence.PARAMS.model_copy(update={"epochs": 8, "dropout": 0.3})
    options = TrainingOptions(seed=seed, n_threads=1, checkpoint_seconds=0)
    fit = fit_sequence(
        train,
        sequence.N_ITEMS,
        params,
        options,
        validation=validation,
        checkpoint_dir=checkpoint_dir,
        compute=compute,
    )
    return max(entry.validation_ndcg or 0 for entry in fit.history)


@pytest.mark.parametrize("elsewhere", ["ray"], indirect=True)
def test_workers_train_as_well_as_one_process_with_other_seeds(trainers: Compute) -> None:
    alone = [quality(seed, LOCAL) for seed in range(5)]

    spread = max(alone) - min(alone)
    assert 0 < spread < 0.2
    assert min(alone) - spread < quality(0, trainers) < max(alone) + spread


class OneIsKilled:
    """Runs elsewhere; there a worker ends itself by SIGKILL at the first shard, or in the midst of training."""

    def __init__(self, compute: Compute, mark: Path, n_kills: int = 1) -> None:
        self.compute, self.n_trainers = compute, compute.n_trainers
        self.marks = [mark.with_suffix(f".{number}") for number in range(n_kills)]

    def map(
        self, function: Callable[[Any, Any], Any], shards: Iterable[Any], shared: Any, **options: bool
    ) -> Iterator[Any]:
        return self.compute.map(partial(mortal, function, self.marks), enumerate(shards), shared, **options)

    def together(self, member: Callable[[Group], Any], lead: Callable[[Group], Any]) -> Any:
        return self.compute.together(partial(mortal_member, member, self.marks), lead)


def kill_yourself(marks: list[Path]) -> None:
    for mark in marks:
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def mortal(function: Callable[[Any, Any], Any], marks: list[Path], shared: Any, numbered: tuple[int, Any]) -> Any:
    if numbered[0] == 0:
        kill_yourself(marks)
    return function(shared, numbered[1])


class MortalGroup:
    def __init__(self, group: Group, marks: list[Path]) -> None:
        self.group, self.marks, self.n_calls = group, marks, 0
        self.rank, self.n_members, self.spread = group.rank, group.n_members, group.spread

    def add(self, *tensors: Any) -> None:
        self.n_calls += 1
        if self.n_calls == 7 and self.rank == 1:
            kill_yourself(self.marks)
        self.group.add(*tensors)


def mortal_member(member: Callable[[Group], Any], marks: list[Path], group: Group) -> None:
    member(MortalGroup(group, marks))


@pytest.fixture(params=["lists", "evaluation", "texts", "publication", "training"])
def phase(
    request: pytest.FixtureRequest, bundle: ServingBundle, store: "redis.Redis"
) -> Callable[[Compute, Path], Any]:
    """A phase that Ray computes: from who computes and a folder to what comes out."""
    phases: dict[str, Callable[[Compute, Path], Any]] = {
        "lists": lambda compute, _: lists_of(bundle, compute, 20),
        "evaluation": lambda compute, _: pd.util.hash_pandas_object(evaluated(bundle, compute, 20).per_user).tolist(),
        "texts": lambda compute, folder: embedded(HashEncoder(), compute, folder),
        "publication": lambda compute, folder: published(compute, store, folder),
        "training": lambda compute, folder: quality(0, compute, folder),
    }
    return phases[request.param]


@pytest.mark.parametrize("elsewhere", ["ray"], indirect=True)
@pytest.mark.usefixtures("two_texts_a_shard")
def test_workers_killed_in_the_midst_of_a_phase_change_nothing_and_too_many_end_it_for_the_next_to_complete(
    trainers: Compute,
    phase: Callable[[Compute, Path], Any],
    store: "redis.Redis",
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rec_pipeline.resources.ray_compute.TRIES_AGAIN", 1)
    whole = phase(trainers, tmp_path / "whole")
    store.flushall()

    once = OneIsKilled(trainers, tmp_path / "once")
    assert phase(once, tmp_path / "one lost") == whole
    assert all(mark.exists() for mark in once.marks)
    store.flushall()

    with pytest.raises((ComputeFailedError, PublishFailedError)):
        phase(OneIsKilled(trainers, tmp_path / "twice", n_kills=2), tmp_path / "two lost")
    assert not list(store.scan_iter(keys.live_key("*")))
    again = phase(trainers, tmp_path / "two lost")
    assert again == whole


def member_of_three_steps(mark: Path | None, group: Group) -> None:
    for step in range(3):
        if mark is not None and step == group.rank == 1:
            kill_yourself([mark])
        group.add(torch.ones(1))


def lead_of_steps(n_steps: int, group: Group) -> float:
    total = torch.zeros(1)
    for _ in range(n_steps):
        total = torch.ones(1)
        group.add(total)
    if n_steps < 3:
        raise ValueError(f"after {n_steps} steps")
    return float(total)


@pytest.mark.parametrize("elsewhere", ["ray"], indirect=True)
def test_whoever_trained_ends_without_being_cancelled(
    trainers: Compute, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ray ends this process if it has a task cancelled that ends just then.
    cancelled: list[object] = []
    monkeypatch.setattr("ray.cancel", lambda *arguments, **_: cancelled.extend(arguments))

    assert trainers.together(partial(member_of_three_steps, None), partial(lead_of_steps, 3)) == trainers.n_trainers
    mark = tmp_path / "killed"
    assert trainers.together(partial(member_of_three_steps, mark), partial(lead_of_steps, 3)) == trainers.n_trainers
    assert mark.exists()
    with pytest.raises(ValueError, match="after 1 steps"):
        trainers.together(partial(member_of_three_steps, None), partial(lead_of_steps, 1))
    assert not cancelled


def test_ray_is_not_imported_unless_asked_for() -> None:
    with resources_for(Settings())["compute"].yield_for_execution(dg.build_init_resource_context()) as compute:
        assert compute is LOCAL

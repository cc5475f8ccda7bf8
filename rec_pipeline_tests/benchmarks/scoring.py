"""
The best 100 unseen items of every user of the NCF paper's split, by NeuMF in one and two stages and by implicit's ALS.

Run with ``python -m rec_pipeline_tests.benchmarks.scoring DIR``; prints JSON. In two stages an index retrieves
candidates by the GMF branch and the whole network ranks them; ``kept`` is the share of the exact first 100 that it
finds. ALS is a bare inner product (``recommend`` of the library, 64 factors). ``bound`` is what the multiplications
alone allow a processor second, at the speed of a product of two large matrices that is measured in the same minute.
"""

import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer

from rec_pipeline.benchmarks.ncf_paper import read_paper_split
from rec_pipeline.engine.data.batches import IdxMatrix, UserBatch, iterate_users
from rec_pipeline.engine.data.id_map import IdMap
from rec_pipeline.engine.embeddings.item_embeddings import collaborative_embeddings
from rec_pipeline.engine.index.vector_index import IndexParams, build_index
from rec_pipeline.engine.models.ncf import NCFModel
from rec_pipeline.engine.models.ncf_params import NCFParams, TrainingOptions
from rec_pipeline.engine.models.ncf_training import fit_ncf
from rec_pipeline.engine.recommenders.collaborative import CollaborativeRanker
from rec_pipeline_tests.benchmarks.training import gflops_of_a_product

TOP_K, BATCH_SIZE, REPEATS = 100, 512, 2


def main(directory: Path, candidates: list[int] = [120, 150, 300], n_threads: int = 1) -> None:  # noqa: B006
    """Fit both, rank with each twice and print the fastest."""
    from implicit.cpu.als import AlternatingLeastSquares
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(n_threads)
    train = read_paper_split(directory).train
    batches = list(iterate_users(train, np.arange(train.shape[0]), BATCH_SIZE))
    model = fit_ncf(train, NCFParams(), TrainingOptions(n_threads=n_threads)).model
    items = IdMap(np.arange(model.n_items).astype(str))
    index = build_index(collaborative_embeddings(items, model.item_vectors()), IndexParams())
    als = AlternatingLeastSquares(factors=64, random_state=0, num_threads=n_threads)
    with threadpool_limits(n_threads):
        als.fit(train, show_progress=False)
        gflops = gflops_of_a_product()
        exact, row = _timed(batches, lambda users: _ncf(CollaborativeRanker(model), users))
        rows: list[dict[str, Any]] = [{"name": "neumf, exact", **row, **_bound(_exact_flop(model), gflops)}]
        for n_candidates in candidates:
            ranker = CollaborativeRanker(model, index, n_candidates=n_candidates, exact_up_to=0)
            found, row = _timed(batches, lambda users, ranker=ranker: _ncf(ranker, users))  # type: ignore[misc]
            kept = float((exact[:, :, None] == found[:, None, :]).any(2).mean())
            bound = _bound(_two_stage_flop(model, n_candidates), gflops)
            rows.append({"name": f"neumf, {n_candidates} candidates", "kept": kept, **row, **bound})
        _, row = _timed(batches, lambda users: _als(als, users))
    rows.append({"name": "implicit's ALS", **row, **_bound(2 * 64 * train.shape[1], gflops)})
    typer.echo(json.dumps({"gflops": gflops, "n_threads": n_threads, "rows": rows}, indent=2))


def _ncf(ranker: CollaborativeRanker, users: UserBatch) -> IdxMatrix:
    return ranker.recommend(users, TOP_K).item_idx


def _als(model: Any, users: UserBatch) -> IdxMatrix:
    items, _ = model.recommend(users.user_idx, users.history, N=TOP_K, filter_already_liked_items=True)
    return np.asarray(items, dtype=np.int64)


def _timed(batches: list[UserBatch], recommend: Callable[[UserBatch], IdxMatrix]) -> tuple[IdxMatrix, dict[str, float]]:
    """Return the lists, and users a second by the clock and by processor time of all threads, the best of a few."""
    n_users = sum(map(len, batches))
    clock, processor = [], []
    for _ in range(REPEATS):
        started, worked = time.perf_counter(), time.process_time()
        found = np.concatenate([recommend(users) for users in batches])
        clock.append(time.perf_counter() - started)
        processor.append(time.process_time() - worked)
    return found, {
        "users_per_second": n_users / min(clock),
        "users_per_processor_second": n_users / min(processor),
    }


def _bound(flop: float, gflops: float) -> dict[str, float]:
    return {"bound": gflops * 1e9 / flop}


def _mlp_flop(model: NCFModel) -> int:
    """Return the floating point operations of a pair after the first layer."""
    widths = [*model.params.layers, 1]
    return 2 * sum(below * above for below, above in itertools.pairwise(widths))


def _exact_flop(model: NCFModel) -> int:
    return model.n_items * (2 * model.network.gmf_dim + _mlp_flop(model))


def _two_stage_flop(model: NCFModel, n_candidates: int) -> int:
    return 2 * model.n_items * (model.network.gmf_dim + 1) + n_candidates * _mlp_flop(model)


if __name__ == "__main__":
    typer.run(main)

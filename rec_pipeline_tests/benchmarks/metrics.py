"""
Time of all metrics at five cutoffs against pytrec_eval, on the same generated rankings.

Run with ``OMP_NUM_THREADS=1 python -m rec_pipeline_tests.benchmarks.metrics``; prints JSON. Times are processor
seconds, which other work on the machine changes little. pytrec_eval gets its dictionaries ready-made: their
construction is timed apart. It has neither mrr at a cutoff nor anything beyond accuracy, so it does less.
"""

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytrec_eval
import scipy.sparse as sp
import typer

from rec_pipeline.engine.evaluation import metrics

CUTOFFS = [5, 10, 20, 50, 100]
MEASURES = ("P", "recall", "ndcg_cut", "success", "map_cut")
BLOCK = 1024  # users at a time, as evaluations go


def main(n_users: int = 100_000, n_items: int = 20_000, n_relevant: int = 20, repeats: int = 5) -> None:
    """Rank ``n_items`` for ``n_users`` and print the best of ``repeats`` runs (one of pytrec_eval)."""
    rng = np.random.default_rng(0)
    ranking = (rng.integers(n_items, size=(n_users, 1)) + np.arange(100) * 127) % n_items
    found = np.take_along_axis(ranking, rng.integers(100, size=(n_users, n_relevant)), axis=1)
    held_out = np.where(rng.random(found.shape) < 0.5, found, rng.integers(n_items, size=found.shape))
    rows = np.repeat(np.arange(n_users), n_relevant)
    relevant = sp.csr_matrix((np.ones(rows.size, np.float32), (rows, held_out.ravel())), shape=(n_users, n_items))
    item_value = rng.random(n_items)
    blocks = [slice(start, start + BLOCK) for start in range(0, n_users, BLOCK)]

    def accuracy() -> Any:
        return [metrics.accuracy_metrics(ranking[block], relevant[block], CUTOFFS) for block in blocks]

    def beyond_accuracy() -> Any:
        for block in blocks:
            metrics.list_mean("novelty", ranking[block], item_value, CUTOFFS)
            metrics.list_mean("popularity_percentile", ranking[block], item_value, CUTOFFS)
            metrics.exposure(ranking[block], n_items, CUTOFFS)

    def dictionaries() -> Any:
        run = {
            str(user): {str(item): float(-rank) for rank, item in enumerate(row)}
            for user, row in enumerate(ranking.tolist())
        }
        truth = {str(user): {str(item): 1 for item in row} for user, row in enumerate(held_out.tolist())}
        wanted = {f"{measure}.{','.join(map(str, CUTOFFS))}" for measure in MEASURES} | {"recip_rank"}
        return run, pytrec_eval.RelevanceEvaluator(truth, wanted)

    ours, values = best(accuracy, repeats)
    beyond, _ = best(beyond_accuracy, repeats)
    preparation, (run, evaluator) = best(dictionaries, 1)
    theirs, results = best(lambda: evaluator.evaluate(run), 1)

    ndcg = np.concatenate([value["ndcg@10"] for value in values])
    off = max(abs(results[str(user)]["ndcg_cut_10"] - ndcg[user]) for user in range(n_users))
    report = {
        "n_users": n_users,
        "accuracy_seconds": ours,
        "beyond_accuracy_seconds": beyond,
        "pytrec_eval_seconds": theirs,
        "pytrec_eval_dictionaries_seconds": preparation,
        "ratio_accuracy": theirs / ours,
        "ratio_all": theirs / (ours + beyond),
        "ratio_all_with_dictionaries": (theirs + preparation) / (ours + beyond),
        "largest_difference_ndcg": off,
    }
    typer.echo(json.dumps(report, indent=2))


def best(work: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Return the shortest time of ``repeats`` runs in processor seconds, and the last result."""
    seconds, result = [], None
    for _ in range(repeats):
        start = time.process_time()
        result = work()
        seconds.append(time.process_time() - start)
    return min(seconds), result


if __name__ == "__main__":
    typer.run(main)

"""
Training throughput of NeuMF, vectors of 64 in both branches, layers 128-64, on the train part of the NCF paper's split.

Run with ``python -m rec_pipeline_tests.benchmarks.training DIR``; prints JSON, one entry a phase. A sample is a pair of
user and item that was scored and learned from, positive or negative; negatives are shared by a batch of users, so
there are far more of them to a positive than the paper's four. ``positives_per_second`` does not depend on that. Rates
by processor time, of all threads together, mean something on a busy machine too. ``bound`` is what the multiplications
of the MLP alone allow, at the speed of a product of two large matrices that is measured in the same minute.
"""

import itertools
import json
import time
from pathlib import Path

import torch
import typer

from rec_pipeline.benchmarks.ncf_paper import read_paper_split
from rec_pipeline.engine.models.ncf_params import NCFParams, TrainingOptions
from rec_pipeline.engine.models.ncf_training import fit_ncf
from rec_pipeline.engine.models.training import EpochMetrics, threads

EPOCHS, SQUARE = 3, 2048


def main(directory: Path, n_threads: int = 0) -> None:
    """Train a few epochs of each phase and print the fastest but the first."""
    train = read_paper_split(directory).train
    params = NCFParams(embedding_dim=64, mlp_dim=64, layers=[128, 64], pretrain_epochs=EPOCHS, epochs=EPOCHS)
    work = [time.process_time()]
    epochs: dict[str, list[tuple[EpochMetrics, float]]] = {}

    def on_epoch(metrics: EpochMetrics) -> None:
        work.append(time.process_time())
        epochs.setdefault(metrics.phase, []).append((metrics, work[-1] - work[-2]))

    fit_ncf(train, params, TrainingOptions(n_threads=n_threads), on_epoch=on_epoch)
    phases = {
        phase: {
            "seconds_per_epoch": min(metrics.seconds for metrics, _ in rest),
            "samples_per_second": max(metrics.samples_per_second for metrics, _ in rest),
            "samples_per_processor_second": max(m.samples_per_second * m.seconds / worked for m, worked in rest),
            "positives_per_second": train.nnz / min(metrics.seconds for metrics, _ in rest),
        }
        for phase, (_, *rest) in epochs.items()
    }
    with threads(n_threads):
        gflops = gflops_of_a_product()
    # Forward, and twice as much for the gradients; the first layer is multiplied once a user and item, not once a pair.
    flop = 3 * sum(2 * below * above for below, above in itertools.pairwise([*params.layers, 1]))
    bound = {"gflop_per_processor_second": gflops, "samples_per_processor_second": gflops * 1e9 / flop}
    typer.echo(json.dumps(phases | {"bound of network": bound}, indent=2))


def gflops_of_a_product() -> float:
    """Return the speed of a float32 product, in 1e9 operations a processor second, the best of five."""
    matrix = torch.randn(SQUARE, SQUARE)
    seconds = []
    for _ in range(5):
        started = time.process_time()
        matrix @ matrix
        seconds.append(time.process_time() - started)
    return 2 * SQUARE**3 / min(seconds) / 1e9


if __name__ == "__main__":
    typer.run(main)

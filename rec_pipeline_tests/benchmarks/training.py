"""
Training throughput of NeuMF, vectors of 64 in both branches, layers 128-64, on the train part of the NCF paper's split.

Run with ``python -m rec_pipeline_tests.benchmarks.training DIR``; prints JSON, one entry a phase. A sample is a pair of
user and item that was scored and learned from, positive or negative; negatives are shared by a batch of users, so
there are far more of them to a positive than the paper's four. ``positives_per_second`` does not depend on that.
"""

import json
from pathlib import Path

import typer

from rec_pipeline.benchmarks.ncf_paper import read_paper_split
from rec_pipeline.engine.models.ncf import fit_ncf
from rec_pipeline.engine.models.ncf_params import NCFParams, TrainingOptions


def main(directory: Path, n_threads: int = 0) -> None:
    """Train two epochs of each phase and print the second."""
    train = read_paper_split(directory).train
    params = NCFParams(embedding_dim=64, mlp_dim=64, layers=[128, 64], pretrain_epochs=2, epochs=2)
    history = fit_ncf(train, params, TrainingOptions(n_threads=n_threads)).history
    phases = {
        entry.phase: {
            "seconds_per_epoch": entry.seconds,
            "samples_per_second": entry.samples_per_second,
            "positives_per_second": train.nnz / entry.seconds,
        }
        for entry in history
    }
    typer.echo(json.dumps(phases, indent=2))


if __name__ == "__main__":
    typer.run(main)

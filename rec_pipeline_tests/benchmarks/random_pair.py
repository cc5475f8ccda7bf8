"""
A train and a test file cut at random out of interactions, for ``rec-pipeline benchmark full-ranking``.

Run with ``python -m rec_pipeline_tests.benchmarks.random_pair FILE FOLDER``; FILE is Parquet with ``user_id`` and
``item_id``, or MovieLens 100K's ``u.data``. A share of its rows can be taken first, to see models where less is known.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import typer

TEST_SHARE = 0.2
KEYS = ["user_id", "item_id"]


def main(file: Path, folder: Path, share: float = 1.0, seed: int = 0) -> None:
    """Write ``train.parquet`` and ``test.parquet``; users and items that are in no train row are not tested."""
    rng = np.random.default_rng(seed)
    is_parquet = file.suffix == ".parquet"
    table = (
        pd.read_parquet(file, columns=KEYS) if is_parquet else pd.read_csv(file, sep="\t", names=KEYS, usecols=[0, 1])
    )
    table = table.drop_duplicates()
    table = table[rng.random(len(table)) < share]
    is_test = rng.random(len(table)) < TEST_SHARE
    train, test = table[~is_test], table[is_test]
    test = test[test["user_id"].isin(train["user_id"]) & test["item_id"].isin(train["item_id"])]
    folder.mkdir(parents=True, exist_ok=True)
    train.to_parquet(folder / "train.parquet")
    test.to_parquet(folder / "test.parquet")
    typer.echo(f"{len(train):,} train rows, {len(test):,} test rows, {train['user_id'].nunique():,} users")


if __name__ == "__main__":
    typer.run(main)

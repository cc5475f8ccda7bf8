"""Full ranking of a pair of files whose answer is known."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rec_pipeline.benchmarks import full_ranking
from rec_pipeline.benchmarks.contenders import Contender
from rec_pipeline.engine.data.batches import ScoreMatrix, UserBatch
from rec_pipeline.engine.errors import ConfigurationError


class Rising:
    """Later item rows score higher, for everybody."""

    def score(self, users: UserBatch) -> ScoreMatrix:
        return np.tile(np.arange(users.n_items, dtype=np.float32), (len(users), 1))


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Items i00..i29: a has the last five in train, and i24 and i00 held out; b has no test row, c no train row."""
    train = pd.DataFrame(
        {"user_id": ["a"] * 5 + ["b"] * 30, "item_id": [f"i{n:02}" for n in [*range(25, 30), *range(30)]]}
    )
    test = pd.DataFrame({"user_id": list("aaaac"), "item_id": ["i24", "i24", "i00", "i25", "i28"], "time": 0})
    train.to_parquet(tmp_path / "train.parquet")
    test.to_csv(tmp_path / "test.csv", index=False)
    return tmp_path / "train.parquet", tmp_path / "test.csv"


def test_metrics_are_of_the_whole_catalogue_without_what_train_has(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(full_ranking, "SCORE_CELLS", 30)  # one user at a time
    entrants = [
        Contender("rising", lambda *_: Rising()),
        Contender("small", lambda *_: Rising(), max_items=29),
        Contender("absent", lambda *_: Rising(), unavailable="not installed"),
    ]
    monkeypatch.setattr(full_ranking, "contenders", lambda _: entrants)

    facts, rows = full_ranking.run(*files)

    # a: i24 first of two held out (i25 is known from train); c: i28 second of one.
    ideal_of_two = 1 + 1 / np.log2(3)
    assert rows[0]["recall"] == pytest.approx((1 / 2 + 1) / 2)
    assert rows[0]["ndcg"] == pytest.approx((1 / ideal_of_two + 1 / np.log2(3)) / 2)
    assert [row["skipped"] for row in rows] == [None, "at most 29 items fit, found 30", "not installed"]
    assert facts == {
        "n_users": 3,
        "n_items": 30,
        "n_train": 35,
        "n_test": 3,
        "n_test_known_again": 1,
        "n_test_repeated": 1,
    }


def test_files_that_cannot_be_used_are_named(files: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("user,item_id\n1,2\n")
    (tmp_path / "gaps.csv").write_text("user_id,item_id\n1,\n")

    with pytest.raises(ConfigurationError, match="no such file"):
        full_ranking.run(tmp_path / "none.csv", files[1])
    with pytest.raises(ConfigurationError, match="columns user_id and item_id"):
        full_ranking.run(tmp_path / "other.csv", files[1])
    with pytest.raises(ConfigurationError, match="1 rows lack an id"):
        full_ranking.run(tmp_path / "gaps.csv", files[1])
    with pytest.raises(ConfigurationError, match="nothing is left to rank"):
        full_ranking.run(files[0], files[0])

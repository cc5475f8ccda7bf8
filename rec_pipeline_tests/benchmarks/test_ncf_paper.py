"""The paper's protocol on files small enough to rank by hand."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rec_pipeline.benchmarks import ncf_paper
from rec_pipeline.benchmarks.contenders import Contender
from rec_pipeline.engine.data.batches import ScoreMatrix, UserBatch
from rec_pipeline.engine.errors import ConfigurationError

N_NEGATIVES = 12


class FixedScores:
    """The same score of each item for everybody."""

    def __init__(self, score: list[float]) -> None:
        self._score = np.array(score, dtype=np.float32)

    def score(self, users: UserBatch) -> ScoreMatrix:
        return np.tile(self._score, (len(users), 1))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Two users; items 0..12 are candidates, and user 1 has the own test item among the negatives."""
    pd.DataFrame({"user_id": [0, 0, 1], "item_id": [13, 14, 13], "rating": 5}).to_parquet(tmp_path / "train.parquet")
    test = pd.DataFrame({"user_id": [0, 1], "item_id": [0, 1]})
    test.to_parquet(tmp_path / "test.parquet")
    negatives = [list(range(1, 13)), list(range(1, 13))]
    pd.DataFrame({"user_id": [0, 1], "positive": [0, 1], "negatives": negatives}).to_parquet(
        tmp_path / "test_negatives.parquet"
    )
    return tmp_path


def test_own_test_item_among_the_negatives_is_dropped_and_ranks_give_the_metrics(directory: Path) -> None:
    split = ncf_paper.read_paper_split(directory)
    falling = FixedScores([float(-item) for item in range(15)])

    hit_rate, ndcg = ncf_paper.sampled_metrics(falling, split)

    assert split.negatives[1, 0] == -1
    assert split.train.shape == (2, 15)
    assert (hit_rate, ndcg) == (1, 1)  # item 0 before 1..12, item 1 before 2..12


def test_a_tie_counts_against_the_model(directory: Path) -> None:
    split = ncf_paper.read_paper_split(directory)
    tied_with_two = FixedScores([5, 0, 5, 5, *[-1.0] * 11])

    hit_rate, ndcg = ncf_paper.sampled_metrics(tied_with_two, split)

    # User 0: items 2 and 3 tie, so rank 3. User 1: items 2 and 3 are above, so rank 3 as well.
    assert hit_rate == 1
    assert ndcg == pytest.approx(1 / np.log2(4))
    assert ncf_paper.sampled_metrics(FixedScores([0.0] * 15), split) == (0, 0)


def test_a_table_has_every_contender_the_skipped_and_the_published(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    falling = [float(-item) for item in range(15)]
    entrants = [
        Contender("plain", lambda _, __: FixedScores(falling)),
        Contender("seeded", lambda _, seed: FixedScores([value * (1 - seed) for value in falling]), is_seeded=True),
        Contender("absent", lambda _, __: FixedScores(falling), unavailable="not installed"),
    ]
    monkeypatch.setattr(ncf_paper, "contenders", lambda _: entrants)

    rows = {row["name"]: row for row in ncf_paper.run(directory, seeds=2)}

    assert list(rows) == ["plain", "seeded", "absent", "neumf_published", "mf_published"]
    assert (rows["plain"]["n_seeds"], rows["plain"]["sampled_hit_rate"]) == (1, 1)
    assert (rows["seeded"]["n_seeds"], rows["seeded"]["sampled_hit_rate"]) == (2, 0.5)
    assert rows["seeded"]["sampled_hit_rate_sd"] == pytest.approx(np.sqrt(0.5))
    assert (rows["absent"]["sampled_ndcg"], rows["absent"]["skipped"]) == (None, "not installed")


def test_the_validation_part_is_cut_out_of_the_train_part_alone(directory: Path) -> None:
    split = ncf_paper.read_paper_split(directory)

    validation = ncf_paper.validation_split(split)

    # User 1 has one interaction and is left out; user 0 has 13 and 14, of which one is held out.
    assert sorted([validation.test_idx[0], validation.train.indices[0]]) == [13, 14]
    assert validation.train.shape == (1, 15)
    assert len(set(validation.negatives[0])) == N_NEGATIVES
    assert not set(validation.negatives[0]) & {13, 14}


def test_settings_are_chosen_on_validation_data_and_shown(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rising = [float(item) for item in range(15)]  # right on validation, where 13 or 14 is held out, wrong on test
    good = Contender("entrant", lambda *_: FixedScores(rising), settings="good")
    bad = Contender("entrant", lambda *_: FixedScores(rising[::-1]), settings="bad", alternatives=(good,))
    monkeypatch.setattr(ncf_paper, "contenders", lambda _: [bad])

    row = ncf_paper.run(directory, seeds=1)[0]

    assert row["settings"] == "good"
    assert row["sampled_hit_rate"] == 0


def test_missing_files_and_unknown_names_are_said(directory: Path) -> None:
    with pytest.raises(ConfigurationError, match="expected some of popularity, item_knn, ease"):
        ncf_paper.run(directory, seeds=1, only=["eas"])
    (directory / "test.parquet").unlink()
    with pytest.raises(ConfigurationError, match=r"has no test\.parquet"):
        ncf_paper.run(directory, seeds=1)


def test_the_baselines_fit_on_files_of_the_protocol(directory: Path) -> None:
    rows = ncf_paper.run(directory, seeds=1, only=["popularity", "item_knn", "ease"])

    assert [row["name"] for row in rows[:3]] == ["popularity", "item_knn", "ease"]
    assert all(row["skipped"] is None for row in rows)

import numpy as np
import pandas as pd

from rec_pipeline.engine.data.pairs import count_repeated_pairs, is_first_of_pair


def test_the_first_of_each_pair_is_found_whatever_the_number_of_users(rng: np.random.Generator) -> None:
    table = pd.DataFrame({"user_idx": rng.integers(100, size=3000), "item_idx": rng.integers(30, size=3000)})
    table = table.astype(np.int32)

    is_first = is_first_of_pair(table)

    assert np.array_equal(is_first, ~table.duplicated().to_numpy())
    assert 0 < is_first.sum() < 3000
    assert count_repeated_pairs(table[:1000], table[1000:]) == 3000 - is_first.sum()


def test_pairs_of_large_rows_do_not_collide() -> None:
    largest = np.iinfo(np.int32).max
    table = pd.DataFrame({"user_idx": [largest, largest, 0], "item_idx": [largest, 0, largest]}).astype(np.int32)

    assert is_first_of_pair(table).all()

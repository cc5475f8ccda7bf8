"""Gradients by hand against automatic ones."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from rec_pipeline.engine.models.mlp import MLPGradient, tiles

N_USERS, N_ITEMS, DIM = 7, 11, 3


@pytest.mark.parametrize("layers", [[5], [5, 4, 2]])
def test_pieces_give_the_gradient_of_the_whole_batch(layers: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    widths = [2 * DIM, *layers]
    weights = [nn.Parameter(draw(above, below)) for below, above in itertools.pairwise(widths)]
    biases, head = [nn.Parameter(draw(units)) for units in layers], nn.Parameter(draw(layers[-1]))
    vectors = draw(N_USERS, DIM).requires_grad_(), draw(N_ITEMS, DIM).requires_grad_()
    drawn = torch.tensor([9, 0, 4, 3])
    pair_users, pair_items = torch.tensor([0, 0, 2, 6, 6]), torch.tensor([4, 4, 10, 9, 1])
    of_grid, of_pairs = draw(N_USERS, len(drawn)), draw(len(pair_users))

    def score(users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        hidden = torch.cat(torch.broadcast_tensors(users, items), dim=-1)
        for weight, bias in zip(weights, biases, strict=True):
            hidden = functional.relu(functional.linear(hidden, weight, bias))
        return hidden @ head

    grid = score(vectors[0][:, None], vectors[1][drawn])
    pairs = score(vectors[0][pair_users], vectors[1][pair_items])
    ((grid * of_grid).sum() + (pairs * of_pairs).sum()).backward()  # type: ignore[no-untyped-call]

    with torch.no_grad():
        mlp = MLPGradient(weights, biases, head, n_pairs=9)
        for _ in range(2):  # a batch knows nothing of the one before it
            mlp.begin(vectors[0].detach(), vectors[1].detach(), drawn)
            for users, _ in tiles(N_USERS, len(drawn), mlp.n_pairs):
                torch.testing.assert_close(mlp.score_grid(users), grid[users])
                mlp.learn_grid(users, of_grid[users])
            torch.testing.assert_close(mlp.score_pairs(pair_users, pair_items), pairs)
            mlp.learn_pairs(pair_users, pair_items, of_pairs)
            slopes = mlp.finish()

    found = [slopes.users, slopes.items, *slopes.layers]
    for parameter, slope in zip([*vectors, *weights, *biases, head], found, strict=True):
        torch.testing.assert_close(slope, parameter.grad)


@pytest.mark.parametrize(("n_rows", "n_columns", "n_pairs"), [(7, 4, 9), (3, 10, 4), (0, 5, 2), (5, 1, 100)])
def test_tiles_cover_every_pair_once_and_are_no_larger_than_asked(n_rows: int, n_columns: int, n_pairs: int) -> None:
    covered = np.zeros((n_rows, n_columns))

    for rows, columns in tiles(n_rows, n_columns, n_pairs):
        covered[rows, columns] += 1
        assert covered[rows, columns].size <= n_pairs

    assert (covered == 1).all()

"""
The MLP of NCF over many pairs, in pieces that stay in the processor's cache, with gradients by hand.

Automatic differentiation keeps every layer of all pairs of a batch until the backward pass, so that memory decides the
speed and not arithmetic: the first hidden layer of 60,000 pairs takes 31 MB. Here a piece goes forward and back before
the next one is begun, in buffers that are used again. The first layer is linear in the user's and in the item's half of
its input: each half is multiplied once a batch, and a pair only adds two rows.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

# Units of the widest layer in a piece on a CPU: 2 MiB of float32, which stay in the third cache; a GPU wants many.
CPU_PIECE_UNITS, GPU_PIECE_UNITS = 1 << 19, 1 << 23


def pairs_in_a_piece(layers: Sequence[int], device: torch.device) -> int:
    """Return how many pairs to take at once through hidden layers of so many units."""
    return max(1, (CPU_PIECE_UNITS if device.type == "cpu" else GPU_PIECE_UNITS) // max(layers))


def tiles(n_rows: int, n_columns: int, n_pairs: int) -> Iterator[tuple[slice, slice]]:
    """Cut a grid of pairs into rectangles of at most ``n_pairs``, as wide as they can be."""
    width = max(1, min(n_columns, n_pairs))
    height = n_pairs // width
    for row, column in itertools.product(range(0, n_rows, height), range(0, n_columns, width)):
        yield slice(row, row + height), slice(column, column + width)


@dataclass(frozen=True)
class MLPSlopes:
    """
    Gradient of a batch.

    Attributes
    ----------
    users, items
        float32 of shape (B, M) and (J, M).
    layers
        In the shapes of the weights, of the biases and of the head, in this order.
    """

    users: torch.Tensor
    items: torch.Tensor
    layers: list[torch.Tensor]


class MLPGradient:
    """
    Scores pairs of a batch piece by piece, and sums up the gradient of a loss whose slope in the scores is given.

    Letters: B users and J items of the batch, M width of their vectors, H units of the first layer.

    Parameters
    ----------
    weights, biases, head
        Each hidden layer's (units, inputs) and (units,), the first with a user and an item half of inputs, and the
        output's (units,); read anew in every batch.
    n_pairs
        Most pairs of a piece.
    """

    def __init__(
        self, weights: Iterable[nn.Parameter], biases: Iterable[nn.Parameter], head: nn.Parameter, n_pairs: int
    ) -> None:
        self.n_pairs = n_pairs
        self._weights, self._biases, self._head = [w.data for w in weights], [b.data for b in biases], head.data
        self._units, self._slopes = ([head.new_empty(n_pairs, len(b)) for b in self._biases] for _ in range(2))
        self._of_weights, self._of_biases = (
            [torch.empty_like(tensor) for tensor in tensors] for tensors in (self._weights, self._biases)
        )
        self._of_head = torch.empty_like(self._head)

    def begin(self, users: torch.Tensor, items: torch.Tensor, drawn: torch.Tensor) -> None:
        """
        Take a new batch and forget the gradients of the last.

        Parameters
        ----------
        users, items : float32 of shape (B, M) and (J, M)
        drawn : int64 of shape (I,)
            Which of the items, each once, are scored for every user.
        """
        dim, weight = users.shape[1], self._weights[0]
        self._users, self._items, self._drawn = users, items, drawn
        self._user_part = torch.addmm(self._biases[0], users, weight[:, :dim].T)  # (B, H)
        self._item_part = items @ weight[:, dim:].T  # (J, H)
        self._drawn_part = self._item_part[drawn]
        self._of_user_part, self._of_item_part, self._of_drawn_part = (
            torch.zeros_like(part) for part in (self._user_part, self._item_part, self._drawn_part)
        )
        for total in (*self._of_weights, *self._of_biases, self._of_head):
            total.zero_()

    def score_grid(self, users: slice) -> torch.Tensor:
        """Score the items drawn for some rows of the batch: float32 of shape (b, I)."""
        user_part = self._user_part[users, None, :]
        shape, n_pairs = (len(user_part), len(self._drawn)), len(user_part) * len(self._drawn)
        torch.add(user_part, self._drawn_part, out=self._units[0][:n_pairs].view(*shape, -1))
        return self._forward(n_pairs).view(shape)

    def learn_grid(self, users: slice, slope: torch.Tensor) -> None:
        """Add the gradient of what ``score_grid`` has just returned, by the slopes in the same shape."""
        back = self._backward(slope.reshape(-1)).view(*slope.shape, -1)  # (b, I, H)
        torch.sum(back, 1, out=self._of_user_part[users])
        self._of_drawn_part += back.sum(0)

    def score_pairs(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Score pairs of rows of the batch, both of shape (n_pairs,): float32 of shape (n_pairs,)."""
        hidden = self._units[0][: len(users)]
        torch.index_select(self._user_part, 0, users, out=hidden)
        hidden += self._item_part.index_select(0, items)
        return self._forward(len(users))

    def learn_pairs(self, users: torch.Tensor, items: torch.Tensor, slope: torch.Tensor) -> None:
        """Add the gradient of what ``score_pairs`` has just returned."""
        back = self._backward(slope)
        self._of_user_part.index_add_(0, users, back)
        self._of_item_part.index_add_(0, items, back)

    def finish(self) -> MLPSlopes:
        """Return the gradients of the batch."""
        dim, weight = self._users.shape[1], self._weights[0]
        self._of_item_part.index_add_(0, self._drawn, self._of_drawn_part)
        torch.mm(self._of_user_part.T, self._users, out=self._of_weights[0][:, :dim])
        torch.mm(self._of_item_part.T, self._items, out=self._of_weights[0][:, dim:])
        torch.sum(self._of_user_part, 0, out=self._of_biases[0])
        return MLPSlopes(
            self._of_user_part @ weight[:, :dim],
            self._of_item_part @ weight[:, dim:],
            [*self._of_weights, *self._of_biases, self._of_head],
        )

    def _forward(self, n_pairs: int) -> torch.Tensor:
        units = [buffer[:n_pairs] for buffer in self._units]
        units[0].relu_()
        for below, above, weight, bias in zip(units, units[1:], self._weights[1:], self._biases[1:], strict=False):
            torch.addmm(bias, below, weight.T, out=above).relu_()
        return units[-1] @ self._head

    def _backward(self, slope: torch.Tensor) -> torch.Tensor:
        """Return the gradient with respect to the sum of the two halves, (n_pairs, H); valid until the next call."""
        units, slopes = ([buffer[: len(slope)] for buffer in buffers] for buffers in (self._units, self._slopes))
        self._of_head.addmv_(units[-1].T, slope)
        torch.mul(slope[:, None], self._head, out=slopes[-1])
        for layer in range(len(units) - 1, 0, -1):
            _through_rectifier(slopes[layer], units[layer])
            self._of_weights[layer].addmm_(slopes[layer].T, units[layer - 1])
            self._of_biases[layer] += slopes[layer].sum(0)
            torch.mm(slopes[layer], self._weights[layer], out=slopes[layer - 1])
        _through_rectifier(slopes[0], units[0])
        return slopes[0]


def _through_rectifier(slopes: torch.Tensor, units: torch.Tensor) -> None:
    """Set the slopes of units that are at zero to zero."""
    torch.ops.aten.threshold_backward.grad_input(slopes, units, 0, grad_input=slopes)

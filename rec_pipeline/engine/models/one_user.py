"""
The networks of NCF and of the sequence model for one user, in numpy.

For so little to compute, torch's calls cost more than the computation: a live answer takes two thirds to half as long
this way (docs/BENCHMARKS.md). Batches, training and whatever is not for one user are torch's.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy.special import erf

from rec_pipeline.engine.data.batches import IdxVector

if TYPE_CHECKING:
    from torch import nn

    from rec_pipeline.engine.models.ncf import NCFNetwork
    from rec_pipeline.engine.models.sequence import SequenceNetwork

Floats = npt.NDArray[np.float32]


class OneUserNCF:
    """Scores items for one user as ``NCFNetwork`` does, whose weights it shares."""

    def __init__(self, network: "NCFNetwork") -> None:
        self._tables = _arrays(network)
        self._linear_dim, self._free_dim, self._gmf_dim = network.linear_dim, network.free_dim, network.gmf_dim
        self._layers = [
            (self._tables[f"weights.{layer}"], self._tables[f"biases.{layer}"]) for layer in range(len(network.weights))
        ]
        self._has_mlp = bool(self._tables["mlp_head"].any())

    def encode(self, user_idx: int, items: IdxVector) -> tuple[Floats, Floats]:
        """
        Return the query of the GMF branch (D + 1,), for ``NCFModel.item_vectors``, and the input of the MLP (M,).

        Parameters
        ----------
        user_idx
            ``-1`` for no free embedding.
        items
            The history.
        """
        tables = self._tables
        history = tables["history"][items].sum(0) / np.float32(math.sqrt(max(1, len(items))))  # (L + M,)
        free = tables["users"][user_idx] * np.float32(user_idx >= 0)  # (F + M,)
        gmf = np.concatenate([history[: self._linear_dim], free[: self._free_dim]]) * tables["gmf_head"]
        return np.append(gmf, np.float32(1)), history[self._linear_dim :] + free[self._free_dim :]

    def score(self, query: Floats, mlp: Floats, items: IdxVector, of_gmf: Floats | None = None) -> Floats:
        """
        Score ``items`` for what ``encode`` returned: (n_items,).

        ``of_gmf`` (n_items,) is what the query finds them worth, where that is known already.
        """
        table = self._tables["items"]  # (all items, D + M)
        if of_gmf is None:
            of_gmf = table[items, : self._gmf_dim] @ query[:-1] + self._tables["bias"][items]
        if not self._has_mlp:
            return of_gmf
        (weight, bias), *above = self._layers
        hidden = table[items, self._gmf_dim :] @ weight[:, len(mlp) :].T + (weight[:, : len(mlp)] @ mlp + bias)
        for weight, bias in above:
            hidden = np.maximum(hidden, 0, out=hidden) @ weight.T + bias
        score: Floats = np.maximum(hidden, 0, out=hidden) @ self._tables["mlp_head"] + of_gmf
        return score


class OneSequence:
    """
    Tells what is expected after a sequence as ``SequenceNetwork.encode`` does of its last position.

    Letters of the shape comments: L events, Q queries (L, in the last layer 1), H heads, D width.
    """

    def __init__(self, network: "SequenceNetwork", n_heads: int) -> None:
        self._arrays = _arrays(network)
        self._n_layers, self._n_heads = len(network.layers), n_heads
        self._eps = np.float32(network.norm.eps)

    def encode(self, items: IdxVector) -> Floats:
        """Return float32 of shape (D,) for the events (L,), oldest first."""
        table = self._arrays["items"]
        events = table[items] * np.float32(math.sqrt(table.shape[1]))
        for layer in range(self._n_layers):
            events = self._layer(f"layers.{layer}.", events, is_last=layer == self._n_layers - 1)
        expected: Floats = self._normed(events, "norm")[-1]
        return expected

    def _layer(self, name: str, events: Floats, *, is_last: bool) -> Floats:
        length, width = events.shape
        normed = self._normed(events, f"{name}attention_norm")
        key_value = self._linear(normed, f"{name}key_value").reshape(length, 2, self._n_heads, -1)
        distance = self._arrays[f"{name}distance"]  # (H, max_length)
        if is_last:
            events, normed = events[-1:], normed[-1:]
            bias = distance[:, None, length - 1 :: -1]  # (H, 1, L)
        else:
            back = np.arange(length)[:, None] - np.arange(length)
            bias = np.where(back < 0, -np.inf, distance[:, np.maximum(back, 0)])  # (H, L, L)
        query = self._linear(normed, f"{name}query").reshape(len(events), self._n_heads, -1)
        weight = query.transpose(1, 0, 2) @ key_value[:, 0].transpose(1, 2, 0)  # (H, Q, L)
        weight = weight * np.float32(query.shape[2] ** -0.5) + bias
        weight = np.exp(weight - weight.max(axis=2, keepdims=True))
        weight /= weight.sum(axis=2, keepdims=True)
        attended = (weight @ key_value[:, 1].transpose(1, 0, 2)).transpose(1, 0, 2).reshape(-1, width)
        events = events + self._linear(attended, f"{name}attention_out")
        hidden = self._linear(self._normed(events, f"{name}perceptron_norm"), f"{name}perceptron_in")
        hidden *= np.float32(0.5) * (1 + erf(hidden * np.float32(math.sqrt(0.5))))  # the Gaussian error linear unit
        return events + self._linear(hidden, f"{name}perceptron_out")

    def _linear(self, values: Floats, name: str) -> Floats:
        return values @ self._arrays[f"{name}.weight"].T + self._arrays[f"{name}.bias"]

    def _normed(self, values: Floats, name: str) -> Floats:
        centred = values - values.mean(axis=1, keepdims=True)
        scale = np.sqrt(np.square(centred).mean(axis=1, keepdims=True) + self._eps)
        normed: Floats = centred / scale * self._arrays[f"{name}.weight"] + self._arrays[f"{name}.bias"]
        return normed


def _arrays(network: "nn.Module") -> Mapping[str, Floats]:
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}

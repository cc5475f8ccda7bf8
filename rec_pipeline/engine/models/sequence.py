"""
The sequence model: causal self-attention over a user's last events, after SASRec.

Kang & McAuley (2018), "Self-Attentive Sequential Recommendation", ICDM, section III: the events so far predict the next
one, at every position at once, and the same item table is read at the input and scored against at the output. What
differs from it: the loss is a softmax over the catalogue, or over one draw of items that a batch shares, each weighted
by the inverse of its chance to be drawn, in place of one negative an event (Klenitskiy & Vasilev, 2023; Petrov &
Macdonald, 2023); layers normalise their input and not their output; positions are told by a learnt bias on the distance
between two events; histories longer than ``max_length`` are learned from in pieces instead of cut off; items have a
bias; and the weights used are a moving average of those trained.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from rec_pipeline.engine.artifacts import read_json, write_json
from rec_pipeline.engine.data.batches import BoolVector, IdxMatrix, IdxVector, ScoreMatrix, UserBatch
from rec_pipeline.engine.data.id_map import NO_IDX
from rec_pipeline.engine.models.one_user import OneSequence
from rec_pipeline.engine.models.sequence_params import SequenceParams
from rec_pipeline.engine.models.training import save_weights

# Events encoded at a time outside of training: what is made of them stays in the second cache; a GPU wants many.
CPU_EVENTS, GPU_EVENTS = 1 << 13, 1 << 15


def width_of(params: SequenceParams) -> int:
    """Return the width of the network, which ``SequenceParams.for_events`` decides where nobody else has."""
    if params.embedding_dim is None:
        raise ValueError("embedding_dim is not decided yet: call for_events")
    return params.embedding_dim


def dropped(values: torch.Tensor, share: float) -> torch.Tensor:
    """Set a share of the values to zero, to a 256th, and scale the others up; a tenth of the time of torch's own."""
    n_of_256 = round(share * 256)
    random = torch.empty(-(-values.numel() // 8), dtype=torch.int64, device=values.device)
    random.random_(torch.iinfo(torch.int64).min, None)
    is_kept = (random.view(torch.uint8)[: values.numel()] >= n_of_256).view(values.shape)
    return values * is_kept * (256 / (256 - n_of_256))


class AttentionLayer(nn.Module):
    """
    One layer: attention to earlier events, then a two-layer perceptron, each on normalised input and added to it.

    Letters of the shape comments: B sequences, L events, Q queries, H heads, D width.
    """

    def __init__(self, params: SequenceParams) -> None:
        super().__init__()
        width = width_of(params)
        self.n_heads, self.dropout = params.n_heads, params.dropout
        self.attention_norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.attention_out = nn.Linear(width, width)
        self.distance = nn.Parameter(torch.zeros(params.n_heads, params.max_length))
        self.perceptron_norm = nn.LayerNorm(width)
        self.perceptron_in = nn.Linear(width, 2 * width)
        self.perceptron_out = nn.Linear(2 * width, width)

    def forward(self, events: torch.Tensor, last: torch.Tensor | None = None) -> torch.Tensor:
        """
        Return float of shape (B, L, D), or (B, 1, D) for the position ``last`` (B,) alone.

        ``events`` (B, L, D) are padded at their right, where the result means nothing.
        """
        length = events.shape[1]
        normed = self.attention_norm(events)
        position = torch.arange(length, device=events.device)
        if last is None:
            asked = position[None]  # (1, Q)
        else:
            asked = last[:, None]  # (B, 1)
            row = torch.arange(len(events), device=events.device)[:, None]
            events, normed_query = events[row, asked], normed[row, asked]
        query = self.query(normed if last is None else normed_query)
        key, value = self.key_value(normed).chunk(2, dim=-1)
        query, key, value = (part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in (query, key, value))
        back = asked[:, :, None] - position  # (1 or B, Q, L)
        bias = self.distance[:, back.clamp(min=0)].transpose(0, 1)  # (1 or B, H, Q, L)
        bias = bias.masked_fill((back < 0)[:, None], -torch.inf)
        weight = (query @ key.transpose(-1, -2) * key.shape[-1] ** -0.5 + bias).softmax(-1)  # (B, H, Q, L)
        mixed = self.attention_out((weight @ value).transpose(1, 2).flatten(-2))
        events = events + self._dropped(mixed)
        hidden = functional.gelu(self.perceptron_in(self.perceptron_norm(events)))
        return events + self._dropped(self.perceptron_out(hidden))

    def _dropped(self, values: torch.Tensor) -> torch.Tensor:
        return dropped(values, self.dropout) if self.training else values


class SequenceNetwork(nn.Module):
    """The network: one item table with a bias, attention layers, a last normalisation."""

    def __init__(self, n_items: int, params: SequenceParams) -> None:
        super().__init__()
        self.dropout = params.dropout
        self.items = nn.Parameter(torch.zeros(n_items, width_of(params)))
        self.bias = nn.Parameter(torch.zeros(n_items))
        self.layers = nn.ModuleList(AttentionLayer(params) for _ in range(params.n_layers))
        self.norm = nn.LayerNorm(width_of(params))
        self.register_buffer("is_fitted_item", torch.zeros(n_items, dtype=torch.bool))
        self.is_fitted_item: torch.Tensor

    def encode(self, item_idx: torch.Tensor, last: torch.Tensor | None = None) -> torch.Tensor:
        """
        Return what is expected after each event, float of shape (B, L, D), or after ``last`` alone, (B, 1, D).

        Parameters
        ----------
        item_idx : int64 of shape (B, L)
            Oldest first, from the left; any item pads at the right.
        last : int64 of shape (B,), optional
            Position of each sequence's last event.
        """
        events = self.items[item_idx] * math.sqrt(self.items.shape[1])
        if self.training:
            events = dropped(events, self.dropout)
        for layer in self.layers[:-1]:
            events = layer(events)
        expected: torch.Tensor = self.norm(self.layers[-1](events, last))
        return expected


@dataclass(frozen=True)
class SequenceModel:
    """
    A fitted sequence model. A user is their recent events and nothing else, so one who is new is served like any.

    Attributes
    ----------
    network
        On the CPU, in no need of gradients.
    params
        What it was fitted with.
    """

    network: SequenceNetwork
    params: SequenceParams

    @property
    def n_items(self) -> int:
        """Size of the catalogue."""
        return len(self.network.items)

    @property
    def is_fitted_item(self) -> BoolVector:
        """Bool of shape (n_items,): items that were in the training data, the only ones with a vector that counts."""
        is_fitted: BoolVector = self.network.is_fitted_item.numpy()
        return is_fitted

    def score(self, users: UserBatch) -> ScoreMatrix:
        """
        Score the whole catalogue by the users' recent events.

        Returns
        -------
        float32 of shape (n_users, n_items)
            Zero throughout a row of a user without a recent event that was in the training data.
        """
        return self.user_vectors(users) @ self.item_vectors().T

    def item_vectors(self) -> npt.NDArray[np.float32]:
        """Return float32 of shape (n_items, embedding_dim + 1); the bias is last."""
        return torch.cat([self.network.items, self.network.bias[:, None]], dim=1).numpy()

    def user_vectors(self, users: UserBatch) -> npt.NDArray[np.float32]:
        """
        Return float32 of shape (n_users, embedding_dim + 1) whose inner product with ``item_vectors`` is the score.

        A user without a recent event that was in the training data gets zeros.
        """
        if users.n_items != self.n_items:
            raise ValueError(f"the model knows {self.n_items} items, but the batch has {users.n_items}")
        item_idx, counts = known_events(users.recent, self.is_fitted_item, self.params.max_length)
        result = np.zeros((len(users), self.network.items.shape[1] + 1), dtype=np.float32)
        result[:, -1] = counts > 0
        if len(users) == 1 and counts[0]:
            result[0, :-1] = self._one_sequence.encode(item_idx[0])
            return result
        for rows, vectors in encode_last(self.network, item_idx, counts):
            result[rows, :-1] = vectors.numpy()
        return result

    @cached_property
    def _one_sequence(self) -> OneSequence:
        return OneSequence(self.network, self.params.n_heads)

    def for_catalogue(self, rows: IdxVector) -> Self:
        """
        Return the model of another catalogue.

        Parameters
        ----------
        rows : int64 of shape (n_items,)
            Row here of each item there; ``-1`` for an item that is new, which gets zeros and counts as not fitted.
        """
        network = copy.deepcopy(self.network)
        is_known = torch.from_numpy(rows != NO_IDX)
        for name in ("items", "bias", "is_fitted_item"):
            old = getattr(self.network, name)
            new = torch.zeros(len(rows), *old.shape[1:], dtype=old.dtype)
            new[is_known] = old[torch.from_numpy(rows)[is_known]]
            kept = nn.Parameter(new, requires_grad=False) if isinstance(old, nn.Parameter) else new
            setattr(network, name, kept)
        return replace(self, network=network)

    def save(self, directory: Path) -> None:
        """Write ``network.safetensors`` and ``params.json``; a weight that is not finite is refused."""
        save_weights(self.network, directory / "network.safetensors")
        write_json(directory / "params.json", self.params.model_dump(mode="json"))

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read what ``save`` wrote."""
        params = SequenceParams(**read_json(directory / "params.json"))
        state = load_file(directory / "network.safetensors")
        network = SequenceNetwork(len(state["items"]), params)
        network.load_state_dict(state)
        return cls(network.eval().requires_grad_(requires_grad=False), params)


def known_events(recent: IdxMatrix, is_known: BoolVector, max_length: int) -> tuple[IdxMatrix, npt.NDArray[np.int64]]:
    """
    Bring events to the left and leave out unknown ones.

    Parameters
    ----------
    recent : int64 of shape (n_users, length)
        As in ``UserBatch``.
    is_known : bool of shape (n_items,)
        Items that count.
    max_length : int
        Events kept of each user, the newest.

    Returns
    -------
    int64 of shape (n_users, width)
        Oldest first from the left; item 0 pads at the right.
    int64 of shape (n_users,)
        Events of each user.

    Examples
    --------
    >>> known_events(np.array([[-1, 2, 1, 3], [0, 3, 3, 2]]), np.array([True, False, True, True]), max_length=3)
    (array([[2, 3, 0],
           [3, 3, 2]]), array([2, 3]))
    """
    is_event = (recent != NO_IDX) & np.append(is_known, False)[recent]
    from_end = np.cumsum(is_event[:, ::-1], axis=1)[:, ::-1]
    is_event &= from_end <= max_length
    counts = is_event.sum(axis=1)
    item_idx = np.zeros((len(recent), int(counts.max(initial=0))), dtype=np.int64)
    item_idx[np.arange(item_idx.shape[1]) < counts[:, None]] = recent[is_event]
    return item_idx, counts


def encode_last(
    network: SequenceNetwork, item_idx: IdxMatrix, counts: npt.NDArray[np.int64]
) -> Iterator[tuple[IdxVector, torch.Tensor]]:
    """
    Yield what is expected next: rows of ``item_idx`` and their vectors, float of shape (n_rows, D).

    Rows without events are left out. Rows of like length go together, so that little is spent on padding.
    """
    device = network.items.device
    order = np.argsort(counts, kind="stable")
    order = order[counts[order] > 0]
    events_at_once = CPU_EVENTS if device.type == "cpu" else GPU_EVENTS
    rows_at_once = max(1, events_at_once // max(1, item_idx.shape[1]))
    for start in range(0, len(order), rows_at_once):
        rows = order[start : start + rows_at_once]
        events = torch.from_numpy(item_idx[rows, : counts[rows[-1]]]).to(device)
        with torch.inference_mode():
            yield rows, network.encode(events, torch.from_numpy(counts[rows] - 1).to(device))[:, 0]

"""
Neural collaborative filtering: NeuMF of He et al. (2017), "Neural Collaborative Filtering", WWW, sections 3.2 to 3.4.

The score of an item is ``bias + h . (p * q) + w . MLP([p', q'])``: the GMF branch, which is an inner product and so
searchable by an index, and the MLP branch under one linear head. The GMF branch has two blocks: closed-form vectors
(``linear_factors``), whose user side is made of the user's history, so that users who came after the fit get personal
scores; and free vectors of users and items, trained by a softmax over the catalogue or by the paper's binary
cross-entropy. What differs from the paper, beside the blocks: the branches are trained one after the other (the paper's
section 3.4.1 trains them apart), the MLP on what the GMF branch leaves over, and is left out where validation says that
it does not help; the MLP's user vector is the sum of a free embedding and of the embeddings of the items in the history
(as in SVD++; Koren, 2008), a part of which is hidden at each step and must be predicted; a step takes users, not pairs.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
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
from rec_pipeline.engine.data.batches import IdxMatrix, IdxVector, ScoreMatrix, UserBatch
from rec_pipeline.engine.data.id_map import NO_IDX
from rec_pipeline.engine.models.mlp import pairs_in_a_piece, tiles
from rec_pipeline.engine.models.ncf_params import (
    NCFParams,
    NCFVariant,
)
from rec_pipeline.engine.models.one_user import OneUserNCF
from rec_pipeline.engine.models.scorer import Retrieve
from rec_pipeline.engine.models.training import (
    save_weights,
)


class NCFNetwork(nn.Module):
    """
    The network: tables of vectors, a bias, and the head.

    An item's row holds the closed-form, the free GMF and the MLP part of its vector, in this order; a row of ``users``
    the last two, a row of ``history`` the first and the last.
    Letters of the shape comments: B users, I items of a common draw, L closed-form, F free, D = L + F, M MLP width.
    """

    def __init__(self, n_users: int, n_items: int, params: NCFParams) -> None:
        super().__init__()
        is_mlp, is_gmf = params.variant is NCFVariant.MLP, params.variant is NCFVariant.GMF
        self.linear_dim = 0 if is_mlp else params.linear_dim
        self.free_dim = 0 if is_mlp else params.embedding_dim
        self.gmf_dim = self.linear_dim + self.free_dim
        self.mlp_dim = 0 if is_gmf else params.mlp_dim
        self.users = nn.Parameter(torch.zeros(n_users, self.free_dim + self.mlp_dim))
        self.history = nn.Parameter(torch.zeros(n_items, self.linear_dim + self.mlp_dim))
        self.items = nn.Parameter(torch.zeros(n_items, self.gmf_dim + self.mlp_dim))
        self.bias = nn.Parameter(torch.zeros(n_items))
        self.gmf_head = nn.Parameter(torch.ones(self.gmf_dim))
        widths = [2 * self.mlp_dim, *params.layers] if self.mlp_dim else []
        self.weights = nn.ParameterList(torch.zeros(out, into) for into, out in itertools.pairwise(widths))
        self.biases = nn.ParameterList(torch.zeros(out) for out in widths[1:])
        self.mlp_head = nn.Parameter(torch.zeros(widths[-1] if widths else 0))
        self.register_buffer("is_fitted_item", torch.zeros(n_items, dtype=torch.bool))
        self.is_fitted_item: torch.Tensor

    def encode(self, user_idx: torch.Tensor, rows: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """
        Return user vectors of shape (B, D + M).

        Parameters
        ----------
        user_idx : int64 of shape (B,)
            ``-1`` for no free embedding.
        rows, items : int64 of shape (nnz,)
            Row within the batch, non-decreasing, and item of each entry of the history.
        """
        counts = torch.bincount(rows, minlength=len(user_idx))
        history = segment_sums(self.history, rows, items, len(user_idx))  # (B, L + M)
        history = history * counts.clamp(min=1).rsqrt()[:, None]
        free = self.users[user_idx.clamp(min=0)] * (user_idx >= 0)[:, None]  # (B, F + M)
        mlp = history[:, self.linear_dim :] + free[:, self.free_dim :]
        return torch.cat([history[:, : self.linear_dim], free[:, : self.free_dim], mlp], dim=1)

    def grid(self, users: torch.Tensor, items: torch.Tensor, bias: torch.Tensor, *, fused: bool = True) -> torch.Tensor:
        """Score every item vector for every user vector: (B, D + M) and (I, D + M) to (B, I)."""
        score = torch.addmm(bias, users[:, : self.gmf_dim] * self.gmf_head, items[:, : self.gmf_dim].T)
        if fused and self.has_mlp():
            user_part, item_part = self.first_layer(users[:, self.gmf_dim :], items[:, self.gmf_dim :])
            n_pairs = pairs_in_a_piece([len(bias) for bias in self.biases], score.device)
            for rows, columns in tiles(len(users), len(items), n_pairs):
                score[rows, columns] += self.rest(user_part[rows, None, :] + item_part[None, columns, :])
        return score

    def pairs(
        self, users: torch.Tensor, items: torch.Tensor, bias: torch.Tensor, *, fused: bool = True
    ) -> torch.Tensor:
        """Score vectors that broadcast against each other: (..., D + M) twice to (...)."""
        score = bias + ((users * items)[..., : self.gmf_dim] * self.gmf_head).sum(-1)
        if fused and self.has_mlp():
            user_part, item_part = self.first_layer(users[..., self.gmf_dim :], items[..., self.gmf_dim :])
            score = score + self.rest(user_part + item_part)
        return score

    def lists(self, users: torch.Tensor, items: torch.Tensor, of_gmf: torch.Tensor | None = None) -> torch.Tensor:
        """
        Score as many items of each user as of any other: (B, D + M) and int64 (B * C,) to (B * C,).

        ``of_gmf`` (B * C,) is their score by the GMF branch and the bias where that is known already.
        """
        length = len(items) // max(1, len(users))  # C
        score = self._gmf_lists(users, items, length) if of_gmf is None else of_gmf.clone()
        if self.has_mlp():
            # Halves of the first layer for each item that occurs, or for each item of the catalogue if that is fewer.
            is_few = len(items) < len(self.items)
            used, items = torch.unique(items, return_inverse=True) if is_few else (slice(None), items)
            user_part, item_part = self.first_layer(
                users[:, self.gmf_dim :], select(self.items, used)[:, self.gmf_dim :]
            )
            for part, places in _pieces(len(users), length, [len(bias) for bias in self.biases], score.device):
                hidden = item_part.index_select(0, items[places]).view(-1, length, item_part.shape[1])
                score[places] += self.rest(hidden.add_(user_part[part, None])).view(-1)
        return score

    def _gmf_lists(self, users: torch.Tensor, items: torch.Tensor, length: int) -> torch.Tensor:
        score = self.bias.index_select(0, items)
        weighted, vectors = users[:, None, : self.gmf_dim] * self.gmf_head, self.items[:, : self.gmf_dim]
        if self.gmf_dim:
            for part, places in _pieces(len(users), length, [self.gmf_dim], score.device):
                gathered = vectors.index_select(0, items[places]).view(-1, length, self.gmf_dim)
                score[places] += torch.bmm(gathered, weighted[part].transpose(1, 2)).view(-1)
        return score

    def has_mlp(self) -> bool:
        """Return whether the MLP takes part: there is one, and it is being trained or has been."""
        return self.mlp_dim > 0 and (torch.is_grad_enabled() or bool(self.mlp_head.any()))

    def first_layer(self, users: torch.Tensor, items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Apply the layer, which is linear, to the user and the item half of its input, to be added for each pair."""
        weight = self.weights[0]
        user_part = functional.linear(users, weight[:, : self.mlp_dim], self.biases[0])
        return user_part, functional.linear(items, weight[:, self.mlp_dim :])

    def rest(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the MLP's score from the sum of the two halves, which is overwritten: (..., units) to (...)."""
        hidden = hidden.relu_()
        for weight, bias in itertools.islice(zip(self.weights, self.biases, strict=True), 1, None):
            hidden = functional.linear(hidden, weight, bias).relu_()
        return hidden @ self.mlp_head


def _pieces(n_users: int, length: int, widths: list[int], device: torch.device) -> Iterator[tuple[slice, slice]]:
    """Yield a few users at a time, and the places of their lists of ``length`` in all lists together."""
    for part, _ in tiles(n_users, length, max(length, pairs_in_a_piece(widths, device))):
        yield part, slice(part.start * length, part.stop * length)


def select(table: torch.Tensor, rows: torch.Tensor | slice) -> torch.Tensor:
    """Return ``table[rows]``, in a fifth of the time that indexing by a tensor takes."""
    return table[rows] if isinstance(rows, slice) else table.index_select(0, rows)


def segment_sums(table: torch.Tensor, rows: torch.Tensor, items: torch.Tensor, n_rows: int) -> torch.Tensor:
    """Return the sum of ``table[items]`` over the entries of each row, which must not fall: (n_rows, width)."""
    if not table.shape[1]:  # which torch refuses on some processors
        return table.new_zeros(n_rows, 0)
    counts = torch.bincount(rows, minlength=n_rows)
    return functional.embedding_bag(items, table, counts.cumsum(0) - counts, mode="sum")


@dataclass(frozen=True)
class NCFModel:
    """
    A fitted NCF.

    Attributes
    ----------
    network
        On the CPU, in no need of gradients.
    params
        What it was fitted with.
    """

    network: NCFNetwork
    params: NCFParams

    @property
    def n_users(self) -> int:
        """Rows of the user table."""
        return len(self.network.users)

    @property
    def n_items(self) -> int:
        """Size of the catalogue."""
        return len(self.network.items)

    def score(self, users: UserBatch) -> ScoreMatrix:
        """
        Score the whole catalogue exactly.

        Memory beside the result is bounded: the MLP takes pairs in pieces.

        Parameters
        ----------
        users : UserBatch
            ``user_idx`` below ``n_users``; the history may be newer than the fit.

        Returns
        -------
        float32 of shape (n_users, n_items)
            Zero throughout a row of a user whose history holds no item that was in the training data.
        """
        network = self.network
        vectors, known = self._encode(users)
        with torch.inference_mode():
            result: ScoreMatrix = network.grid(vectors, network.items, network.bias).numpy()
        result[~known] = 0
        return result

    def score_candidates(self, users: UserBatch, candidates: IdxMatrix) -> ScoreMatrix:
        """
        Score given items of each user, as ``score`` does at those columns.

        Parameters
        ----------
        candidates : int64 of shape (n_users, n_candidates)
            Item rows; ``-1`` pads.

        Returns
        -------
        float32 of shape (n_users, n_candidates)
            ``-inf`` where a candidate is ``-1``.
        """
        return self._score(*self._encode(users), candidates)

    def retrieve_and_score(self, users: UserBatch, retrieve: Retrieve) -> tuple[IdxMatrix, ScoreMatrix]:
        """
        Let ``retrieve`` find candidates for ``user_vectors`` and score them as ``score_candidates`` does.

        What both need of the users is computed once, for one user by numpy; inner products that ``retrieve`` knows are
        not computed again.
        """
        if len(users) == 1:
            return self._retrieve_and_score_one(users, retrieve)
        vectors, known = self._encode(users)
        candidates, of_gmf = retrieve(self._queries(vectors, known))
        return candidates, self._score(vectors, known, candidates, of_gmf)

    def item_vectors(self) -> npt.NDArray[np.float32]:
        """Return the GMF item vectors, float32 of shape (n_items, linear_dim + embedding_dim + 1); the bias is last."""
        network = self.network
        with torch.inference_mode():
            return torch.cat([network.items[:, : network.gmf_dim], network.bias[:, None]], dim=1).numpy()

    def user_vectors(self, users: UserBatch) -> npt.NDArray[np.float32]:
        """
        Return vectors of as many columns whose inner product with ``item_vectors`` is the GMF score.

        A user whom the model cannot tell apart gets zeros.
        """
        return self._queries(*self._encode(users))

    def _queries(self, vectors: torch.Tensor, known: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
        result = np.ones((len(vectors), self.network.gmf_dim + 1), dtype=np.float32)
        with torch.inference_mode():
            result[:, :-1] = (vectors[:, : self.network.gmf_dim] * self.network.gmf_head).numpy()
        result[~known] = 0
        return result

    def _score(
        self,
        vectors: torch.Tensor,
        known: npt.NDArray[np.bool_],
        candidates: IdxMatrix,
        of_gmf: ScoreMatrix | None = None,
    ) -> ScoreMatrix:
        with torch.inference_mode():
            flat = torch.from_numpy(np.maximum(candidates, 0)).view(-1)
            given = None if of_gmf is None else torch.from_numpy(of_gmf).reshape(-1)
            result: ScoreMatrix = self.network.lists(vectors, flat, given).view(candidates.shape).numpy()
        result[~known] = 0
        result[candidates == NO_IDX] = -np.inf
        return result

    @cached_property
    def _one_user(self) -> OneUserNCF:
        return OneUserNCF(self.network)

    def _retrieve_and_score_one(self, users: UserBatch, retrieve: Retrieve) -> tuple[IdxMatrix, ScoreMatrix]:
        _, items = self._known_history(users)
        if not len(items):
            candidates, _ = retrieve(np.zeros((1, self.network.gmf_dim + 1), dtype=np.float32))
            return candidates, np.where(candidates == NO_IDX, -np.inf, np.float32(0))
        query, mlp = self._one_user.encode(int(users.user_idx[0]), items)
        candidates, of_gmf = retrieve(query[None])
        score = self._one_user.score(query, mlp, np.maximum(candidates[0], 0), None if of_gmf is None else of_gmf[0])
        return candidates, np.where(candidates == NO_IDX, -np.inf, score[None])

    def _encode(self, users: UserBatch) -> tuple[torch.Tensor, npt.NDArray[np.bool_]]:
        rows, items = self._known_history(users)
        known = np.bincount(rows, minlength=len(users)) > 0
        with torch.inference_mode():
            vectors = self.network.encode(*(torch.from_numpy(array) for array in (users.user_idx, rows, items)))
        return vectors, known

    def _known_history(self, users: UserBatch) -> tuple[IdxVector, IdxVector]:
        """Return row within the batch and item of each entry of the history that the model was fitted with."""
        if users.n_items != self.n_items or (len(users) and users.user_idx.max() >= self.n_users):
            raise ValueError(
                f"the model knows {self.n_users} users and {self.n_items} items, but the batch goes up to user row "
                f"{users.user_idx.max()} and has {users.n_items} items"
            )
        rows = np.repeat(np.arange(len(users)), np.diff(users.history.indptr))
        items = users.history.indices.astype(np.int64)
        fitted = self.network.is_fitted_item.numpy()[items]
        return rows[fitted], items[fitted]

    def save(self, directory: Path) -> None:
        """Write ``network.safetensors`` and ``params.json``; a weight that is not finite is refused."""
        save_weights(self.network, directory / "network.safetensors")
        write_json(directory / "params.json", self.params.model_dump(mode="json"))

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read what ``save`` wrote."""
        params = NCFParams(**read_json(directory / "params.json"))
        state = load_file(directory / "network.safetensors")
        network = NCFNetwork(len(state["users"]), len(state["items"]), params)
        network.load_state_dict(state)
        return cls(network.requires_grad_(requires_grad=False), params)

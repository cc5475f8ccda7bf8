"""NeuMF in the hands of people who bring their own training loop."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
import torch
from torch.nn import functional, init

from rec_pipeline.engine.data.batches import Ranking, UserBatch
from rec_pipeline.engine.errors import TrainingDivergedError
from rec_pipeline.engine.models.ncf import NCFNetwork
from rec_pipeline.engine.models.ncf_params import NCFParams

if TYPE_CHECKING:
    from rec_pipeline.engine.models.ncf import NCFModel

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class OwnNetwork:
    """
    A network, its optimiser, and what its users have been seen with.

    Parameters
    ----------
    network
        Trained in place.
    history : CSR of shape (n_users, n_items)
        What the users' vectors are made of beside their own rows; empty for a new network.
    learning_rate
        Of Adam.
    """

    def __init__(self, network: NCFNetwork, history: sp.csr_matrix, learning_rate: float) -> None:
        self.network = network.requires_grad_(requires_grad=True)
        self.history = history
        self._seen = sp.lil_matrix(history.shape, dtype=np.float32)
        self._optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)

    @classmethod
    def new(cls, n_users: int, n_items: int, embedding_dim: int, learning_rate: float, seed: int = 42) -> "OwnNetwork":
        """Start from random vectors."""
        network = NCFNetwork(n_users, n_items, NCFParams(embedding_dim=embedding_dim))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for table in (network.users, network.items):
                init.normal_(table, std=0.1)
            for weight in network.weights:
                init.kaiming_uniform_(weight, nonlinearity="relu")
            init.normal_(network.mlp_head, std=0.1)
        return cls(network, sp.csr_matrix(np.zeros((n_users, n_items), dtype=np.float32)), learning_rate)

    @classmethod
    def copy_of(cls, model: "NCFModel", history: sp.csr_matrix, learning_rate: float) -> "OwnNetwork":
        """Go on from a fitted model, which stays as it is."""
        network = NCFNetwork(model.n_users, model.n_items, model.params)
        network.load_state_dict(model.network.state_dict())
        return cls(network, history, learning_rate)

    def train_epoch(self, batches: Iterable[Batch]) -> float:
        """
        Take one step of binary cross-entropy a batch.

        Parameters
        ----------
        batches
            ``(user_idx, item_idx, label)``, each of shape (batch,); labels in [0, 1].

        Returns
        -------
        float
            Mean loss of a pair.

        Raises
        ------
        ValueError
            If there is no batch, or a row lies outside the network.
        TrainingDivergedError
            If the loss is not finite.
        """
        total, n_pairs = 0.0, 0
        for user_idx, item_idx, label in batches:
            self._check(user_idx, len(self.network.users), "user")
            self._check(item_idx, len(self.network.items), "item")
            users = self._encode(user_idx)  # (batch, D + M)
            score = self.network.pairs(users, self.network.items[item_idx], self.network.bias[item_idx])  # (batch,)
            loss = functional.binary_cross_entropy_with_logits(score, label.to(score.dtype))
            if not torch.isfinite(loss):
                raise TrainingDivergedError(f"the loss became {float(loss)}; lower the learning rate")
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call] # torch leaves it unannotated
            self._optimizer.step()
            liked = (label > 0).numpy()
            self._seen[user_idx.numpy()[liked], item_idx.numpy()[liked]] = 1
            total += float(loss.detach()) * len(label)
            n_pairs += len(label)
        if not n_pairs:
            raise ValueError("the dataloader gave no batch")
        return total / n_pairs

    def rank(self, user_idx: int, users: UserBatch, top_k: int) -> Ranking:
        """Rank all items for one user, without those of the batch's history and those trained on as liked."""
        with torch.inference_mode():
            vectors = self._encode(torch.tensor([user_idx]))
            score = self.network.grid(vectors, self.network.items, self.network.bias).numpy()
        excluded = sp.csr_matrix(users.history + self._seen[[user_idx]].tocsr())
        return Ranking.from_scores(score, top_k, excluded=excluded)

    def _encode(self, user_idx: torch.Tensor) -> torch.Tensor:
        history = self.history[user_idx.numpy()]
        rows = np.repeat(np.arange(len(user_idx)), np.diff(history.indptr))
        return self.network.encode(user_idx, torch.from_numpy(rows), torch.from_numpy(history.indices.astype(np.int64)))

    @staticmethod
    def _check(rows: torch.Tensor, size: int, kind: str) -> None:
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < size:
            raise ValueError(f"{kind} rows must lie in 0..{size - 1}, found {int(rows.min())}..{int(rows.max())}")

"""
Neural collaborative filtering: NeuMF of He et al. (2017), "Neural Collaborative Filtering", WWW, sections 3.2 to 3.4.

The score of an item is ``bias + h . (p * q) + w . MLP([p', q'])``: the GMF branch, which is an inner product and so
searchable by an index, and the MLP branch under one linear head. What differs from the paper: a user's vectors are the
sum of a free embedding and of the embeddings of the items in the user's history (as in SVD++; Koren, 2008), so that
users who came after the fit get personal scores; at each step a part of the history is hidden from the encoder and is
what must be predicted; a step takes users, not pairs, and scores them against the whole catalogue or one draw of items.
"""

import hashlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from rec_pipeline.engine.artifacts import read_json, write_json
from rec_pipeline.engine.data.batches import IdxMatrix, IdxVector, ScoreMatrix, UserBatch
from rec_pipeline.engine.data.id_map import NO_IDX
from rec_pipeline.engine.models.ncf_params import NCFLoss, NCFParams, NCFVariant, TrainingOptions
from rec_pipeline.engine.models.training import EpochMetrics, Trainer, epoch_generator, resolve_device, threads
from rec_pipeline.engine.models.validation import ndcg_sum

SCORING_ELEMENTS = 1 << 24  # hidden units of the MLP's first layer held at a time while scoring: 64 MiB of float32


class NCFNetwork(nn.Module):
    """
    The network: three tables whose rows hold the GMF part and then the MLP part of a vector, a bias, and the head.

    Letters of the shape comments: B users, I items of a common draw, K items of each user, D GMF and M MLP width.
    """

    def __init__(self, n_users: int, n_items: int, params: NCFParams) -> None:
        super().__init__()
        self.gmf_dim = 0 if params.variant is NCFVariant.MLP else params.embedding_dim
        self.mlp_dim = 0 if params.variant is NCFVariant.GMF else params.mlp_dim
        width = self.gmf_dim + self.mlp_dim
        self.users = nn.Parameter(torch.zeros(n_users, width))
        self.history = nn.Parameter(torch.zeros(n_items, width))
        self.items = nn.Parameter(torch.zeros(n_items, width))
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
        n_users = len(user_idx)
        counts = torch.bincount(rows, minlength=n_users)
        offsets = counts.cumsum(0) - counts
        history = functional.embedding_bag(items, self.history, offsets, mode="sum")  # (B, D + M)
        history = history * counts.clamp(min=1).rsqrt()[:, None]
        free = self.users[user_idx.clamp(min=0)] * (user_idx >= 0)[:, None]  # (B, D + M)
        return history + free

    def grid(self, users: torch.Tensor, items: torch.Tensor, bias: torch.Tensor, *, fused: bool = True) -> torch.Tensor:
        """Score every item vector for every user vector: (B, D + M) and (I, D + M) to (B, I)."""
        score = torch.addmm(bias, users[:, : self.gmf_dim] * self.gmf_head, items[:, : self.gmf_dim].T)
        if fused and self.mlp_dim:
            user_part, item_part = self._first_layer(users, items)
            score = score + self._rest(user_part[:, None, :] + item_part[None, :, :])
        return score

    def pairs(
        self, users: torch.Tensor, items: torch.Tensor, bias: torch.Tensor, *, fused: bool = True
    ) -> torch.Tensor:
        """Score vectors that broadcast against each other: (..., D + M) twice to (...)."""
        score = bias + ((users * items)[..., : self.gmf_dim] * self.gmf_head).sum(-1)
        if fused and self.mlp_dim:
            user_part, item_part = self._first_layer(users, items)
            score = score + self._rest(user_part + item_part)
        return score

    def _first_layer(self, users: torch.Tensor, items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # The layer is linear, so its user part and its item part are computed once each and added for each pair.
        weight = self.weights[0]
        user_part = functional.linear(users[..., self.gmf_dim :], weight[:, : self.mlp_dim], self.biases[0])
        return user_part, functional.linear(items[..., self.gmf_dim :], weight[:, self.mlp_dim :])

    def _rest(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = functional.relu(hidden)
        for weight, bias in itertools.islice(zip(self.weights, self.biases, strict=True), 1, None):
            hidden = functional.relu(functional.linear(hidden, weight, bias))
        return hidden @ self.mlp_head


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

        Memory beside the result is bounded: users are taken in chunks.

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
        width = max([1, *self.params.layers[:1]]) if network.mlp_dim else 1
        chunk = max(1, SCORING_ELEMENTS // (width * self.n_items))
        vectors, known = self._encode(users)
        result = np.zeros((len(users), self.n_items), dtype=np.float32)
        with torch.inference_mode():
            for start in range(0, len(users), chunk):
                part = slice(start, start + chunk)
                result[part] = network.grid(vectors[part], network.items, network.bias).numpy()
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
        network = self.network
        width = self.params.layers[0] + network.items.shape[1]
        chunk = max(1, SCORING_ELEMENTS // (width * max(1, candidates.shape[1])))
        vectors, known = self._encode(users)
        result = np.zeros(candidates.shape, dtype=np.float32)
        with torch.inference_mode():
            for start in range(0, len(users), chunk):
                part = slice(start, start + chunk)
                items = torch.from_numpy(np.maximum(candidates[part], 0))
                result[part] = network.pairs(
                    vectors[part][:, None, :], network.items[items], network.bias[items]
                ).numpy()
        result[~known] = 0
        result[candidates == NO_IDX] = -np.inf
        return result

    def item_vectors(self) -> npt.NDArray[np.float32]:
        """Return the GMF branch's item vectors, float32 of shape (n_items, embedding_dim + 1); the bias is last."""
        network = self.network
        with torch.inference_mode():
            return torch.cat([network.items[:, : network.gmf_dim], network.bias[:, None]], dim=1).numpy()

    def user_vectors(self, users: UserBatch) -> npt.NDArray[np.float32]:
        """
        Return float32 of shape (n_users, embedding_dim + 1) whose inner product with ``item_vectors`` is the GMF score.

        A user whom the model cannot tell apart gets zeros.
        """
        network = self.network
        vectors, known = self._encode(users)
        with torch.inference_mode():
            gmf = vectors[:, : network.gmf_dim] * network.gmf_head
            result: npt.NDArray[np.float32] = torch.cat([gmf, torch.ones(len(gmf), 1)], dim=1).numpy()
        result[~known] = 0
        return result

    def _encode(self, users: UserBatch) -> tuple[torch.Tensor, npt.NDArray[np.bool_]]:
        if users.n_items != self.n_items or (len(users) and users.user_idx.max() >= self.n_users):
            raise ValueError(
                f"the model knows {self.n_users} users and {self.n_items} items, but the batch goes up to user row "
                f"{users.user_idx.max()} and has {users.n_items} items"
            )
        rows = np.repeat(np.arange(len(users)), np.diff(users.history.indptr))
        items = users.history.indices.astype(np.int64)
        fitted = self.network.is_fitted_item.numpy()[items]
        rows, items = rows[fitted], items[fitted]
        known = np.bincount(rows, minlength=len(users)) > 0
        with torch.inference_mode():
            vectors = self.network.encode(*(torch.from_numpy(array) for array in (users.user_idx, rows, items)))
        return vectors, known

    def save(self, directory: Path) -> None:
        """Write ``network.safetensors`` and ``params.json``."""
        save_file(
            {name: tensor.contiguous() for name, tensor in self.network.state_dict().items()},
            directory / "network.safetensors",
        )
        write_json(directory / "params.json", self.params.model_dump(mode="json"))

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read what ``save`` wrote."""
        params = NCFParams(**read_json(directory / "params.json"))
        state = load_file(directory / "network.safetensors")
        network = NCFNetwork(len(state["users"]), len(state["items"]), params)
        network.load_state_dict(state)
        return cls(network.requires_grad_(requires_grad=False), params)


@dataclass(frozen=True)
class NCFFit:
    """
    Outcome of ``fit_ncf``.

    Attributes
    ----------
    model
        With the best weights found.
    best_epoch
        1-based epoch of ``history`` that gave them.
    history
        Every epoch trained, in order.
    refit_params
        The settings with the numbers of epochs that were best: for a fit on more data without validation.
    """

    model: NCFModel
    best_epoch: int
    history: list[EpochMetrics]
    refit_params: NCFParams


def fit_ncf(
    train: sp.csr_matrix,
    params: NCFParams,
    options: TrainingOptions | None = None,
    *,
    validation: sp.csr_matrix | None = None,
    on_epoch: Callable[[EpochMetrics], None] | None = None,
    checkpoint_dir: Path | None = None,
) -> NCFFit:
    """
    Fit NCF on implicit feedback.

    Parameters
    ----------
    train : CSR of shape (n_users, n_items)
        A stored entry is an interaction; its value is not used.
    params, options
        What to train and how; the same data, params, seed, device and number of threads give the same scores.
    validation : CSR of the same shape, optional
        Held-out interactions. Each phase keeps the weights that are best on them and stops early. Without it every
        phase runs its full number of epochs: pass ``refit_params`` of an earlier fit.
    on_epoch
        Called after each epoch.
    checkpoint_dir
        Where a killed run left its checkpoint and where this one writes its own; the caller deletes it after success.

    Raises
    ------
    ValueError
        If ``train`` has no interactions.
    TrainingDivergedError
        If the loss becomes infinite or NaN.
    """
    options = options or TrainingOptions()
    if train.nnz == 0:
        raise ValueError("there are no training interactions to fit on")
    train, device = _binary(train), resolve_device(options.device)
    with threads(options.n_threads):
        network = _initial_network(train, params, options.seed).to(device)
        fitting = _Fitting(network, train, params, options, device)
        trainer = Trainer(
            network,
            options,
            digest=_digest(train, validation, params, options),
            on_epoch=on_epoch,
            checkpoint_dir=checkpoint_dir,
        )
        validator = _Validator(train, _binary(validation), params, network) if validation is not None else None
        phases = {"network": params.epochs}
        if params.variant is NCFVariant.NEUMF and params.pretrain_epochs:
            phases = {"gmf": params.pretrain_epochs, **phases}
        best: dict[str, int] = {}
        for phase, epochs in phases.items():
            fused = phase == "network"
            optimizer = torch.optim.Adam(network.parameters(), lr=params.learning_rate)
            best[phase] = trainer.run(
                phase,
                optimizer,
                train_epoch=partial(fitting.epoch, epochs=epochs, optimizer=optimizer, fused=fused),
                validate=partial(validator.ndcg, fused=fused) if validator else None,
                epochs=epochs,
                patience=params.patience,
            )
    history = trainer.progress.history
    n_before = sum(entry.phase == "gmf" for entry in history) if best["network"] else 0
    refit = params.model_copy(
        update={"epochs": max(1, best["network"]), "pretrain_epochs": best.get("gmf", params.pretrain_epochs)}
    )
    return NCFFit(
        model=NCFModel(network.cpu().requires_grad_(requires_grad=False), params),
        best_epoch=n_before + best["network"] if best["network"] else best.get("gmf", 0),
        history=history,
        refit_params=refit,
    )


class _Fitting:
    """Training data on the device, and one epoch over it."""

    def __init__(
        self,
        network: NCFNetwork,
        train: sp.csr_matrix,
        params: NCFParams,
        options: TrainingOptions,
        device: torch.device,
    ) -> None:
        self.network, self.params, self.seed, self.device = network, params, options.seed, device
        counts = np.diff(train.indptr)
        self.users = torch.from_numpy(np.flatnonzero(counts)).to(device)
        self.starts = torch.from_numpy(train.indptr[:-1].astype(np.int64)).to(device)
        self.counts = torch.from_numpy(counts.astype(np.int64)).to(device)
        self.items = torch.from_numpy(train.indices.astype(np.int64)).to(device)
        self.n_items = train.shape[1]

    def epoch(self, epoch: int, *, epochs: int, optimizer: torch.optim.Optimizer, fused: bool) -> tuple[float, int]:
        """Take every user once; return the mean loss of a positive and the number of pairs scored."""
        generator = epoch_generator(self.device, self.seed, fused, epoch)
        for group in optimizer.param_groups:
            group["lr"] = self.params.learning_rate * (1 - 0.9 * epoch / epochs)
        order = self.users[torch.randperm(len(self.users), generator=generator, device=self.device)]
        total, n_positives, n_samples = torch.zeros((), device=self.device), 0, 0
        for user_idx in torch.split(order, self.params.users_a_step(len(order))):
            optimizer.zero_grad()
            loss, positives, samples = self._loss(user_idx, generator, fused=fused)
            loss.backward()  # type: ignore[no-untyped-call] # torch leaves it unannotated
            optimizer.step()
            total += loss.detach() * positives
            n_positives += positives
            n_samples += samples
        return float(total) / max(1, n_positives), n_samples

    def _loss(
        self, user_idx: torch.Tensor, generator: torch.Generator, *, fused: bool
    ) -> tuple[torch.Tensor, int, int]:
        network, params = self.network, self.params
        rows, items = self._history(user_idx)
        is_hidden = torch.rand(len(items), generator=generator, device=self.device) < params.dropout
        users = network.encode(user_idx, rows[~is_hidden], items[~is_hidden])  # (B, D + M)
        rows, items = (rows[is_hidden], items[is_hidden]) if params.dropout else (rows, items)
        if self.n_items > params.n_negatives:
            drawn = torch.randperm(self.n_items, generator=generator, device=self.device)[: params.n_negatives]
        else:
            drawn = torch.arange(self.n_items, device=self.device)
        item_vectors = network.items[drawn]
        grid = network.grid(users, item_vectors, network.bias[drawn], fused=fused)  # (B, I)
        positive = network.pairs(users[rows], network.items[items], network.bias[items], fused=fused)  # (nnz,)
        share = self.n_items / len(drawn)
        if params.loss is NCFLoss.SOFTMAX:
            log_z = torch.logsumexp(grid, dim=1) + np.log(share)  # (B,)
            loss = (log_z[rows] - positive).sum()
        else:
            loss = functional.softplus(-positive).sum() + functional.softplus(grid).sum() * share
        penalty = users.square().sum() / len(users) + item_vectors.square().sum() / len(drawn)
        loss = loss / max(1, len(rows)) + params.weight_decay * penalty
        return loss, len(rows), len(rows) + grid.numel()

    def _history(self, user_idx: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return row within the batch and item of every interaction of the batch's users."""
        counts = self.counts[user_idx]
        rows = torch.repeat_interleave(torch.arange(len(user_idx), device=self.device), counts)
        first = counts.cumsum(0) - counts
        position = torch.arange(len(rows), device=self.device) - first[rows] + self.starts[user_idx][rows]
        return rows, self.items[position]


class _Validator:
    """ndcg@10 over the full catalogue, seen items excluded, of users who have both history and held-out items."""

    def __init__(
        self,
        train: sp.csr_matrix,
        validation: sp.csr_matrix,
        params: NCFParams,
        network: NCFNetwork,
        batch_size: int = 256,
    ) -> None:
        users = np.flatnonzero((np.diff(train.indptr) > 0) & (np.diff(validation.indptr) > 0))
        self.network, self.params = network, params
        self.batches: list[tuple[IdxVector, sp.csr_matrix, sp.csr_matrix]] = [
            (batch, train[batch], validation[batch])
            for batch in np.split(users, range(batch_size, len(users), batch_size))
        ]

    def ndcg(self, *, fused: bool) -> float:
        """Return the mean over those users; 0 when there are none."""
        network, total, n_users = self.network, 0.0, 0
        device = network.items.device
        with torch.inference_mode():
            for user_idx, history, relevant in self.batches:
                rows = np.repeat(np.arange(len(user_idx)), np.diff(history.indptr))
                encoded = (torch.from_numpy(a.astype(np.int64)).to(device) for a in (user_idx, rows, history.indices))
                vectors = network.encode(*encoded)
                score = network.grid(vectors, network.items, network.bias, fused=fused)
                total += ndcg_sum(score, history, relevant)
                n_users += len(user_idx)
        return total / max(1, n_users)


def _initial_network(train: sp.csr_matrix, params: NCFParams, seed: int) -> NCFNetwork:
    network = NCFNetwork(*train.shape, params)
    generator = epoch_generator(torch.device("cpu"), seed, "initial")
    popularity = torch.from_numpy(np.bincount(train.indices, minlength=train.shape[1])).float()
    is_fitted_user = torch.from_numpy(np.diff(train.indptr) > 0)
    network.is_fitted_item |= popularity > 0
    with torch.no_grad():
        for table, mask in ((network.history, network.is_fitted_item), (network.users, is_fitted_user)):
            table.normal_(0, 0.1, generator=generator).mul_(mask[:, None])
        network.items.normal_(0, 0.1, generator=generator)
        network.bias.copy_(torch.log(popularity + 1))
        for weight in network.weights:
            nn.init.kaiming_uniform_(weight, nonlinearity="relu", generator=generator)
    return network


def _binary(matrix: sp.csr_matrix) -> sp.csr_matrix:
    matrix = matrix.copy()
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    return matrix


def _digest(*parts: sp.csr_matrix | NCFParams | TrainingOptions | None) -> str:
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, sp.csr_matrix):
            digest.update(repr(part.shape).encode())
            digest.update(part.indptr.tobytes())
            digest.update(part.indices.tobytes())
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()

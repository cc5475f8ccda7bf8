"""Training of NCF, one branch after the other; ``ncf`` says where it differs from the paper."""

import hashlib
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import scipy.sparse as sp
import torch
from torch import nn
from torch.nn import functional

from rec_pipeline.engine.compute import LOCAL, Compute, Group
from rec_pipeline.engine.data.batches import IdxVector
from rec_pipeline.engine.data.space import count
from rec_pipeline.engine.models.linear_factors import linear_factors, linear_settings
from rec_pipeline.engine.models.mlp import MLPGradient, pairs_in_a_piece, tiles
from rec_pipeline.engine.models.ncf import NCFModel, NCFNetwork, segment_sums, select
from rec_pipeline.engine.models.ncf_params import (
    EXACT_SCORING_ITEMS,
    ITEM_EXPONENTS,
    LINEAR_WEIGHTS,
    N_CANDIDATES,
    SHRINKAGES,
    NCFLoss,
    NCFParams,
    NCFVariant,
    TrainingOptions,
)
from rec_pipeline.engine.models.training import (
    EpochMetrics,
    Fit,
    Trainer,
    epoch_generator,
    resolve_device,
    threads,
)
from rec_pipeline.engine.models.validation import leave_out, ndcg_of_users, users_looked_at

STANDARD_ERRORS: Final = 2.0
"""Of a difference on validation data that counts as beyond doubt."""


NCFFit: TypeAlias = Fit[NCFModel, NCFParams]


def fit_ncf(
    train: sp.csr_matrix,
    params: NCFParams,
    options: TrainingOptions | None = None,
    *,
    validation: sp.csr_matrix | None = None,
    on_epoch: Callable[[EpochMetrics], None] | None = None,
    checkpoint_dir: Path | None = None,
    compute: Compute = LOCAL,
) -> NCFFit:
    """
    Fit NCF on implicit feedback.

    Several trainers take the steps that one would: each the users whose row leaves its rank as remainder by their
    number. Rows of the user table are touched by one of them alone and added up once an epoch; of the item tables the
    rows of a step are, and the layers. So they find what one finds but for the order in which numbers are added up.
    Each holds all tables, what Adam knows of them, and the training data.

    Parameters
    ----------
    train : CSR of shape (n_users, n_items)
        A stored entry is an interaction; its value is not used.
    params, options
        What to train and how; settings of the closed form that are left open are chosen on ``train``. The same data,
        params, seed, device and number of threads give the same scores.
    validation : CSR of the same shape, optional
        Held-out interactions. They decide which epoch of the MLP is kept and when it stops. Without it every epoch is
        run: pass ``refit_params`` of an earlier fit.
    on_epoch
        Called after each epoch.
    checkpoint_dir
        Where a killed run left its checkpoint and where this one writes its own; the caller deletes it after success.
    compute
        Who the trainers are; the same number of them finds the same.

    Raises
    ------
    ValueError
        If ``train`` has no interactions.
    TrainingDivergedError
        If the loss becomes infinite or NaN.
    """
    if train.nnz == 0:
        raise ValueError("there are no training interactions to fit on")
    fit = partial(_fit, _binary(train), params, options or TrainingOptions(), validation)
    return compute.together(fit, partial(fit, on_epoch=on_epoch, checkpoint_dir=checkpoint_dir))


def _fit(
    train: sp.csr_matrix,
    params: NCFParams,
    options: TrainingOptions,
    validation: sp.csr_matrix | None,
    group: Group,
    *,
    on_epoch: Callable[[EpochMetrics], None] | None = None,
    checkpoint_dir: Path | None = None,
) -> NCFFit:
    device, is_lead = resolve_device(options.device), group.rank == 0
    with threads(options.n_threads):
        network = NCFNetwork(*train.shape, params)
        if is_lead:
            params = _initialize(network, train, params, options.seed)
        network.to(device)
        fitting = _Fitting(network, train, params, options, device, group)
        trainer = Trainer(
            network,
            options,
            digest=_digest(train, validation, params, options),
            on_epoch=on_epoch,
            checkpoint_dir=checkpoint_dir,
            group=group,
        )
        validator = None
        if validation is not None:
            validator = _Validator(train, _binary(validation), params, network, options.seed, group)
        phases = {"gmf": params.gmf_epochs(int(np.count_nonzero(np.diff(train.indptr)))), "network": params.epochs}
        if params.variant is not NCFVariant.NEUMF:
            del phases["network" if params.variant is NCFVariant.GMF else "gmf"]
        best: dict[str, int] = {}
        for phase, epochs in phases.items():
            is_gmf, is_resumed = phase == "gmf", phase in trainer.progress.best_epochs
            optimizer = _RowAdam(network)
            train_epoch = partial(
                fitting.gmf_epoch if is_gmf else fitting.mlp_epoch, epochs=epochs, optimizer=optimizer
            )
            best[phase] = trainer.run(
                phase,
                optimizer,
                train_epoch=train_epoch,
                validate=partial(validator.ndcg, fused=not is_gmf) if validator else None,
                epochs=epochs,
                patience=params.patience,
                keep_last=is_gmf,  # the rate falls to zero in the course of the phase
            )
            if is_gmf and network.linear_dim and validator and params.linear_weight is None and not is_resumed:
                validator.weigh_closed_form()
    if network.linear_dim:
        params = params.model_copy(update={"linear_weight": float(network.gmf_head.data[0])})
    history = trainer.progress.history
    n_before = sum(entry.phase == "gmf" for entry in history) if best.get("network") else 0
    return NCFFit(
        model=NCFModel(network.cpu().requires_grad_(requires_grad=False), params),
        best_epoch=n_before + (best.get("network") or best.get("gmf", 0)),
        history=history,
        refit_params=params.model_copy(update={"epochs": best.get("network", 0)}),
    )


class _RowAdam(torch.optim.Optimizer):
    """Adam (Kingma & Ba, 2015) in which a row that a step does not touch stays as it is."""

    def __init__(self, network: NCFNetwork) -> None:
        super().__init__(network.parameters(), {"betas": (0.9, 0.999)})

    def update(
        self, parameter: nn.Parameter, columns: slice, rows: torch.Tensor | slice, gradient: torch.Tensor, rate: float
    ) -> None:
        """Move ``parameter[rows, columns]``; the gradient has their shape, and a vector counts as one column."""
        if not len(gradient):
            return
        table, gradient = parameter.data.view(len(parameter), -1)[:, columns], gradient.view(len(gradient), -1)
        state = self.state[parameter]
        if not state:
            state |= {
                "step": torch.zeros(len(table), 1, device=table.device),
                "mean": torch.zeros_like(table),
                "square": torch.zeros_like(table),
            }
        first, second = self.defaults["betas"]
        tables = [state["step"], state["mean"], state["square"], table]
        values = [select(tensor, rows) for tensor in tables]  # copies of some rows, or all of them themselves
        step, mean, square, weight = values
        step.add_(1)
        mean.mul_(first).add_(gradient, alpha=1 - first)
        square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        divisor = square.div(1 - second**step).sqrt_().add_(1e-8)
        weight.sub_(mean.mul(rate).div_(1 - first**step).div_(divisor))
        if not isinstance(rows, slice):
            for tensor, value in zip(tables, values, strict=True):
                tensor.index_copy_(0, rows, value)

    def gather(self, parameter: nn.Parameter, is_own: torch.Tensor, group: Group) -> None:
        """Take rows of ``parameter`` that are not own, and what is known of them, from the members whose they are."""
        tensors = [parameter.data, *self.state[parameter].values()]
        for tensor in tensors:
            tensor.mul_(is_own[:, None])
            group.add(tensor)


class _Fitting:
    """Training data on the device, and one epoch over it."""

    def __init__(
        self,
        network: NCFNetwork,
        train: sp.csr_matrix,
        params: NCFParams,
        options: TrainingOptions,
        device: torch.device,
        group: Group,
    ) -> None:
        self.network, self.params, self.seed, self.device = network, params, options.seed, device
        self.group = group
        self.is_own = torch.arange(train.shape[0], device=device) % group.n_members == group.rank
        counts = np.diff(train.indptr)
        self.users = torch.from_numpy(np.flatnonzero(counts)).to(device)
        self.starts = torch.from_numpy(train.indptr[:-1].astype(np.int64)).to(device)
        self.counts = torch.from_numpy(counts.astype(np.int64)).to(device)
        self.items = torch.from_numpy(train.indices).to(device)  # as they lie there: int32 unless there are too many
        self.n_items = train.shape[1]
        # The penalty is one of the summed loss, which a step divides by its positives.
        n_known = max(1, int(np.count_nonzero(count(train.indices, self.n_items))))
        self.user_decay = 2 * params.gmf_weight_decay * len(self.users) / train.nnz
        self.item_decay = 2 * params.gmf_weight_decay * n_known / train.nnz
        n_pairs = max(min(params.mlp_negatives, self.n_items), pairs_in_a_piece(params.layers, device))
        self.mlp = MLPGradient(network.weights, network.biases, network.mlp_head, n_pairs)

    def gmf_epoch(self, epoch: int, rate_share: float, *, epochs: int, optimizer: _RowAdam) -> tuple[float, int]:
        """Train the free vectors and the bias on every user once; return mean loss of a positive and pairs scored."""
        network, free = self.network, self.network.free_dim
        columns = slice(network.linear_dim, network.gmf_dim)
        is_softmax = self.params.loss is NCFLoss.SOFTMAX
        total, n_samples = torch.zeros((), device=self.device), 0
        generator, batches = self._batches("gmf", epoch)
        with torch.no_grad():
            for number, user_idx in enumerate(batches):
                progress = (epoch + number / len(batches)) / epochs
                rate = (
                    rate_share
                    * self.params.gmf_learning_rate
                    * min(progress / 0.2, 0.5 + 0.5 * np.cos(np.pi * (progress - 0.2) / 0.8))
                )
                rows, items = self._history(user_idx)
                drawn, place, log_weight = self._draw(items, generator)
                n_users, n_positives = len(user_idx), len(rows)
                user_idx, rows, items = self._own(user_idx, rows, items)  # B is of own users from here on
                users = network.users[user_idx, :free]  # (B, F)
                vectors, bias = select(network.items[:, columns], drawn), select(network.bias, drawn)  # (I, F), (I,)
                offset = bias + log_weight if is_softmax else bias
                score = torch.addmm(offset, users, vectors.T)  # (B, I)
                at_positive = rows * score.shape[1] + place[items]  # (nnz,)
                # The gradient of the mean loss of a positive: what is expected less what was there.
                if is_softmax:
                    log_score = torch.log_softmax(score, dim=1)
                    total -= log_score.view(-1)[at_positive].sum()
                    slope = log_score.exp_().mul_(self.counts[user_idx, None] / n_positives)  # (B, I)
                else:
                    weight = log_weight.exp()
                    total += (functional.softplus(score) @ weight).sum() - score.view(-1)[at_positive].sum()
                    slope = score.sigmoid_().mul_(weight / n_positives)
                minus = torch.full(rows.shape, -1 / n_positives, device=self.device)
                slope.view(-1).index_add_(0, at_positive, minus)
                of_users = slope @ vectors + users * (self.user_decay / n_users)
                of_items, of_bias = slope.T @ users, slope.sum(dim=0)
                self.group.add(of_items, of_bias)
                of_items += vectors * (self.item_decay / len(vectors))
                optimizer.update(network.users, slice(free), user_idx, of_users, rate)
                optimizer.update(network.items, columns, drawn, of_items, rate)
                optimizer.update(network.bias, slice(None), drawn, of_bias, rate)
                n_samples += n_users * score.shape[1]
            self._end_epoch(total, optimizer)
        return float(total) / len(self.items), n_samples

    def _own(self, user_idx: torch.Tensor, rows: torch.Tensor, *of_entries: torch.Tensor) -> list[torch.Tensor]:
        """Return a batch's own users, and of entries of its history the rows among these and the values given."""
        if self.group.n_members == 1:
            return [user_idx, rows, *of_entries]
        is_own = self.is_own[user_idx]
        kept = is_own[rows].nonzero().view(-1)
        return [user_idx[is_own], (is_own.cumsum(0) - 1)[rows[kept]], *(values[kept] for values in of_entries)]

    def _end_epoch(self, total: torch.Tensor, optimizer: _RowAdam) -> None:
        """Sum up the loss, and bring everybody's rows of the user table together."""
        self.group.add(total)
        if self.group.n_members > 1:
            optimizer.gather(self.network.users, self.is_own, self.group)

    def _draw(
        self, items: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor | slice, torch.Tensor, torch.Tensor]:
        """
        Draw what a batch is scored against: the items that its users have, and some of the others.

        Returns
        -------
        rows
            int64 of shape (I,); all items in order where there are few.
        place
            int64 of shape (n_items,), of which only the entries of drawn items mean anything: where they were put.
        log_weight
            float32 of shape (I,): log of how many items each drawn one stands for, so that the loss is over all.
        """
        everything = torch.arange(self.n_items, device=self.device)
        if self.n_items <= self.params.n_negatives:
            return slice(None), everything, torch.zeros(self.n_items, device=self.device)
        is_positive = torch.zeros(self.n_items, dtype=torch.bool, device=self.device)
        is_positive[items] = True
        others = everything[~is_positive]
        order = torch.randperm(len(others), generator=generator, device=self.device)
        chosen = others[order[: self.params.n_negatives]]
        drawn = torch.cat([everything[is_positive], chosen])
        log_weight = torch.zeros(len(drawn), device=self.device)
        log_weight[len(drawn) - len(chosen) :] = np.log(max(1, len(others)) / max(1, len(chosen)))
        place = torch.zeros_like(everything)
        place[drawn] = torch.arange(len(drawn), device=self.device)
        return drawn, place, log_weight

    def _batches(self, phase: str, epoch: int) -> tuple[torch.Generator, tuple[torch.Tensor, ...]]:
        generator = epoch_generator(self.device, self.seed, phase, epoch)
        order = self.users[torch.randperm(len(self.users), generator=generator, device=self.device)]
        return generator, torch.split(order, self.params.users_a_step(len(order)))

    def mlp_epoch(self, epoch: int, rate_share: float, *, epochs: int, optimizer: _RowAdam) -> tuple[float, int]:
        """Train the MLP on every user once; return the mean loss of a positive and the number of pairs scored."""
        rate = rate_share * self.params.learning_rate * (1 - 0.9 * epoch / epochs)
        total, n_positives, n_samples = torch.zeros((), device=self.device), 0, 0
        generator, batches = self._batches("network", epoch)
        with torch.no_grad():
            for user_idx in batches:
                loss, positives, samples = self._mlp_step(user_idx, generator, optimizer, rate)
                total += loss
                n_positives += positives
                n_samples += samples
            self._end_epoch(total, optimizer)
        return float(total) / max(1, n_positives), n_samples

    def _mlp_step(
        self, user_idx: torch.Tensor, generator: torch.Generator, optimizer: _RowAdam, rate: float
    ) -> tuple[torch.Tensor, int, int]:
        """Return the sum of the losses of own users' positives, the number of all positives and of all pairs scored."""
        network, params, mlp = self.network, self.params, self.mlp
        of_free, of_linear, of_mlp = (
            slice(dim, None) for dim in (network.free_dim, network.linear_dim, network.gmf_dim)
        )
        history = self._history(user_idx)
        is_hidden = torch.rand(len(history[0]), generator=generator, device=self.device) < params.dropout
        drawn = torch.randperm(self.n_items, generator=generator, device=self.device)[: params.mlp_negatives]
        used, place = self._used(history[1], drawn)  # (J,), (n_items,)
        n_users, n_positives = len(user_idx), int(is_hidden.sum()) if params.dropout else len(is_hidden)
        user_idx, *entries, is_hidden = self._own(user_idx, *history, is_hidden)
        shown_rows, shown = (select(values, (~is_hidden).nonzero().view(-1)) for values in entries)
        rows, items = (
            (select(values, is_hidden.nonzero().view(-1)) for values in entries) if params.dropout else entries
        )
        at_items, at_drawn = select(place, items), place[drawn]

        users, vectors = network.encode(user_idx, shown_rows, shown), network.items[drawn]  # (B, D + M), (I, D + M)
        of_gmf = users[:, : network.gmf_dim] * network.gmf_head  # (B, D)
        base = torch.addmm(network.bias[drawn], of_gmf, vectors[:, : network.gmf_dim].T)  # (B, I)
        liked = segment_sums(network.items, rows, items, len(users))[:, : network.gmf_dim]  # (B, D)
        total = -network.bias[items].sum() - (of_gmf * liked).sum()
        counts = torch.bincount(rows, minlength=len(users))[:, None]
        divisor = max(1, n_positives)
        slope_bias = -torch.bincount(at_items, minlength=len(used)) / divisor

        mlp.begin(users[:, of_mlp], select(network.items[:, of_mlp], used), at_drawn)
        for part, _ in tiles(len(users), len(drawn), mlp.n_pairs):
            loss, slope = self._loss_of_all(base[part].add_(mlp.score_grid(part)), counts[part])
            mlp.learn_grid(part, torch.div(slope, divisor, out=base[part]))
            total += loss
        slope_bias[at_drawn] += base.sum(0)
        for start in range(0, len(rows), mlp.n_pairs):
            pairs = rows[start : start + mlp.n_pairs], at_items[start : start + mlp.n_pairs]
            score = mlp.score_pairs(*pairs)
            mlp.learn_pairs(*pairs, torch.full_like(score, -1 / divisor))
            total -= score.sum()

        slopes = mlp.finish()
        slopes.users.add_(users[:, of_mlp], alpha=2 * params.weight_decay / n_users)
        per_shown = slopes.users * torch.bincount(shown_rows, minlength=len(users)).clamp(min=1).rsqrt()[:, None]
        slope_history = torch.zeros_like(slopes.items).index_add_(
            0, select(place, shown), select(per_shown, shown_rows)
        )
        self.group.add(slope_history, slopes.items, slope_bias, *slopes.layers)
        slopes.items.index_add_(0, at_drawn, vectors[:, of_mlp], alpha=2 * params.weight_decay / len(drawn))
        optimizer.update(network.users, of_free, user_idx, slopes.users, rate)
        optimizer.update(network.history, of_linear, used, slope_history, rate)
        optimizer.update(network.items, of_mlp, used, slopes.items, rate)
        if not network.gmf_dim:
            optimizer.update(network.bias, slice(None), used, slope_bias, rate)
        for parameter, slope in zip((*network.weights, *network.biases, network.mlp_head), slopes.layers, strict=True):
            optimizer.update(parameter, slice(None), slice(None), slope, rate)
        return total, n_positives, n_positives + n_users * len(drawn)

    def _loss_of_all(self, score: torch.Tensor, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Return what drawn items, which stand for all, add to the summed loss of users' positives, and its slope.

        Parameters
        ----------
        score : float32 of shape (B, I)
        counts : int64 of shape (B, 1)
            Positives of each user.
        """
        n_represented = self.n_items / score.shape[1]  # by each item drawn
        if self.params.loss is NCFLoss.SOFTMAX:
            log_score = torch.log_softmax(score, dim=1)
            log_z = (score - log_score)[:, :1] + np.log(n_represented)
            return (counts * log_z).sum(), counts * log_score.exp_()
        return n_represented * functional.softplus(score).sum(), n_represented * torch.sigmoid(score)

    def _used(self, *items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the items that occur, in order, and at each item's place its row among them, if it occurs."""
        is_used = torch.zeros(self.n_items, dtype=torch.bool, device=self.device)
        for some in items:
            is_used[some] = True
        return is_used.nonzero().view(-1), is_used.cumsum(0) - 1

    def _history(self, user_idx: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return row within the batch and item of every interaction of the batch's users."""
        counts = self.counts[user_idx]
        rows = torch.repeat_interleave(torch.arange(len(user_idx), device=self.device), counts)
        before = self.starts[user_idx] - (counts.cumsum(0) - counts)
        return rows, select(self.items, torch.arange(len(rows), device=self.device) + select(before, rows)).long()


class _Validator:
    """
    ndcg@10 over the full catalogue, seen items excluded, of users who have both history and held-out items.

    In a catalogue of more than ``EXACT_SCORING_ITEMS`` the MLP ranks ``N_CANDIDATES`` items of each user, the best by
    the GMF branch, as it does when lists are made: all pairs would take longer than the epoch.
    """

    def __init__(
        self,
        train: sp.csr_matrix,
        validation: sp.csr_matrix,
        params: NCFParams,
        network: NCFNetwork,
        seed: int,
        group: Group,
        batch_size: int = 256,
    ) -> None:
        users = users_looked_at(np.diff(train.indptr) > 0, validation, seed)
        self.network, self.params, self.group, self.n_users = network, params, group, len(users)
        users = users[group.rank :: group.n_members]
        self.batches: list[tuple[IdxVector, sp.csr_matrix, sp.csr_matrix]] = [
            (batch, train[batch], validation[batch])
            for batch in np.split(users, range(batch_size, len(users), batch_size))
        ]

    def ndcg(self, *, fused: bool) -> float:
        """Return the mean over those users; 0 when there are none."""
        total = self._of_own_users(fused=fused).sum()
        self.group.add(total)
        return float(total) / max(1, self.n_users)

    def weigh_closed_form(self) -> None:
        """Give closed-form vectors that weight in the head by which the GMF branch ranks best: 1 if in doubt."""
        head = self.network.gmf_head.data[: self.network.linear_dim]
        usual = self._of_own_users(fused=False)
        best_weight, best_gain = 1.0, 0.0
        for weight in LINEAR_WEIGHTS:
            head.fill_(weight)
            gains = self._of_own_users(fused=False) - usual
            sums = torch.stack([gains.sum(), gains.square().sum()])
            self.group.add(sums)
            mean, square = (float(total) / max(1, self.n_users) for total in sums)
            error = math.sqrt(max(0.0, square - mean**2) / max(1, self.n_users))
            if mean > max(best_gain, STANDARD_ERRORS * error):
                best_weight, best_gain = weight, mean
        head.fill_(best_weight)

    def _of_own_users(self, *, fused: bool) -> torch.Tensor:
        """Return ndcg of each of this trainer's users, float64."""
        network, found = self.network, [torch.zeros(0)]
        device = network.items.device
        in_two_stages = fused and network.gmf_dim > 0 and len(network.items) > EXACT_SCORING_ITEMS
        with torch.inference_mode():
            for user_idx, history, relevant in self.batches:
                rows = np.repeat(np.arange(len(user_idx)), np.diff(history.indptr))
                encoded = (torch.from_numpy(a.astype(np.int64)).to(device) for a in (user_idx, rows, history.indices))
                vectors = network.encode(*encoded)
                score = network.grid(vectors, network.items, network.bias, fused=fused and not in_two_stages)
                if in_two_stages and network.has_mlp():
                    leave_out(score, history)
                    best = score.topk(min(N_CANDIDATES, len(network.items))).indices
                    ranked = network.lists(vectors, best.view(-1)).view(best.shape)
                    score = score.fill_(-torch.inf).scatter_(1, best, ranked)
                found.append(ndcg_of_users(score, history, relevant).cpu())
        return torch.cat(found).double()


def _initialize(network: NCFNetwork, train: sp.csr_matrix, params: NCFParams, seed: int) -> NCFParams:
    """Fill in what training starts from; return ``params`` with the closed form's settings as they were chosen."""
    generator = epoch_generator(torch.device("cpu"), seed, "initial")
    popularity = torch.from_numpy(count(train.indices, train.shape[1])).float()
    is_fitted_user = torch.from_numpy(np.diff(train.indptr) > 0)
    network.is_fitted_item |= popularity > 0
    with torch.no_grad():
        for table, mask in ((network.history, network.is_fitted_item), (network.users, is_fitted_user)):
            table.normal_(0, 0.1, generator=generator).mul_(mask[:, None])
        network.items.normal_(0, 0.1, generator=generator)
        if linear := network.linear_dim:
            exponent, shrinkage = params.linear_item_exponent, params.linear_shrinkage
            exponent, shrinkage = linear_settings(
                train,
                linear,
                seed,
                item_exponents=ITEM_EXPONENTS if exponent is None else [exponent],
                shrinkages=SHRINKAGES if shrinkage is None else [shrinkage],
            )
            history, items = linear_factors(train, linear, seed, item_exponent=exponent, shrinkage=shrinkage)
            network.history[:, :linear] = torch.from_numpy(history)
            network.items[:, :linear] = torch.from_numpy(items)
            network.gmf_head[:linear] = params.linear_weight or 1.0
            params = params.model_copy(update={"linear_item_exponent": exponent, "linear_shrinkage": shrinkage})
        network.bias.copy_(torch.log((popularity + 1) / (len(is_fitted_user) + 1)))
        for weight in network.weights:
            nn.init.kaiming_uniform_(weight, nonlinearity="relu", generator=generator)
    return params


def _binary(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """Return a matrix without zeros and repetitions; the one given, if it has none."""
    if matrix.has_canonical_format and matrix.data.all():
        return matrix
    matrix = matrix.copy()
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    return matrix


def _digest(*parts: sp.csr_matrix | NCFParams | TrainingOptions | None) -> str:
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, sp.csr_matrix):
            digest.update(repr(part.shape).encode())
            digest.update(part.indptr.data)
            digest.update(part.indices.data)
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()

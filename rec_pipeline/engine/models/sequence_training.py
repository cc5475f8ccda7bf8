"""Training of the sequence model; ``sequence`` says where it differs from the paper."""

import copy
import hashlib
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from torch import nn
from torch.nn import functional

from rec_pipeline.engine.compute import LOCAL, Compute, Group
from rec_pipeline.engine.data.batches import BoolVector, IdxVector
from rec_pipeline.engine.data.sequences import UserSequences
from rec_pipeline.engine.data.space import count
from rec_pipeline.engine.models.ncf_params import TrainingOptions
from rec_pipeline.engine.models.sequence import (
    AttentionLayer,
    SequenceModel,
    SequenceNetwork,
    encode_last,
    known_events,
)
from rec_pipeline.engine.models.sequence_params import SequenceParams
from rec_pipeline.engine.models.training import (
    EpochMetrics,
    Fit,
    Trainer,
    epoch_generator,
    keep_tables_off_the_heap,
    resolve_device,
    threads,
)
from rec_pipeline.engine.models.validation import ndcg_of_users, users_looked_at

SCORED_CELLS = 1 << 24  # scores held at a time in validation: 64 MiB of float32
MAX_EPOCH_EVENTS = 1 << 20  # events of an epoch at most: more data make more epochs, and early stopping looks as often
INITIAL_SCALE = 0.02  # standard deviation of the item vectors
PIECES_AT_ONCE = 1 << 13  # of sequences, that are looked through for an item
SORTED_BATCHES = 32  # batches whose sequences are sorted by length together
CONTINUED_EPOCHS, CONTINUED_RATE = 1, 0.5  # of ``continue_sequence``, the rate as a share of the first fit's


SequenceFit: TypeAlias = Fit[SequenceModel, SequenceParams]


def fit_sequence(
    train: UserSequences,
    n_items: int,
    params: SequenceParams,
    options: TrainingOptions | None = None,
    *,
    validation: sp.csr_matrix | None = None,
    on_epoch: Callable[[EpochMetrics], None] | None = None,
    checkpoint_dir: Path | None = None,
    compute: Compute = LOCAL,
) -> SequenceFit:
    """
    Fit the sequence model.

    Several trainers take the steps that one would, each with a part of a step's sequences. Of the item table the rows
    of a step travel, all of it only where all items are scored. Each holds the network, the training data and what Adam
    knows.

    Parameters
    ----------
    train
        Items of every user in order of time.
    n_items : int
        Size of the catalogue.
    params, options
        What to train and how; the same data, params, seed, device and number of threads give the same scores.
    validation : CSR of shape (n_users, n_items), optional
        Interactions after those of ``train``. The weights that are best on them are kept, and training stops early; of
        many users a draw is looked at. Without it all ``epochs`` are run.
    on_epoch
        Called after each epoch.
    checkpoint_dir
        Where a killed run left its checkpoint and where this one writes its own; the caller deletes it after success.
    compute
        Who the trainers are; the same number of them finds the same.

    Raises
    ------
    ValueError
        If no user has two events, so that there is nothing to predict.
    TrainingDivergedError
        If the loss becomes infinite or NaN.
    """
    _require_next_events(train)
    params = params.for_events(len(train.item_idx))
    fit = partial(_fit, train, n_items, params, options or TrainingOptions(), validation)
    return compute.together(fit, partial(fit, on_epoch=on_epoch, checkpoint_dir=checkpoint_dir))


def _fit(
    train: UserSequences,
    n_items: int,
    params: SequenceParams,
    options: TrainingOptions,
    validation: sp.csr_matrix | None,
    group: Group,
    *,
    on_epoch: Callable[[EpochMetrics], None] | None = None,
    checkpoint_dir: Path | None = None,
) -> SequenceFit:
    with threads(options.n_threads):
        networks = _Networks(_initial_network(train, n_items, params, options.seed)).to(resolve_device(options.device))
        validator = None
        if validation is not None:
            validator = _Validator(train, validation, params, options, networks.average, group)
        trainer = Trainer(
            networks,
            options,
            digest=_digest(train, n_items, validation, params, options),
            on_epoch=on_epoch,
            checkpoint_dir=checkpoint_dir,
            group=group,
        )
        validate = validator.ndcg if validator else None
        is_new = np.zeros(n_items, dtype=np.bool_)  # all of them are, so none goes first
        best_epoch = _train(trainer, networks, train, params, options, is_new=is_new, validate=validate, group=group)
    return SequenceFit(
        SequenceModel(networks.average.cpu().eval(), params),
        best_epoch,
        trainer.progress.history,
        params.model_copy(update={"epochs": max(1, best_epoch)}),
    )


def continue_sequence(
    model: SequenceModel, train: UserSequences, options: TrainingOptions | None = None, *, compute: Compute = LOCAL
) -> SequenceModel:
    """
    Take a fitted model through ``CONTINUED_EPOCHS`` more, on all that is known by now.

    As good on what comes next as a fit from the start for as many epochs as the first one took (docs/BENCHMARKS.md), at
    a fraction of its cost, and with no part held out. Of more than ``MAX_EPOCH_EVENTS`` events those are taken that are
    near an item the model does not know yet, and a draw of the others.

    Parameters
    ----------
    model
        In the rows of ``train``'s items; not modified.
    train
        What the model was fitted on and what came since.
    compute
        Who the trainers are, as in ``fit_sequence``.

    Raises
    ------
    ValueError
        If no user has two events.
    TrainingDivergedError
        If the loss becomes infinite or NaN.
    """
    _require_next_events(train)
    more = partial(_continue, model, train, options or TrainingOptions())
    return compute.together(more, more)


def _continue(model: SequenceModel, train: UserSequences, options: TrainingOptions, group: Group) -> SequenceModel:
    rate = model.params.learning_rate * CONTINUED_RATE
    params = model.params.model_copy(update={"epochs": CONTINUED_EPOCHS, "learning_rate": rate})
    with threads(options.n_threads):
        network = copy.deepcopy(model.network).requires_grad_()
        _admit_new_items(network, train)
        networks = _Networks(network).to(resolve_device(options.device))
        is_new = network.is_fitted_item.cpu().numpy() & ~model.is_fitted_item
        trainer = Trainer(networks, options, digest="", group=group)
        _train(trainer, networks, train, params, options, is_new=is_new, validate=None, group=group)
    return SequenceModel(networks.average.cpu().eval(), model.params)


def _require_next_events(train: UserSequences) -> None:
    if train.lengths.max(initial=0) < 2:
        raise ValueError("no user has two events or more, so there is no next event to learn")


def _train(
    trainer: Trainer,
    networks: "_Networks",
    train: UserSequences,
    params: SequenceParams,
    options: TrainingOptions,
    *,
    is_new: BoolVector,
    validate: Callable[[], float] | None,
    group: Group,
) -> int:
    """Train ``networks`` where they are, pieces with an item that is new first, and return the best epoch."""
    keep_tables_off_the_heap()
    fitting = _Fitting(networks, train, params, options, networks.trained.items.device, is_new, group)
    optimizer = torch.optim.AdamW(
        networks.trained.parameters(), lr=params.learning_rate, weight_decay=params.weight_decay, fused=True
    )
    return trainer.run(
        "network",
        optimizer,
        train_epoch=partial(fitting.epoch, optimizer=optimizer),
        validate=validate,
        epochs=params.epochs,
        patience=params.patience,
    )


class _Networks(nn.Module):
    """The network that is trained and the moving average of its weights, which is used."""

    def __init__(self, network: SequenceNetwork) -> None:
        super().__init__()
        self.trained = network
        self.average = copy.deepcopy(network).requires_grad_(requires_grad=False).eval()

    def move_average(self, n_steps: int, horizon: int) -> None:
        """Move the average on after step ``n_steps`` (from 1), to look back over ``horizon`` steps, at first fewer."""
        share = min(1.0, max(1 / horizon, 10 / (n_steps + 9)))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.trained.parameters()), share)


class _Fitting:
    """Training data on the device, and one epoch over it."""

    def __init__(
        self,
        networks: _Networks,
        train: UserSequences,
        params: SequenceParams,
        options: TrainingOptions,
        device: torch.device,
        is_new: BoolVector,
        group: Group,
    ) -> None:
        self.networks, self.params, self.seed, self.device = networks, params, options.seed, device
        self.group = group
        self.items = torch.from_numpy(train.item_idx).to(device)
        self.n_items = len(networks.trained.items)
        starts, lengths = _pieces(train, params.max_length)
        self.starts, self.lengths = torch.from_numpy(starts).to(device), torch.from_numpy(lengths).to(device)
        self.has_new_item = have_any(train.item_idx, is_new, starts, starts + lengths + 1)
        self.batch_events = params.events_a_step(len(train.item_idx))
        self.n_parts = max(1, round(int(lengths.sum()) / MAX_EPOCH_EVENTS))  # epochs in which every piece is taken once
        self.n_steps = max(1, round(int(lengths.sum()) / self.n_parts / self.batch_events))

    def epoch(self, epoch: int, rate_share: float, *, optimizer: torch.optim.Optimizer) -> tuple[float, int]:
        """Predict the events of an epoch; return the mean loss of an event and the number of pairs scored."""
        networks, params = self.networks, self.params
        generator = epoch_generator(self.device, self.seed, epoch)
        hidden = torch.randint(1 << 62, (), generator=generator, device=self.device)
        torch.manual_seed(int(hidden) + self.group.rank)  # what is dropped; the rest is drawn alike by all
        networks.trained.train()
        total, n_events, n_samples = torch.zeros((), device=self.device), 0, 0
        for step, pieces in enumerate(self._batches(epoch, generator), start=epoch * self.n_steps + 1):
            for group in optimizer.param_groups:
                group["lr"] = rate_share * params.learning_rate * min(1.0, step / self.n_steps)
            optimizer.zero_grad()
            drawn, events = self._draw(generator), int(self.lengths[pieces].sum())
            if len(own := pieces[self.group.rank :: self.group.n_members]):
                loss = self._loss(own, drawn)
                # Batches hold about as many events each; dividing by the same number weighs every event alike.
                (loss / self.batch_events).backward()  # type: ignore[no-untyped-call] # torch leaves it unannotated
                total += loss.detach()
            if self.group.n_members > 1:
                self._add_gradients(pieces, drawn)
            optimizer.step()
            networks.move_average(step, horizon=self.n_steps)
            n_events += events
            n_samples += events * (self.n_items if drawn is None else len(drawn) + 1)
        self.group.add(total)
        return float(total) / n_events, n_samples

    def _add_gradients(self, pieces: torch.Tensor, drawn: torch.Tensor | None) -> None:
        """Sum the gradients of a step over the group; of the item table only the rows that the step can touch."""
        gradients = {}
        for name, parameter in self.networks.trained.named_parameters():
            if parameter.grad is None:  # no sequence of the step was its own
                parameter.grad = torch.zeros_like(parameter)
            gradients[name] = parameter.grad
        if drawn is None:
            self.group.add(*gradients.values())
            return
        sizes = self.lengths[pieces] + 1  # with the last event, which is predicted and not read
        within = torch.arange(int(sizes.sum()), device=self.device) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
        is_touched = torch.zeros(self.n_items, dtype=torch.bool, device=self.device)
        is_touched[self.items[self.starts[pieces].repeat_interleave(sizes) + within].long()] = True
        is_touched[drawn] = True
        touched = is_touched.nonzero().view(-1)
        tables = gradients.pop("items"), gradients.pop("bias")
        rows = [table.index_select(0, touched) for table in tables]
        self.group.add(*rows, *gradients.values())
        for table, sums in zip(tables, rows, strict=True):
            table.index_copy_(0, touched, sums)

    def _draw(self, generator: torch.Generator) -> torch.Tensor | None:
        """Return the items that a batch is scored against, int64 of shape (n_negatives,); None for all of them."""
        if self.n_items <= self.params.n_negatives:
            return None
        return torch.randperm(self.n_items, generator=generator, device=self.device)[: self.params.n_negatives]

    def _batches(self, epoch: int, generator: torch.Generator) -> list[torch.Tensor]:
        """Return rows of pieces for each step, in random order but for pieces of like length going together."""
        taken = torch.from_numpy(pieces_of_epoch(self.has_new_item, self.n_parts, epoch, self.seed)).to(self.device)
        order = taken[torch.randperm(len(taken), generator=generator, device=self.device)]
        lengths = self.lengths[order]
        block = lengths.cumsum(0) // (self.batch_events * SORTED_BATCHES)
        # Up and down in turn, so that lengths do not jump where one block follows another.
        key = block * (2 * self.params.max_length) + torch.where(
            block % 2 == 0, lengths, self.params.max_length - lengths
        )
        order = order[key.argsort(stable=True)]
        batch = (self.lengths[order].cumsum(0) - 1) // self.batch_events
        batches = torch.split(order, torch.unique_consecutive(batch, return_counts=True)[1].tolist())
        return [batches[i] for i in torch.randperm(len(batches), generator=generator, device=self.device).tolist()]

    def _loss(self, pieces: torch.Tensor, drawn: torch.Tensor | None) -> torch.Tensor:
        """Return the sum of the losses of the events of some pieces."""
        network = self.networks.trained
        starts, lengths = self.starts[pieces], self.lengths[pieces]
        position = torch.arange(int(lengths.max()), device=self.device)
        is_event = position < lengths[:, None]  # (B, L)
        place = starts[:, None] + torch.where(is_event, position, 0)
        expected = network.encode(self.items[place].long())[is_event]  # (T, D): T events to predict
        target = self.items[place[is_event] + 1].long()
        if drawn is None:
            score = torch.addmm(network.bias, expected, network.items.T)
            return functional.cross_entropy(score, target, reduction="sum")
        score = torch.addmm(network.bias[drawn], expected, network.items[drawn].T)  # (T, n_negatives)
        slot = torch.full((self.n_items,), -1, device=self.device)
        slot[drawn] = torch.arange(len(drawn), device=self.device)
        row = torch.nonzero(slot[target] >= 0)[:, 0]
        score[row, slot[target[row]]] = -torch.inf
        others = torch.logsumexp(score, dim=1) + math.log((self.n_items - 1) / len(drawn))
        own = (expected * network.items[target]).sum(-1) + network.bias[target]
        return functional.softplus(others - own).sum()


class _Validator:
    """ndcg@10 of users who have both a sequence and held-out items."""

    def __init__(
        self,
        train: UserSequences,
        validation: sp.csr_matrix,
        params: SequenceParams,
        options: TrainingOptions,
        network: SequenceNetwork,
        group: Group,
    ) -> None:
        users = users_looked_at(train.lengths > 0, validation, options.seed)
        self.network, self.group, self.n_users = network, group, len(users)
        users = users[group.rank :: group.n_members]
        self.events, self.counts = known_events(
            train.recent(users, params.max_length), network.is_fitted_item.cpu().numpy(), params.max_length
        )
        self.seen, self.relevant = _user_item(train, users, validation.shape[1]), validation[users]

    def ndcg(self) -> float:
        """Return the mean over those users; 0 when there are none."""
        network, total = self.network, torch.zeros((), dtype=torch.float64)
        users_at_once = max(1, SCORED_CELLS // len(network.items))
        for rows, vectors in encode_last(network, self.events, self.counts):
            for start in range(0, len(rows), users_at_once):
                part = rows[start : start + users_at_once]
                with torch.inference_mode():
                    score = torch.addmm(network.bias, vectors[start : start + users_at_once], network.items.T)
                    total += float(ndcg_of_users(score, self.seen[part], self.relevant[part]).sum())
        self.group.add(total)
        return float(total) / max(1, self.n_users)


def _pieces(train: UserSequences, max_length: int) -> tuple[IdxVector, IdxVector]:
    """
    Cut sequences into pieces of at most ``max_length`` predictions, from the newest event back.

    Returns
    -------
    starts, lengths : int64 of shape (n_pieces,)
        A piece reads the events ``starts`` to ``starts + lengths - 1`` and predicts those one later.
    """
    n_predicted = np.maximum(train.lengths - 1, 0)
    n_pieces = -(-n_predicted // max_length)
    user = np.repeat(np.arange(len(train)), n_pieces)
    from_end = np.arange(len(user)) - np.repeat(np.cumsum(n_pieces) - n_pieces, n_pieces)
    ends = train.starts[user] + n_predicted[user] - from_end * max_length
    starts = np.maximum(train.starts[user], ends - max_length)
    return starts, ends - starts


def have_any(item_idx: npt.NDArray[Any], is_sought: BoolVector, starts: IdxVector, ends: IdxVector) -> BoolVector:
    """Tell which stretches of ``item_idx``, one user's after the other's, hold an item that is sought."""
    found = np.zeros(len(starts), dtype=np.bool_)
    if not is_sought.any():
        return found
    for first in range(0, len(starts), PIECES_AT_ONCE):
        pieces = slice(first, first + PIECES_AT_ONCE)
        begin, end = starts[pieces].min(), ends[pieces].max()
        until = np.append(0, np.cumsum(is_sought[item_idx[begin:end]]))
        found[pieces] = until[ends[pieces] - begin] > until[starts[pieces] - begin]
    return found


def pieces_of_epoch(goes_first: BoolVector, n_parts: int, epoch: int, seed: int) -> IdxVector:
    """
    Return rows of the pieces that an epoch takes.

    Every ``n_parts`` epochs take each piece once, in another order each time around.

    Parameters
    ----------
    goes_first : bool of shape (n_pieces,)
        Pieces that come before all others each time around.
    n_parts : int
        Epochs that share the pieces.
    epoch : int
        From 0.
    """
    if n_parts == 1:
        return np.arange(len(goes_first))
    time_around, part = divmod(epoch, n_parts)
    order = np.random.default_rng([seed, time_around]).permutation(len(goes_first))
    order = order[np.argsort(~goes_first[order], kind="stable")]
    return np.array_split(order, n_parts)[part]


def _initial_network(train: UserSequences, n_items: int, params: SequenceParams, seed: int) -> SequenceNetwork:
    network = SequenceNetwork(n_items, params)
    generator = epoch_generator(torch.device("cpu"), seed, "initial")
    _admit_new_items(network, train)
    with torch.no_grad():
        network.items.normal_(0, INITIAL_SCALE, generator=generator)
        for module in network.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                nn.init.zeros_(module.bias)
        for module in network.modules():
            if isinstance(module, AttentionLayer):
                # A layer adds nothing at first, so that training begins with what follows from the last event.
                nn.init.zeros_(module.attention_out.weight)
                nn.init.zeros_(module.perceptron_out.weight)
    return network


def _admit_new_items(network: SequenceNetwork, train: UserSequences) -> None:
    """Mark items that the network is to learn from now on, and let their popularity be their bias to begin with."""
    popularity = torch.from_numpy(count(train.item_idx, len(network.items))).float()
    is_new = (popularity > 0) & ~network.is_fitted_item
    with torch.no_grad():
        network.bias[is_new] = torch.log(popularity[is_new] + 1)
    network.is_fitted_item |= is_new


def _user_item(train: UserSequences, users: IdxVector, n_items: int) -> sp.csr_matrix:
    starts = np.append(0, np.cumsum(train.lengths[users]))
    place = np.arange(starts[-1]) + np.repeat(train.starts[users] - starts[:-1], train.lengths[users])
    return sp.csr_matrix((np.ones(len(place), np.float32), train.item_idx[place], starts), (len(users), n_items))


def _digest(
    train: UserSequences,
    n_items: int,
    validation: sp.csr_matrix | None,
    params: SequenceParams,
    options: TrainingOptions,
) -> str:
    digest = hashlib.sha256(repr((n_items, params, options)).encode())
    arrays: list[npt.NDArray[Any]] = [train.starts, train.item_idx]
    if validation is not None:
        arrays += [validation.indptr, validation.indices]
    for array in arrays:
        digest.update(array.data)
    return digest.hexdigest()

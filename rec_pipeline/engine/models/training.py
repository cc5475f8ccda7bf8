"""
The training loop: epochs with early stopping, best weights, and checkpoints from which a killed run goes on.

A run is a sequence of named phases. All randomness of an epoch is a function of seed, phase and epoch number, so a
resumed run equals an uninterrupted one without storing generator states.
"""

import contextlib
import ctypes
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save, save_file

from rec_pipeline.engine import mirrors
from rec_pipeline.engine.artifacts import replacing
from rec_pipeline.engine.compute import ALONE, Group
from rec_pipeline.engine.errors import TrainingDivergedError
from rec_pipeline.engine.models.ncf_params import TrainingOptions

CHECKPOINT = "checkpoint.safetensors"
MAX_HALVINGS: Final = 2
"""How often training that diverges goes back to its best weights and on at half the rate."""
TABLE_BYTES: Final = 24 << 20
KEPT_BYTES: Final = 256 << 20
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h

Model = TypeVar("Model")
Params = TypeVar("Params")


@dataclass(frozen=True)
class EpochMetrics:
    """
    What an epoch cost and brought.

    Attributes
    ----------
    epoch
        1-based, counted through all phases.
    phase
        Name of the phase.
    train_loss
        Mean loss of a positive.
    validation_ndcg
        ndcg@10 over the full catalogue without seen items; None without validation data.
    seconds
        Wall time of the epoch, validation excluded.
    samples_per_second
        User-item pairs scored in training, positives and negatives, a second.
    rate_share
        Share of the configured learning rate that was used: 1, and half of it again after each divergence.
    """

    epoch: int
    phase: str
    train_loss: float
    validation_ndcg: float | None
    seconds: float
    samples_per_second: float
    rate_share: float = 1.0


@dataclass(frozen=True)
class Fit(Generic[Model, Params]):
    """
    Outcome of a fit.

    Attributes
    ----------
    model
        With the best weights found.
    best_epoch
        1-based epoch of ``history`` that gave them.
    history
        Every epoch trained, in order.
    refit_params
        The settings with the numbers of epochs that were best: for a fit on other data without validation.
    """

    model: Model
    best_epoch: int
    history: list[EpochMetrics]
    refit_params: Params


@dataclass
class Progress:
    """Where a run stands; what a checkpoint holds beside the tensors."""

    history: list[EpochMetrics] = field(default_factory=list)
    best_epochs: dict[str, int] = field(default_factory=dict)
    epoch: int = 0
    best_epoch: int = 0
    best_value: float = -math.inf
    n_halvings: int = 0


class Trainer:
    """
    Trains one network through phases.

    Parameters
    ----------
    network
        Trained in place; already on its device.
    options
        Seed and checkpoint cadence.
    digest
        Names data and settings; a checkpoint with another digest is ignored.
    on_epoch
        Called after each epoch that is trained here, not for those that a checkpoint brought.
    checkpoint_dir
        Where the checkpoint is written and looked for; None for neither. The caller deletes it after success.
    group
        Those who train it. Before each epoch and after it all have the same network and optimizer; the lead's are what
        they start from, and its checkpoint is the one that counts.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        options: TrainingOptions,
        *,
        digest: str,
        on_epoch: Callable[[EpochMetrics], None] | None = None,
        checkpoint_dir: Path | None = None,
        group: Group = ALONE,
    ) -> None:
        self.network = network
        self.options = options
        self.progress = Progress()
        self._digest = digest
        self._on_epoch = on_epoch
        self._path = checkpoint_dir / CHECKPOINT if checkpoint_dir else None
        self._written_at = time.monotonic()
        if self._path is not None:
            mirrors.fetch(self._path)
        stored = self._path.read_bytes() if self._path is not None and self._path.is_file() else b""
        self._loaded = self._parsed(group.spread(stored))
        if group.n_members > 1:
            network.load_state_dict(load(group.spread(save(network.state_dict()))))

    def run(
        self,
        phase: str,
        optimizer: torch.optim.Optimizer,
        *,
        train_epoch: Callable[[int, float], tuple[float, int]],
        validate: Callable[[], float] | None,
        epochs: int,
        patience: int,
        keep_last: bool = False,
    ) -> int:
        """
        Train a phase and leave the best weights in the network.

        An epoch after which the loss or a weight is not finite is tried again from the best weights so far with half
        the learning rate, ``MAX_HALVINGS`` times in a run at most.

        Parameters
        ----------
        phase
            Unique name within the run.
        train_epoch
            Trains the 0-based epoch it is given at the given share of the learning rate; returns the mean loss and the
            number of pairs scored.
        validate
            Returns a value to maximise. Without it all ``epochs`` are run and the last weights stay.
        epochs, patience
            Most epochs, and epochs without a better value after which the phase ends.
        keep_last
            Whether later weights are better ones whatever their value is, so that all ``epochs`` are run.

        Returns
        -------
        int
            Number of epochs, 0 to ``epochs``, after which the network was best; 0 means as it came into the phase.

        Raises
        ------
        TrainingDivergedError
            If it diverges at the lowest rate too.
        """
        progress = self.progress
        if phase in progress.best_epochs:
            return progress.best_epochs[phase]
        if self._loaded is not None:
            best = self._restore(self._loaded, optimizer)
            self._loaded = None
        else:
            progress.epoch, progress.best_epoch = 0, 0
            progress.best_value = validate() if validate and progress.history else -math.inf
            best = _copy(self.network.state_dict())
        while progress.epoch < epochs and progress.epoch - progress.best_epoch < patience:
            started = time.perf_counter()
            rate_share = 0.5**progress.n_halvings
            loss, n_samples = train_epoch(progress.epoch, rate_share)
            seconds = time.perf_counter() - started
            if not (math.isfinite(loss) and all(map(_is_finite, self.network.state_dict().values()))):
                if progress.n_halvings == MAX_HALVINGS:
                    raise TrainingDivergedError(
                        f"the loss became {loss} in epoch {progress.epoch + 1} of phase {phase!r} at {rate_share:.0%} "
                        "of the learning rate; lower the learning rate"
                    )
                progress.n_halvings += 1
                self.network.load_state_dict(best)
                optimizer.state.clear()  # its moments are not finite either
                continue
            progress.epoch += 1
            value = validate() if validate else None
            if keep_last or value is None or value > progress.best_value:
                progress.best_epoch, progress.best_value = progress.epoch, -math.inf if value is None else value
                best = _copy(self.network.state_dict())
            metrics = EpochMetrics(
                len(progress.history) + 1, phase, loss, value, seconds, n_samples / max(seconds, 1e-9), rate_share
            )
            progress.history.append(metrics)
            self._write(optimizer, best)
            give_back_memory()
            if self._on_epoch:
                self._on_epoch(metrics)
        self.network.load_state_dict(best)
        progress.best_epochs[phase] = progress.best_epoch
        return progress.best_epoch

    def _write(self, optimizer: torch.optim.Optimizer, best: dict[str, torch.Tensor]) -> None:
        if self._path is None or time.monotonic() - self._written_at < self.options.checkpoint_seconds:
            return
        tensors = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        if self.progress.best_epoch < self.progress.epoch:  # else they are the network's
            tensors |= {f"best.{name}": tensor for name, tensor in best.items()}
        tensors |= {
            f"optimizer.{index}.{name}": tensor
            for index, state in optimizer.state_dict()["state"].items()
            for name, tensor in state.items()
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"digest": self._digest, "progress": json.dumps(asdict(self.progress))}
        with replacing(self._path) as written:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, written, metadata=metadata)
        mirrors.send(self._path)
        self._written_at = time.monotonic()

    def _parsed(self, stored: bytes) -> dict[str, torch.Tensor] | None:
        """Take the progress out of a checkpoint of this run, and return its tensors."""
        try:
            header = json.loads(stored[8 : 8 + int.from_bytes(stored[:8], "little")])  # the format of safetensors
            metadata = header["__metadata__"]
            if metadata["digest"] != self._digest:
                return None
            tensors = load(stored)
        except (SafetensorError, ValueError, KeyError, TypeError):
            return None
        progress: dict[str, Any] = json.loads(metadata["progress"])
        self.progress = Progress(**progress | {"history": [EpochMetrics(**entry) for entry in progress["history"]]})
        return tensors

    def _restore(self, tensors: dict[str, torch.Tensor], optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
        groups: dict[str, dict[str, torch.Tensor]] = {"network": {}, "best": {}, "optimizer": {}}
        for name, tensor in tensors.items():
            group, key = name.split(".", 1)
            groups[group][key] = tensor
        self.network.load_state_dict(groups["network"])
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, tensor in groups["optimizer"].items():
            index, name = key.split(".", 1)
            state.setdefault(int(index), {})[name] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        return groups["best"] or _copy(self.network.state_dict())


def give_back_memory() -> None:
    """
    Give freed memory back to the system, where the C library can.

    Batches of changing shape leave holes between them, which glibc keeps: 1.3 GB after five epochs of a million events.
    """
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def keep_tables_off_the_heap() -> None:
    """
    Let blocks of ``TABLE_BYTES`` or more go back to the system as soon as they are freed, where the C library can.

    Gradients of a table of items are made and freed some times a step. On the heap they leave holes as large: with
    50,000 items 4.4 GB after 128 steps, 2.1 GB without. Smaller blocks stay, up to ``KEPT_BYTES`` that are free at the
    end of the heap: with a fixed threshold glibc would else give them back and fetch them again in every step.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(M_MMAP_THRESHOLD, TABLE_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def save_weights(network: torch.nn.Module, path: Path) -> None:
    """
    Write every parameter and buffer of a network.

    Raises
    ------
    TrainingDivergedError
        If one of them is not finite, which would make every score of its row NaN.
    """
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    for name, tensor in tensors.items():
        if not _is_finite(tensor):
            raise TrainingDivergedError(f"{name} of the network is not finite; lower the learning rate")
    save_file(tensors, path)


def resolve_device(name: str) -> torch.device:
    """Return the device of that name; ``auto`` is CUDA where there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


@contextlib.contextmanager
def threads(n_threads: int) -> Iterator[None]:
    """Run with that many CPU threads, then set the number back; 0 changes nothing."""
    before = torch.get_num_threads()
    if n_threads:
        torch.set_num_threads(n_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def epoch_generator(device: torch.device, *keys: object) -> torch.Generator:
    """Return a generator on ``device`` whose stream is a function of ``keys`` alone."""
    seed = int.from_bytes(hashlib.sha256(repr(keys).encode()).digest()[:7])
    return torch.Generator(device).manual_seed(seed)


def _is_finite(tensor: torch.Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _copy(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state.items()}

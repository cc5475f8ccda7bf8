"""
Where heavy work runs: two verbs, which this process or a cluster of them carries out.

``map`` is for all that can be divided: a pure function over shards that depend on the data and the batch size alone,
never on how many workers there are. So whoever runs it, the same calls are made and their results come back in the same
order. ``together`` is for training: processes that work at once and add up what each has found.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

if TYPE_CHECKING:
    import torch

Shared = TypeVar("Shared")
Shard = TypeVar("Shard")
Result = TypeVar("Result")


class Group(Protocol):
    """
    Processes that train one model together, seen from one of them.

    All of them call the same methods in the same order; where one is lost, the others' next call raises
    ``ComputeFailedError``.
    """

    @property
    def rank(self) -> int:
        """Number of this process, from 0; that of the lead, which reports and writes, is 0."""

    @property
    def n_members(self) -> int:
        """How many there are."""

    def add(self, *tensors: "torch.Tensor") -> None:
        """Replace each tensor, in place, by its sum over all members: the same bits everywhere."""

    def spread(self, content: bytes) -> bytes:
        """Return what the lead has given."""


class Alone:
    """A group of one."""

    rank, n_members = 0, 1

    def add(self, *tensors: "torch.Tensor") -> None:
        """Do nothing: they are the sums."""

    def spread(self, content: bytes) -> bytes:
        """Return ``content``."""
        return content


ALONE: Final = Alone()


class Compute(Protocol):
    """Runs work here or elsewhere."""

    @property
    def n_trainers(self) -> int:
        """Processes that train a model together."""

    def map(
        self,
        function: Callable[[Shared, Shard], Result],
        shards: Iterable[Shard],
        shared: Shared,
        *,
        wants_gpu: bool = False,
    ) -> Iterator[Result]:
        """
        Yield ``function(shared, shard)`` of every shard, in their order, holding few results at a time.

        Parameters
        ----------
        function
            Of a module, without side effects: a shard whose worker dies is computed again by another one.
        shards
            Small; each goes to one worker.
        shared
            What all shards need. It reaches a worker once, however many shards the worker computes; never modified.
        wants_gpu
            Whether the function can use one, where a worker has it.
        """

    def together(self, member: Callable[[Group], object], lead: Callable[[Group], Result]) -> Result:
        """
        Run ``lead`` in this process while ``member`` runs in ``n_trainers - 1`` others, and return what it returns.

        Parameters
        ----------
        member
            Does what ``lead`` does but for reporting and writing; can be pickled.
        lead
            Called once more, with a new group, when a member was lost: what it has written it should go on from.

        Raises
        ------
        ComputeFailedError
            If members keep being lost, or do not come.
        """


class LocalCompute:
    """Computes each shard in this process, when its result is asked for, and trains in it alone."""

    n_trainers = 1

    def map(
        self,
        function: Callable[[Shared, Shard], Result],
        shards: Iterable[Shard],
        shared: Shared,
        *,
        wants_gpu: bool = False,  # noqa: ARG002 - the function looks for itself
    ) -> Iterator[Result]:
        """Yield ``function(shared, shard)`` of every shard, in their order."""
        return (function(shared, shard) for shard in shards)

    def together(self, member: Callable[[Group], object], lead: Callable[[Group], Result]) -> Result:  # noqa: ARG002 - there is none
        """Return ``lead(ALONE)``."""
        return lead(ALONE)


LOCAL: Final = LocalCompute()

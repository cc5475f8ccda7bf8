"""
Where heavy work runs: one verb, which this process or a cluster of them carries out.

Work is a pure function over shards that depend on the data and the batch size alone, never on how many workers there
are. So whoever runs it, the same calls are made and their results come back in the same order.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Final, Protocol, TypeVar

Shared = TypeVar("Shared")
Shard = TypeVar("Shard")
Result = TypeVar("Result")


class Compute(Protocol):
    """Runs pure functions over shards."""

    def map(
        self, function: Callable[[Shared, Shard], Result], shards: Iterable[Shard], shared: Shared
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
        """


class LocalCompute:
    """Computes each shard in this process, when its result is asked for."""

    def map(
        self, function: Callable[[Shared, Shard], Result], shards: Iterable[Shard], shared: Shared
    ) -> Iterator[Result]:
        """Yield ``function(shared, shard)`` of every shard, in their order."""
        return (function(shared, shard) for shard in shards)


LOCAL: Final = LocalCompute()

"""Heavy work on Ray: the shards go to the workers of a cluster. Imported only where ``REC_COMPUTE=ray``."""

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError

from rec_pipeline.engine.errors import ComputeFailedError

Shared = TypeVar("Shared")
Shard = TypeVar("Shard")
Result = TypeVar("Result")

SHARDS_AHEAD = 2  # of each core: one at work, one waiting; what bounds the results held
TRIES_AGAIN = 3  # of a shard whose worker died

_held: tuple[str, Any] | None = None  # in a worker: what the last map put, and its name


class RayCompute:
    """
    Runs shards on the workers of a Ray cluster.

    A shard whose worker is killed is computed again by another one, ``TRIES_AGAIN`` times. What crosses processes is
    pickled by Ray, so whoever can reach the cluster's ports can run code there: they belong on a private network.

    Parameters
    ----------
    address : str, optional
        Of the cluster: ``host:port``, ``ray://host:port``, ``auto``. Without one a cluster on the cores of this machine
        is started at the first ``map``, and ends with ``close``.
    n_workers : int, optional
        Cores of that local cluster, all of the machine by default.
    """

    def __init__(self, address: str | None = None, n_workers: int | None = None) -> None:
        self._address, self._n_workers = address, n_workers
        self._is_ours = False

    def map(
        self, function: Callable[[Shared, Shard], Result], shards: Iterable[Shard], shared: Shared
    ) -> Iterator[Result]:
        """
        Yield ``function(shared, shard)`` of every shard, in their order.

        Raises
        ------
        ComputeFailedError
            If the cluster cannot be reached or its workers keep dying. What ``function`` raises comes as it is.
        """
        # Here and not at the first result: that may be asked for in a thread, and Ray ends with the thread it began in.
        with self._explained():
            self._connect()
            put = ray.put(shared)
        return self._results(function, shards, put)

    def _results(
        self, function: Callable[[Shared, Shard], Result], shards: Iterable[Shard], put: "ray.ObjectRef[Shared]"
    ) -> Iterator[Result]:
        run = ray.remote(num_cpus=1, max_retries=TRIES_AGAIN)(_run)
        limit = SHARDS_AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
        ahead: deque[ray.ObjectRef[Result]] = deque()
        for shard in shards:
            ahead.append(run.remote(function, [put], shard))
            if len(ahead) >= limit:
                yield self._wait_for(ahead.popleft())
        while ahead:
            yield self._wait_for(ahead.popleft())

    def _wait_for(self, result: "ray.ObjectRef[Any]") -> Any:
        with self._explained():
            return ray.get(result)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (RayError, ConnectionError) as error:
            if isinstance(cause := getattr(error, "cause", None), Exception):
                raise cause from error
            raise ComputeFailedError(f"Ray at {self._address or 'this machine'}: {error}") from error

    def close(self) -> None:
        """Leave the cluster; a local one ends."""
        if self._is_ours:
            ray.shutdown()
            self._is_ours = False

    def _connect(self) -> None:
        if ray.is_initialized():
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        local = {"num_cpus": self._n_workers, "include_dashboard": False} if self._address is None else {}
        ray.init(address=self._address or "local", logging_level=logging.WARNING, **local)
        self._is_ours = True


def _run(function: Callable[[Any, Any], Any], put: "list[ray.ObjectRef[Any]]", shard: Any) -> Any:
    """Compute one shard in a worker; within a list the reference comes as such, and is read once a worker."""
    global _held
    name = put[0].hex()
    if _held is None or _held[0] != name:
        _held = None  # before the next comes in: one of them fits, two may not
        _held = (name, ray.get(put[0]))
    return function(_held[1], shard)

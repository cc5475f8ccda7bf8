"""Heavy work on Ray: the shards go to the workers of a cluster. Imported only where ``REC_COMPUTE=ray``."""

import logging
import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError

from rec_pipeline.engine.compute import ALONE, Group
from rec_pipeline.engine.errors import ComputeFailedError

logger = logging.getLogger(__name__)

Shared = TypeVar("Shared")
Shard = TypeVar("Shard")
Result = TypeVar("Result")

SHARDS_AHEAD = 2  # of each core: one at work, one waiting; what bounds the results held
TRIES_AGAIN = 3  # of a shard whose worker died, of training that lost one
JOIN_SECONDS = 600.0  # until all who train are there: nodes may have to be started for them
END_SECONDS = 10.0  # for the workers to end by themselves when training is over here

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
    n_trainers : int
        Processes that train a model together: this one, and workers of the cluster.
    tell : callable, optional
        Called with a line on the bytes that went to workers and came back, at the end of each ``map`` and ``together``.
    """

    def __init__(
        self,
        address: str | None = None,
        n_workers: int | None = None,
        n_trainers: int = 1,
        tell: Callable[[str], None] = logger.info,
    ) -> None:
        self._address, self._n_workers, self.n_trainers = address, n_workers, n_trainers
        self._tell = tell
        self._is_ours = False

    def map(
        self,
        function: Callable[[Shared, Shard], Result],
        shards: Iterable[Shard],
        shared: Shared,
        *,
        wants_gpu: bool = False,
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
        return self._results(function, shards, put, wants_gpu=wants_gpu)

    def together(self, member: Callable[[Group], object], lead: Callable[[Group], Result]) -> Result:
        """
        Run ``lead`` here while ``member`` runs in ``n_trainers - 1`` workers; when one dies, once more with others.

        The workers reach this process at its address on their network, on a port that the system chooses.

        Raises
        ------
        ComputeFailedError
            If workers keep dying or do not come. What ``lead`` or ``member`` raises otherwise comes as it is.
        """
        if self.n_trainers == 1:
            return lead(ALONE)
        for tries_left in reversed(range(1 + TRIES_AGAIN)):
            try:
                return self._once_together(member, lead)
            except ComputeFailedError as error:
                if not tries_left:
                    raise
                logger.warning("training goes on with new workers: %s", error)
        raise AssertionError

    def _once_together(self, member: Callable[[Group], object], lead: Callable[[Group], Result]) -> Result:
        from rec_pipeline.engine.models.trainers import Trainers, open_store

        with self._explained():
            self._connect()
            put = ray.put(member)
            store, address = open_store(ray.util.get_node_ip_address())
            join = ray.remote(max_retries=0, **resources_for(ray.cluster_resources(), wants_gpu=True))(_join)
            members = [join.remote([put], address, rank, self.n_trainers) for rank in range(1, self.n_trainers)]
            try:
                self._wait_until_joined(store, members)
                with closing(Trainers(store, 0, self.n_trainers)) as trainers:
                    result = lead(trainers)
            except ComputeFailedError:
                # Of those that lost each other, one may have had a reason of its own.
                for ended in _ended(members)[0]:
                    self._wait_for(ended)
                raise
            else:
                self._tell(moved(len(members) * self._size(put), trainers.n_bytes))
                return result
            finally:
                # Ray ends this very process if a task is cancelled that ends just then (ray-project/ray#54798).
                for stuck in _ended(members)[1]:
                    ray.cancel(stuck, force=True)

    def _wait_until_joined(self, store: Any, members: "list[ray.ObjectRef[Any]]") -> None:
        until = time.monotonic() + JOIN_SECONDS
        missing = [str(rank) for rank in range(1, self.n_trainers)]
        while missing := [rank for rank in missing if not store.check([rank])]:
            for ended in ray.wait(members, timeout=0.2)[0]:
                self._wait_for(ended)
            if time.monotonic() > until:
                raise ComputeFailedError(
                    f"{len(missing)} of {len(members)} workers did not come to train within {JOIN_SECONDS:.0f} s: the "
                    f"cluster has {ray.cluster_resources().get('CPU', 0):.0f} cores, and each takes one"
                )

    def _results(
        self,
        function: Callable[[Shared, Shard], Result],
        shards: Iterable[Shard],
        put: "ray.ObjectRef[Shared]",
        *,
        wants_gpu: bool,
    ) -> Iterator[Result]:
        run = ray.remote(max_retries=TRIES_AGAIN, **resources_for(ray.cluster_resources(), wants_gpu=wants_gpu))(_run)
        limit = SHARDS_AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
        ahead: deque[ray.ObjectRef[Result]] = deque()
        n_back = 0
        for shard in shards:
            ahead.append(run.remote(function, [put], shard))
            if len(ahead) >= limit:
                yield self._wait_for(ahead[0])
                n_back += self._size(ahead.popleft())
        while ahead:
            result = self._wait_for(ahead[0])
            n_back += self._size(ahead.popleft())
            if not ahead:  # told with the last result, as whoever counts them asks for no more
                self._tell(moved(self._size(put), n_back))
            yield result

    def _size(self, result: "ray.ObjectRef[Any]") -> int:
        """Return the bytes of an object; 0 where Ray's client stands between, which does not know them."""
        if ray.util.client.ray.is_connected():
            return 0
        return int(ray.experimental.get_object_locations([result])[result].get("object_size") or 0)

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
        try:
            ray.init(address=self._address or "local", logging_level=logging.WARNING, **local)
        except Exception as error:  # of a node that is too slow to start Ray raises this very class
            raise ComputeFailedError(f"Ray at {self._address or 'this machine'} cannot be used: {error}") from error
        self._is_ours = True


def moved(n_to_workers: int, n_back: int) -> str:
    """Return the line that ``rec-pipeline benchmark scale`` reads."""
    return f"moved {n_to_workers + n_back:,} bytes between processes, {n_to_workers:,} of them put for workers"


def resources_for(cluster: Mapping[str, float], *, wants_gpu: bool) -> dict[str, float]:
    """
    Return what a task asks of Ray: a core, and a GPU if it can use one and the cluster has one.

    Examples
    --------
    >>> resources_for({"CPU": 8.0, "GPU": 2.0}, wants_gpu=True)
    {'num_cpus': 1, 'num_gpus': 1}
    """
    return {"num_cpus": 1, "num_gpus": int(wants_gpu and cluster.get("GPU", 0) >= 1)}


def _join(put: "list[ray.ObjectRef[Any]]", address: tuple[str, int], rank: int, n_members: int) -> None:
    """Train in a worker."""
    from rec_pipeline.engine.models.trainers import Trainers, join_store

    member: Callable[[Group], object] = _read(put)
    store = join_store(address)
    store.set(str(rank), "here")
    member(Trainers(store, rank, n_members))


def _ended(members: "list[ray.ObjectRef[Any]]") -> "tuple[list[ray.ObjectRef[Any]], list[ray.ObjectRef[Any]]]":
    """Return who has ended once all have or ``END_SECONDS`` are over, and who has not."""
    ended, others = ray.wait(members, num_returns=len(members), timeout=END_SECONDS)
    return ended, others


def _run(function: Callable[[Any, Any], Any], put: "list[ray.ObjectRef[Any]]", shard: Any) -> Any:
    """Compute one shard in a worker; within a list the reference comes as such, and is read once a worker."""
    global _held
    name = put[0].hex()
    if _held is None or _held[0] != name:
        _held = None  # before the next comes in: one of them fits, two may not
        _held = (name, _read(put))
    return function(_held[1], shard)


def _read(put: "list[ray.ObjectRef[Any]]") -> Any:
    """Return what was put; its arrays lie in memory that the node's workers share, so they cannot be written to."""
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nor does anybody try
    return ray.get(put[0])

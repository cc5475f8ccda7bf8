"""
Packed commands to a Cluster: each to the node that holds its slot, again where the Cluster changes meanwhile.

redis-py's own Cluster pipelines refuse scripts and renames, so batches are split by node here. A command that meets a
resharding (MOVED, ASK, TRYAGAIN) or a failover (lost connection, CLUSTERDOWN, LOADING) is sent again until the Cluster
has settled, within a budget of time; commands must be idempotent.
"""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from redis.cluster import ClusterNode, RedisCluster
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    ConnectionError,  # noqa: A004 - redis-py's own
    MovedError,
    ReadOnlyError,
    RedisClusterException,
    ResponseError,
    TimeoutError,  # noqa: A004 - redis-py's own
    TryAgainError,
)

PATIENCE_SECONDS: Final = 30.0
PAUSE_SECONDS: Final = 0.05
UNSETTLED: Final = (TryAgainError, ClusterDownError, BusyLoadingError, ReadOnlyError)
_ASKING: Final = b"*1\r\n$6\r\nASKING\r\n"


def slots_of(live_keys: pa.Array) -> npt.NDArray[np.int64]:
    """Return the hash slot of each key, int64 of shape (n_keys,)."""
    return np.fromiter((key_slot(key.encode()) for key in live_keys.to_pylist()), np.int64, len(live_keys))


def send_to_cluster(client: RedisCluster, commands: Sequence[memoryview], slots: npt.NDArray[np.int64]) -> list[Any]:
    """
    Run one batch of packed commands and return their replies in order; an error reply is returned as its exception.

    Parameters
    ----------
    client
        Knows which node holds which slot.
    commands
        RESP, one a row.
    slots : int64 of shape (n_commands,)
        Hash slot of each command's keys.

    Raises
    ------
    ConnectionError, ClusterDownError
        If the Cluster has not settled in time.
    """
    replies: list[Any] = [None] * len(commands)
    pending = list(range(len(commands)))
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        last: Exception | None = None
        unresolved: list[int] = []
        for node, rows in _by_node(client, pending, slots).items():
            try:
                found = _exchange(node, [commands[row] for row in rows])
            except AuthenticationError:
                raise
            except (ConnectionError, TimeoutError) as error:
                last = error
                unresolved += rows
                continue
            for row, reply in zip(rows, found, strict=True):
                answer = _follow(client, reply, commands[row]) if type(reply) is AskError else reply
                if isinstance(answer, (MovedError, *UNSETTLED)):
                    last = answer
                    unresolved.append(row)
                else:
                    replies[row] = answer
        if last is None:
            return replies
        if time.monotonic() > deadline:
            raise last
        pending = unresolved
        time.sleep(PAUSE_SECONDS)
        if not isinstance(last, TryAgainError):
            # Where no node answers at all, the next round tries with what was known.
            with suppress(RedisClusterException, ConnectionError, TimeoutError, ClusterDownError):
                client.nodes_manager.initialize()


def primaries(client: RedisCluster) -> list[ClusterNode]:
    """Return the nodes that hold slots."""
    owners = {nodes[0].name: nodes[0] for nodes in client.nodes_manager.slots_cache.values() if nodes}
    return [owners[name] for name in sorted(owners)]


def _by_node(client: RedisCluster, rows: list[int], slots: npt.NDArray[np.int64]) -> dict[ClusterNode, list[int]]:
    groups: defaultdict[ClusterNode, list[int]] = defaultdict(list)
    manager: Any = client.nodes_manager
    anybody: Any = client
    for row in rows:
        owners = manager.slots_cache.get(int(slots[row]))
        # A slot without an owner is asked of anybody, who answers with where it is or CLUSTERDOWN.
        groups[owners[0] if owners else anybody.get_random_node()].append(row)
    return groups


def _follow(client: RedisCluster, reply: AskError, command: memoryview) -> Any:
    """Ask the node a slot is moving to, once; what it cannot answer yet is tried again from the start."""
    known: Any = client
    node = known.get_node(host=reply.host, port=reply.port)
    if node is None:
        return TryAgainError(f"{reply.host}:{reply.port} is not known yet")
    try:
        return _exchange(node, [_ASKING, command])[1]
    except (ConnectionError, TimeoutError):
        return TryAgainError(f"{reply.host}:{reply.port} does not answer")


def _exchange(node: ClusterNode, commands: Sequence[memoryview | bytes]) -> list[Any]:
    pool = node.redis_connection.connection_pool
    connection: Any = pool.get_connection()
    try:
        connection.send_packed_command([b"".join(commands)])
        return [read_reply(connection) for _ in commands]
    except BaseException:
        connection.disconnect()  # replies still in flight must not answer the next caller
        raise
    finally:
        pool.release(connection)


def read_reply(connection: Any) -> Any:
    """Read one reply; an error reply is returned as its exception."""
    try:
        return connection.read_response(disable_decoding=True)
    except (ResponseError, BusyLoadingError) as error:
        return error


def batches(commands: pa.Array, batch_size: int) -> Iterator[tuple[slice, list[memoryview]]]:
    """Yield the commands ``batch_size`` at a time, each as its bytes."""
    start = commands.offset
    offsets = np.frombuffer(commands.buffers()[1], np.int32)[start : start + len(commands) + 1]
    data = memoryview(commands.buffers()[2])
    for first in range(0, len(commands), batch_size):
        rows = range(first, min(first + batch_size, len(commands)))
        yield slice(rows.start, rows.stop), [data[offsets[row] : offsets[row + 1]] for row in rows]

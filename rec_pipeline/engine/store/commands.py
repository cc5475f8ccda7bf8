"""
One Redis command for each user of a batch, packed by Arrow and sent as pipelines.

A publication sends a few commands for every user there is. Packing them one by one in Python costs more than the server
needs to run them, so the wire format (RESP, length-prefixed, hence safe for any bytes) is built column-wise.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import redis
from redis.cluster import RedisCluster

from rec_pipeline.engine.store.cluster import batches, primaries, send_to_cluster, slots_of


def pack(*arguments: str | pa.Array) -> pa.Array:
    r"""
    Pack one command a row.

    Parameters
    ----------
    arguments
        Command name and arguments in order; a string is the same for every row, a string array gives one value a row.

    Returns
    -------
    string array
        RESP commands.

    Examples
    --------
    >>> pack("GET", pa.array(["a", "bc"])).to_pylist()
    ['*2\r\n$3\r\nGET\r\n$1\r\na\r\n', '*2\r\n$3\r\nGET\r\n$2\r\nbc\r\n']
    """
    return _joined(f"*{len(arguments)}\r\n", arguments)


def pack_script(sha: str, keys: Sequence[pa.Array], argument: str, rows_per_call: int) -> pa.Array:
    r"""
    Pack calls of a script that does the same for several rows: the call itself costs a server as much as what it does.

    Parameters
    ----------
    sha
        Of the loaded script.
    keys : string arrays of shape (n_rows,)
        Keys of a row; KEYS holds those of the first row, then those of the second, ...
    argument
        ARGV[1], the same for all rows.
    rows_per_call : int
        Rows of a call; the last has what is left.

    Returns
    -------
    string array of shape (ceil(n_rows / rows_per_call),)
        RESP commands.

    Examples
    --------
    >>> pack_script("5h", [pa.array(["k"])], "a", 10).to_pylist()
    ['*5\r\n$7\r\nEVALSHA\r\n$2\r\n5h\r\n$1\r\n1\r\n$1\r\nk\r\n$1\r\na\r\n']
    """
    n_rows = len(keys[0])
    starts = np.append(np.arange(0, n_rows, rows_per_call), n_rows).astype(np.int32)
    n_keys = len(keys) * np.diff(starts)
    keys_of_calls = pc.binary_join(pa.ListArray.from_arrays(starts, _joined("", keys)), "")
    head = _joined("\r\n", ["EVALSHA", sha, pa.array(n_keys).cast(pa.string())])
    n_parts = pa.array(n_keys + 4).cast(pa.string())
    return pc.binary_join_element_wise("*", n_parts, head, keys_of_calls, f"${len(argument)}\r\n{argument}\r\n", "")


def _joined(head: str, arguments: Sequence[str | pa.Array]) -> pa.Array:
    """Return ``head`` and the arguments, each with its length, one text a row."""
    pieces: list[Any] = []
    constant = head
    for argument in arguments:
        if isinstance(argument, str):
            constant += f"${len(argument.encode())}\r\n{argument}\r\n"
        else:
            pieces += [f"{constant}$", pc.binary_length(argument).cast(pa.string()), "\r\n", argument]
            constant = "\r\n"
    return pc.binary_join_element_wise(*pieces, constant, "")


def send(
    client: "redis.Redis", commands: pa.Array, batch_size: int, live_keys: pa.Array | None = None
) -> Iterator[list[Any]]:
    """
    Run packed commands as non-transactional pipelines and yield the replies of each.

    Replies are bytes, integers or None as the server sent them; an error reply is yielded as its exception. A batch
    whose connection is lost is sent again as the client's retry policy says, so commands must be idempotent.

    Parameters
    ----------
    client
        A client of a server or of a Cluster.
    commands : string array
        As ``pack`` returns them.
    batch_size : int
        Commands per pipeline; 16 to 100 is fastest.
    live_keys : string array of the same length
        The live key of each command's user, which tells a Cluster where the command belongs; not needed for a server.
    """
    cluster: Any = client
    if isinstance(cluster, RedisCluster):
        slots = slots_of(live_keys)
        for rows, packed in batches(commands, batch_size * len(primaries(cluster))):
            yield send_to_cluster(cluster, packed, slots[rows])
        return
    start = commands.offset
    offsets = np.frombuffer(commands.buffers()[1], np.int32)[start : start + len(commands) + 1]
    data = memoryview(commands.buffers()[2])
    for first in range(0, len(commands), batch_size):
        last = min(first + batch_size, len(commands))
        yield _send_one(client, data[offsets[first] : offsets[last]], last - first)


def _send_one(client: "redis.Redis", packed: memoryview, n_commands: int) -> list[Any]:
    connection: Any = client.connection_pool.get_connection()

    def attempt() -> list[Any]:
        connection.send_packed_command([packed])
        return _replies(connection, n_commands)

    try:
        replies: list[Any] = connection.retry.call_with_retry(attempt, lambda _: connection.disconnect())
    except BaseException:
        connection.disconnect()  # replies still in flight must not answer the next caller
        raise
    else:
        return replies
    finally:
        client.connection_pool.release(connection)


def _replies(connection: Any, n_replies: int) -> list[Any]:
    """Ask the parser itself: what a connection does round each reply takes longer than the server takes to make one."""
    read = connection._parser.read_response
    try:
        return [read(disable_decoding=True) for _ in range(n_replies)]
    except OSError as error:
        raise redis.ConnectionError(f"connection lost while reading: {error}") from error

"""Processes that train together, by torch's gloo: over any network, tensors of a GPU by way of the host."""

from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from rec_pipeline.engine.errors import ComputeFailedError

_torch: Any = distributed  # whose own types name none of what is used here

CALL_SECONDS = 1800.0  # the longest that a member waits for the others: the lead's closed-form factors come first


def open_store(host: str) -> tuple[Any, tuple[str, int]]:
    """Return the lead's store, on a free port, and the address at which members reach it if they do so at ``host``."""
    store = _torch.TCPStore(host, 0, is_master=True, wait_for_workers=False)
    return store, (host, store.port)


def join_store(address: tuple[str, int]) -> Any:
    """Return that store, in a member."""
    return _torch.TCPStore(*address, is_master=False)


class Trainers:
    """
    A ``Group`` of torch processes.

    Parameters
    ----------
    store
        Where the members find each other, e.g. a ``TCPStore`` of the lead.
    rank, n_members
        As in ``Group``. ``n_bytes`` counts what this member has given to be added up.

    Raises
    ------
    ComputeFailedError
        If one of the members cannot be reached; from every method too.
    """

    def __init__(self, store: Any, rank: int, n_members: int) -> None:
        self.rank, self.n_members, self.n_bytes = rank, n_members, 0
        try:
            self._group = _torch.ProcessGroupGloo(store, rank, n_members, timedelta(seconds=CALL_SECONDS))
        except RuntimeError as error:
            raise _lost(error) from error

    def close(self) -> None:
        """Leave: whoever waits for this member, or will, gets an error at once."""
        self._group = None

    def add(self, *tensors: torch.Tensor) -> None:
        """Replace each tensor, in place, by its sum over all members: the same bits everywhere."""
        self.n_bytes += sum(tensor.nbytes for tensor in tensors)
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])  # one message
        try:
            self._group.allreduce([flat]).wait()
        except RuntimeError as error:
            raise _lost(error) from error
        for tensor, sums in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(sums.view_as(tensor))

    def spread(self, content: bytes) -> bytes:
        """Return what the lead has given."""
        is_lead = self.rank == 0
        size = torch.tensor([len(content) * is_lead])
        self.add(size)
        sent = torch.zeros(int(size), dtype=torch.uint8)
        if is_lead and content:
            sent.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        self.add(sent)  # to which the others add zeros
        return sent.numpy().tobytes()


def _lost(error: RuntimeError) -> ComputeFailedError:
    return ComputeFailedError(f"a process that trains with this one is lost: {str(error).partition(chr(10))[0]}")

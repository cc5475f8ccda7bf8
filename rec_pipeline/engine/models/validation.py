"""What early stopping looks at: ndcg@10 over the full catalogue without seen items."""

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch

from rec_pipeline.engine.data.batches import IdxVector, at_most

VALIDATION_CUTOFF: Final = 10
MAX_USERS: Final = 10_000
"""Users looked at after an epoch: as many more would cost as much as the epoch, and tell apart no closer epochs."""


def users_looked_at(train: npt.NDArray[np.bool_], validation: sp.csr_matrix, seed: int) -> IdxVector:
    """
    Return the users by whom epochs are compared, ascending: ``MAX_USERS`` at most, drawn by ``seed``.

    Parameters
    ----------
    train : bool of shape (n_users,)
        Users who are in the training data; of these only those with held-out items are looked at.
    validation : CSR of shape (n_users, n_items)
    """
    return at_most(np.flatnonzero(train & (np.diff(validation.indptr) > 0)), MAX_USERS, seed)


def ndcg_of_users(
    score: torch.Tensor, seen: sp.csr_matrix, relevant: sp.csr_matrix, cutoff: int = VALIDATION_CUTOFF
) -> torch.Tensor:
    """
    Return ndcg of each user, with binary gains and the ideal over ``min(cutoff, relevant)`` places: float32 (n_users,).

    Parameters
    ----------
    score : float of shape (n_users, n_items)
        Overwritten where an item is seen.
    seen, relevant : CSR of the same shape
        Stored entries are items that are left out, and items held out; every user has one of the latter.
    """
    device = score.device
    leave_out(score, seen)
    top = score.topk(min(cutoff, score.shape[1])).indices  # (n_users, cutoff)
    gains = 1 / torch.log2(torch.arange(cutoff, device=device) + 2.0)
    hits = torch.from_numpy(relevant.toarray() > 0).to(device).gather(1, top)
    n_relevant = torch.from_numpy(np.diff(relevant.indptr)).to(device).clamp(max=cutoff)
    return (hits * gains[: top.shape[1]]).sum(1) / gains.cumsum(0)[n_relevant - 1]


def leave_out(score: torch.Tensor, seen: sp.csr_matrix) -> None:
    """Overwrite the scores of stored entries of ``seen``, a CSR of the same shape, by ``-inf``."""
    rows = np.repeat(np.arange(seen.shape[0]), np.diff(seen.indptr))
    score[_tensor(rows, score.device), _tensor(seen.indices, score.device)] = -torch.inf


def _tensor(array: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.int64)).to(device)

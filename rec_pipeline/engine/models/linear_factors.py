"""
The best linear reconstruction of users' histories of a given rank, in closed form.

What an item scores for a user is a sum over the user's history, and that sum is an inner product of a history vector
and an item vector: ridge regression of the history on itself through its leading singular vectors. On items that the
user does not have it ranks as EASE (Steck, 2019) does but for an item-wise factor, because what EASE's zero diagonal
takes away is nothing but the history itself; and it needs no matrix of all pairs of items. It differs from a plain
singular value decomposition in that users weigh ``n ** -0.5`` and items are scaled by a power of their popularity
before it. How much the singular values are shrunk and which power it is depend on how much is known of users and items,
and are chosen on interactions hidden from the decomposition.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch

from rec_pipeline.engine.data.batches import IdxVector, at_most
from rec_pipeline.engine.data.histories import USERS_AT_ONCE
from rec_pipeline.engine.data.space import count
from rec_pipeline.engine.models.validation import ndcg_of_users

SCALE, SCALED_AT, SCALE_EXPONENT = 144.0, 0.8, 1.5
"""
What a reconstruction of 0 or 1 is worth in the logits of a softmax over the catalogue at that shrinkage, and the power
of the shrinkage by which it grows: the fainter the data, the less there is to what is learned beside the closed form.
"""
HIDDEN_USERS: Final = 2_000
"""Users at most of each of whom an interaction is hidden; differences of a few percent are beyond doubt by so many."""
CUTOFF: Final = 100
"""Places of the ndcg by which hidden interactions choose: at 10 most of them are missed, which tells nothing apart."""
OVERSAMPLING, POWER_ITERATIONS = 32, 4
RANK_TOLERANCE = 1e-12  # of the largest eigenvalue, by which columns are taken apart: float32 tells 1e-14 at best

FloatMatrix = npt.NDArray[np.float32]


def linear_factors(
    train: sp.csr_matrix, dim: int, seed: int, *, item_exponent: float, shrinkage: float
) -> tuple[FloatMatrix, FloatMatrix]:
    """
    Return history vectors and item vectors, float32 of shape (n_items, dim) each.

    A user's vector is the sum of the history vectors of the user's items, divided by the square root of their number;
    its inner product with an item vector is the score. Columns beyond the rank of the data are zero.

    Parameters
    ----------
    train : CSR of shape (n_users, n_items)
        A stored entry is an interaction; its value is not used.
    dim : int
        Number of singular vectors, at least 1.
    seed : int
        Of the random start of the decomposition.
    item_exponent : float
        Power of an item's popularity by which its column is divided.
    shrinkage : float
        Size of the ridge, in units of the largest eigenvalue that noise of the same density would have.
    """
    return _Spectrum.of(train, dim, seed, item_exponent).factors(shrinkage)


def linear_settings(
    train: sp.csr_matrix, dim: int, seed: int, *, item_exponents: Sequence[float], shrinkages: Sequence[float]
) -> tuple[float, float]:
    """
    Return the exponent and the shrinkage that rank hidden interactions best, by ndcg@100; the first ones of equals.

    One interaction is hidden of each of 2,000 users at most who have several.

    Parameters
    ----------
    train, dim, seed
        As for ``linear_factors``; the seed also draws what is hidden.
    item_exponents, shrinkages : float
        What to choose from, one at least; of one each nothing is computed.
    """
    choices = [(exponent, shrinkage) for exponent in item_exponents for shrinkage in shrinkages]
    users = at_most(np.flatnonzero(np.diff(train.indptr) > 1), HIDDEN_USERS, seed)
    if len(choices) == 1 or not len(users):
        return choices[0]
    of_users = train[users]
    drawn = (np.random.default_rng(seed).random(len(users)) * np.diff(of_users.indptr)).astype(np.int64)
    hidden = train.indptr[users].astype(np.int64) + drawn
    seen = _ones(of_users, of_users.indptr[:-1].astype(np.int64) + drawn)
    held_out = sp.csr_matrix(
        (np.ones(len(users), dtype=np.float32), train.indices[hidden], np.arange(len(users) + 1)), seen.shape
    )
    quality: dict[tuple[float, float], float] = {}
    for exponent in item_exponents:
        spectrum = _Spectrum.of(train, dim, seed, exponent, hidden)
        for shrinkage in shrinkages:
            quality[exponent, shrinkage] = _quality(spectrum.factors(shrinkage), seen, held_out)
    return max(choices, key=quality.__getitem__)


@dataclass(frozen=True)
class _Spectrum:
    """
    Leading eigenvectors of the scaled interactions' Gram matrix.

    Attributes
    ----------
    eigenvalues : float64 of shape (rank,), falling
    vectors : float32 of shape (n_items, rank)
    noise
        The largest eigenvalue of noise of the same density (Marchenko & Pastur, 1967).
    item_scale : float32 of shape (n_items,)
        What columns were multiplied by; zero of an item that nobody has.
    dim
        Columns asked for.
    """

    eigenvalues: npt.NDArray[np.float64]
    vectors: FloatMatrix
    noise: float
    item_scale: npt.NDArray[np.float32]
    dim: int

    @classmethod
    def of(
        cls, train: sp.csr_matrix, dim: int, seed: int, item_exponent: float, hidden: IdxVector | None = None
    ) -> Self:
        n_users, n_items = train.shape
        places = np.empty(0, dtype=np.int64) if hidden is None else hidden
        n_hidden = np.bincount(np.searchsorted(train.indptr, places, side="right") - 1, minlength=n_users)
        counts = np.maximum(np.diff(train.indptr) - n_hidden, 1).astype(np.float32)
        n_met = count(train.indices, n_items) - count(train.indices[places], n_items)
        popularity = n_met.astype(np.float32)
        item_scale = (np.maximum(popularity, 1) / max(popularity.mean(), 1e-9)) ** -item_exponent
        scaled = _Scaled(train, places, (counts / counts.mean()) ** -0.25, item_scale)
        eigenvalues, vectors = _leading(scaled, min(dim, n_users, n_items), seed)
        share = 1 / (n_users * n_items)
        mean_square = sum(float((rows.multiply(rows) * share).sum()) for rows in scaled.iterate())
        noise = mean_square * (np.sqrt(n_users) + np.sqrt(n_items)) ** 2
        return cls(eigenvalues, vectors, noise, np.where(popularity > 0, item_scale, 0).astype(np.float32), dim)

    def factors(self, shrinkage: float) -> tuple[FloatMatrix, FloatMatrix]:
        """Return what ``linear_factors`` does."""
        history, items = np.zeros((2, len(self.vectors), self.dim), dtype=np.float32)
        rank, is_known = len(self.eigenvalues), self.item_scale > 0
        scale = self.item_scale[is_known, None]
        history[is_known, :rank] = self.vectors[is_known] * scale
        kept = (self.eigenvalues / (self.eigenvalues + shrinkage * self.noise)) ** 2
        items[is_known, :rank] = self.vectors[is_known] * kept / scale
        return history, items * np.float32(SCALE * (shrinkage / SCALED_AT) ** SCALE_EXPONENT)


@dataclass(frozen=True)
class _Scaled:
    """
    Ones where interactions are that are not ``hidden`` (their places, ascending), rows and columns scaled.

    Some users are made at a time: memory is a few numbers a user and an item beside the interactions.
    """

    train: sp.csr_matrix
    hidden: IdxVector
    user_scale: npt.NDArray[np.float32]
    item_scale: npt.NDArray[np.float32]

    def iterate(self) -> Iterator[sp.csr_matrix]:
        """Yield float32 CSR of ``USERS_AT_ONCE`` users after the other."""
        for start in range(0, self.train.shape[0], USERS_AT_ONCE):
            users = slice(start, start + USERS_AT_ONCE)
            begin, end = self.train.indptr[users][0], self.train.indptr[start : users.stop + 1][-1]
            inside = slice(*np.searchsorted(self.hidden, (begin, end)))
            rows = _ones(self.train[users], self.hidden[inside] - begin)
            rows.data = np.repeat(self.user_scale[users], np.diff(rows.indptr)) * self.item_scale[rows.indices]
            yield rows


def _ones(rows: sp.csr_matrix, hidden: IdxVector) -> sp.csr_matrix:
    """Return float32 CSR of ones where ``rows`` has entries, but for those at the places ``hidden``."""
    n_before = np.searchsorted(hidden, rows.indptr)
    indices = np.delete(rows.indices, hidden) if len(hidden) else rows.indices
    return sp.csr_matrix((np.ones(len(indices), dtype=np.float32), indices, rows.indptr - n_before), rows.shape)


def _quality(
    factors: tuple[FloatMatrix, FloatMatrix], seen: sp.csr_matrix, hidden: sp.csr_matrix, batch_size: int = 256
) -> float:
    """Return the sum over users of the ndcg of what is hidden among all items that are not seen."""
    history, items = factors
    users = seen @ history  # (n_users, dim)
    return sum(
        float(ndcg_of_users(torch.from_numpy(users[batch] @ items.T), seen[batch], hidden[batch], CUTOFF).sum())
        for batch in (slice(start, start + batch_size) for start in range(0, len(users), batch_size))
    )


def _leading(matrix: _Scaled, rank: int, seed: int) -> tuple[npt.NDArray[np.float64], FloatMatrix]:
    """Return the largest eigenvalues of ``matrix.T @ matrix``, falling, and their vectors as columns (Halko, 2011)."""
    n_users, n_items = matrix.train.shape
    width = min(rank + OVERSAMPLING, n_users, n_items)
    basis = np.random.default_rng(seed).standard_normal((n_items, width)).astype(np.float32)
    for _ in range(POWER_ITERATIONS):
        product = np.zeros_like(basis)
        for rows in matrix.iterate():
            product += rows.T @ (rows @ basis)
        basis = orthonormal(product)
    inner = np.zeros((basis.shape[1], basis.shape[1]))
    for rows in matrix.iterate():
        projected = (rows @ basis).astype(np.float64)
        inner += projected.T @ projected
    eigenvalues, rotation = np.linalg.eigh(inner)
    vectors = basis @ rotation[:, ::-1][:, :rank].astype(np.float32)
    return np.maximum(eigenvalues[::-1][:rank], 0), vectors


def orthonormal(columns: FloatMatrix) -> FloatMatrix:
    """
    Return an orthonormal basis of what ``columns`` span, as many columns at most.

    By the eigenvectors of their inner products (Stathopoulos & Wu, 2002), which takes products of matrices and little
    else, where a QR decomposition goes column by column. What depends on other columns but for rounding is left out.

    Examples
    --------
    >>> basis = orthonormal(np.array([[1, 2, 3], [0, 0, 1], [0, 0, 1]], dtype=np.float32))
    >>> basis.shape, np.allclose(basis.T @ basis, np.eye(2), atol=1e-6)
    ((3, 2), True)
    """
    wide = columns.astype(np.float64)
    wide /= np.maximum(np.linalg.norm(wide, axis=0), np.finfo(np.float64).tiny)
    eigenvalues, rotation = np.linalg.eigh(wide.T @ wide)
    is_apart = eigenvalues > RANK_TOLERANCE * eigenvalues[-1]
    basis: FloatMatrix = (wide @ (rotation[:, is_apart] / np.sqrt(eigenvalues[is_apart]))).astype(np.float32)
    return basis

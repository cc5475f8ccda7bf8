"""
The best linear reconstruction of users' histories of a given rank, in closed form.

What an item scores for a user is a sum over the user's history, and that sum is an inner product of a history vector
and an item vector: ridge regression of the history on itself through its leading singular vectors. On items that the
user does not have it ranks as EASE (Steck, 2019) does but for an item-wise factor, because what EASE's zero diagonal
takes away is nothing but the history itself; and it needs no matrix of all pairs of items. It differs from a plain
singular value decomposition in that users weigh ``n ** -0.5`` and items are scaled by ``popularity ** -0.25`` before
it.
"""

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

ITEM_EXPONENT = 0.25
OVERSAMPLING, POWER_ITERATIONS = 32, 4
RANK_TOLERANCE = 1e-12  # of the largest eigenvalue, by which columns are taken apart: float32 tells 1e-14 at best
# Singular values are shrunk by the size that noise of the same density would have; both numbers: docs/BENCHMARKS.md.
SHRINKAGE = 0.8
# What a reconstruction of 0 or 1 is worth in the logits of a softmax over the catalogue: docs/BENCHMARKS.md.
SCALE = 144.0

FloatMatrix = npt.NDArray[np.float32]


def linear_factors(train: sp.csr_matrix, dim: int, seed: int) -> tuple[FloatMatrix, FloatMatrix]:
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
    """
    n_users, n_items = train.shape
    user_item = sp.csr_matrix((np.ones(train.nnz, dtype=np.float32), train.indices, train.indptr), train.shape)
    counts = np.maximum(np.diff(train.indptr), 1).astype(np.float32)
    popularity = np.bincount(train.indices, minlength=n_items).astype(np.float32)
    item_scale = (np.maximum(popularity, 1) / max(popularity.mean(), 1e-9)) ** -ITEM_EXPONENT
    scaled = sp.csr_matrix(
        sp.diags((counts / counts.mean()) ** -0.25) @ user_item @ sp.diags(item_scale), dtype=np.float32
    )
    eigenvalues, vectors = _leading(scaled, min(dim, n_users, n_items), seed)
    noise = SHRINKAGE * float(scaled.multiply(scaled).mean()) * (np.sqrt(n_users) + np.sqrt(n_items)) ** 2
    history, items = np.zeros((2, n_items, dim), dtype=np.float32)
    history[:, : len(eigenvalues)] = vectors * item_scale[:, None]
    items[:, : len(eigenvalues)] = vectors * (eigenvalues / (eigenvalues + noise)) ** 2 / item_scale[:, None]
    items[popularity == 0] = 0
    return history, items * np.float32(SCALE)


def _leading(matrix: sp.csr_matrix, rank: int, seed: int) -> tuple[npt.NDArray[np.float64], FloatMatrix]:
    """Return the largest eigenvalues of ``matrix.T @ matrix``, falling, and their vectors as columns (Halko, 2011)."""
    width = min(rank + OVERSAMPLING, *matrix.shape)
    basis = np.random.default_rng(seed).standard_normal((matrix.shape[1], width)).astype(np.float32)
    transposed = matrix.T.tocsr()
    for _ in range(POWER_ITERATIONS):
        basis = orthonormal(transposed @ (matrix @ basis))
    projected = (matrix @ basis).astype(np.float64)
    eigenvalues, rotation = np.linalg.eigh(projected.T @ projected)
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

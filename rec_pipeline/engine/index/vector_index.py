"""
FAISS over item vectors, by inner product, made to return whole lists of permitted items.

Below 200,000 vectors the index is exact (``Flat``); up to 5 million it is an HNSW graph (Malkov & Yashunin, 2018),
above that inverted lists of product codes, re-ranked with the full vectors (Jégou et al., 2011). The approximate ones
are tuned at build until they find what exact search finds.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import scipy.sparse as sp
from pydantic import BaseModel, Field

from rec_pipeline.engine.artifacts import read_array, read_json, write_array, write_json
from rec_pipeline.engine.compute import LOCAL, Compute
from rec_pipeline.engine.data.batches import BoolVector, IdxMatrix, IdxVector, Ranking, ScoreMatrix, is_member
from rec_pipeline.engine.data.id_map import NO_IDX, IdMap
from rec_pipeline.engine.embeddings.encoder import Vectors
from rec_pipeline.engine.embeddings.item_embeddings import ItemEmbeddings
from rec_pipeline.engine.errors import ConfigurationError
from rec_pipeline.engine.index.exact import search_exactly

AUTO = "auto"
MAX_FLAT_VECTORS = 200_000
MAX_HNSW_VECTORS = 5_000_000
N_TUNING_QUERIES = 256
RECALL_BLOCK = 64
# Scores of a Flat index held at a time, 32 MiB, and queries that are scored at once however many entries there are.
BLOCK_CELLS, LEAST_BLOCK = 1 << 23, 16

# Below this share of selected items a scan of just these beats a walk over a graph or lists that mostly lead elsewhere.
EXHAUSTIVE_BELOW = 0.1


class IndexParams(BaseModel, frozen=True, extra="forbid"):
    """How to build a ``VectorIndex``."""

    factory: str = Field(
        default=AUTO,
        pattern=r"^(auto|Flat|HNSW\d+|IVF\d+,(Flat|SQ8|SQfp16|PQ\d+(x\d+)?)(,RFlat)?)$",
        description="FAISS factory string: Flat is exact, HNSW32 a graph, IVF1024,PQ16,RFlat compressed lists. auto "
        "takes Flat below 200,000 vectors, HNSW32 up to 5 million, IVF with PQ and RFlat beyond.",
    )
    min_recall: float = Field(
        default=0.99,
        gt=0,
        le=1,
        description="Share of the exact best items that an approximate index must find; its search is widened at build "
        "until it does. Higher is slower. Flat finds all.",
    )
    cutoff: int = Field(
        default=100, ge=1, description="List length at which min_recall is measured while tuning, in items."
    )
    reproducible: bool = Field(
        default=True,
        description="Build the HNSW graph on one thread, so that equal vectors give equal files. Off, the build takes "
        "all cores and the graph depends on their timing. No effect on other factories.",
    )


@dataclass(frozen=True)
class VectorIndex:
    """
    Finds the items whose vectors have the largest inner product with a query.

    Attributes
    ----------
    index
        The FAISS index, one entry an item that has a vector.
    item_ids
        The catalogue that results are rows of.
    item_idx
        int64 of shape (n_vectors,): the catalogue row of each entry; ``-1`` for an entry that is never returned.
    factory
        The factory string it was built from.
    space
        Space of its vectors; queries must be of the same.
    """

    index: Any
    item_ids: IdMap
    item_idx: IdxVector
    factory: str
    space: str
    _idx_or_none: IdxVector = field(init=False, repr=False, compare=False)
    _is_identity: bool = field(init=False, repr=False, compare=False)
    _has_gaps: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.item_idx.shape != (self.index.ntotal,):
            raise ValueError(f"{self.index.ntotal} index entries but item rows of shape {self.item_idx.shape}")
        # One entry more, so that label -1, FAISS's padding, looks up NO_IDX.
        object.__setattr__(self, "_idx_or_none", np.append(self.item_idx, NO_IDX))
        object.__setattr__(self, "_is_identity", bool((self.item_idx == np.arange(len(self.item_idx))).all()))
        object.__setattr__(self, "_has_gaps", bool((self.item_idx == NO_IDX).any()))

    @property
    def n_vectors(self) -> int:
        """Number of entries."""
        return int(self.index.ntotal)

    @property
    def embedding_dim(self) -> int:
        """Length of a vector."""
        return int(self.index.d)

    @property
    def scores_exactly(self) -> bool:
        """Whether scores are inner products with the vectors themselves, and not with what compression left of them."""
        return self.factory.endswith("Flat") or self.factory.startswith("HNSW")

    @property
    def n_bytes(self) -> int:
        """Size of the FAISS file, in bytes; costs one pass over the index."""
        faiss = _faiss()

        sizes: list[int] = []
        faiss.write_index(self.index, faiss.PyCallbackIOWriter(lambda block: sizes.append(len(block))))
        return sum(sizes)

    def search(
        self,
        queries: Vectors,
        top_k: int,
        eligible: BoolVector | None = None,
        excluded: sp.csr_matrix | None = None,
    ) -> Ranking:
        """
        Return the ``top_k`` best items of each query.

        Parameters
        ----------
        queries : float32 of shape (n_queries, embedding_dim)
            Other dtypes and layouts are converted. A query of zeros scores every item 0 and gets arbitrary ones.
        top_k : int
            List length, >= 1.
        eligible : bool of shape (n_items,), optional
            Items that may be returned; all by default.
        excluded : CSR of shape (n_queries, n_items), optional
            Items to leave out, per query.

        Returns
        -------
        Ranking
            Rows of ``item_ids``; a list is shorter than ``top_k`` only if fewer items with a vector qualify. The order
            among equal scores is FAISS's, or that of the rows where a Flat index is asked several queries at once.

        Notes
        -----
        Eligibility is decided inside FAISS. For exclusion each query fetches as many more items as it excludes. Several
        queries of a Flat index are a product of matrices, which numpy's BLAS takes in a fraction of the time of the one
        that FAISS brings, and exclusion costs nothing there.
        """
        selected = self._selected(eligible)
        if self.factory == "Flat" and len(queries) > 1 and self.n_vectors:
            return self._all_scored(queries, top_k, selected, excluded)
        is_narrow = selected is not None and selected.sum() < EXHAUSTIVE_BELOW * self.n_vectors
        ranking = self._search(queries, top_k, selected, excluded, is_exhaustive=is_narrow)
        if self.factory != "Flat" and not is_narrow and _has_padding(ranking.item_idx):
            short = np.flatnonzero(ranking.item_idx[:, -1] == NO_IDX)
            rest = None if excluded is None else excluded[short]
            filled = self._search(queries[short], top_k, selected, rest, is_exhaustive=True)
            ranking.item_idx[short], ranking.score[short] = filled.item_idx, filled.score
        return ranking

    def recall_at(
        self,
        embeddings: ItemEmbeddings,
        queries: Vectors,
        cutoff: int = 100,
        *,
        exact: Ranking | None = None,
        compute: Compute = LOCAL,
    ) -> float:
        """
        Compare with exact search over the vectors the index was built from.

        Recall is the number of returned items whose exact score reaches that of the exact ``cutoff``-th item, over the
        number of items asked for, pooled over the queries. Equal scores count as hits, to 1e-5 of the best score,
        because float32 sums depend on their order.

        Parameters
        ----------
        embeddings : ItemEmbeddings
            In the row order of ``item_ids``.
        queries : float32 of shape (n_queries, embedding_dim)
            Like those that will be asked; at least one.
        cutoff : int
            List length; cut to the number of vectors.
        exact : Ranking, optional
            What ``search_exactly`` finds for the queries among the vectors there are, if that is known already.
        compute
            Where exact search runs otherwise.

        Returns
        -------
        float
            In [0, 1]; 1 for an index without vectors, which has nothing to miss.

        Raises
        ------
        ValueError
            If there is no query, or the embeddings are of other items.
        """
        if not len(queries):
            raise ValueError("recall needs at least one query")
        if not np.array_equal(embeddings.item_ids.ids, self.item_ids.ids):
            raise ValueError(
                "the embeddings are not in the index's row order: pass embeddings.aligned_to(index.item_ids)"
            )
        rows = np.flatnonzero(embeddings.has_vector)
        width = min(cutoff, len(rows))
        if not width:
            return 1.0
        if exact is None:
            exact = search_exactly(embeddings.vectors[rows], queries, width, compute=compute)
        n_hits = 0
        for start in range(0, len(queries), RECALL_BLOCK):
            block = np.ascontiguousarray(queries[start : start + RECALL_BLOCK], dtype=np.float32)
            best = exact.score[start : start + RECALL_BLOCK, :width]
            found = self.search(block, width).item_idx  # (block, width)
            score = np.einsum("qd,qkd->qk", block, embeddings.vectors[found])
            bound = best[:, -1:]
            n_hits += int(((score >= bound - 1e-5 * np.abs(best).max(axis=1, keepdims=True)) & (found != NO_IDX)).sum())
        return n_hits / (width * len(queries))

    def aligned_to(self, items: IdMap) -> Self:
        """Return the same index with results as rows of ``items``; entries of unknown items are never returned."""
        rows = np.append(items.to_idx(self.item_ids.ids), NO_IDX)
        return type(self)(
            index=self.index, item_ids=items, item_idx=rows[self.item_idx], factory=self.factory, space=self.space
        )

    def save(self, directory: Path) -> None:
        """Write ``index.faiss``, the ids, ``item_idx.npy`` and ``index.json``."""
        faiss = _faiss()

        # Through a Python file: its own writer reports success for a file cut by up to 4 KB on a full disk.
        with (directory / "index.faiss").open("wb") as file:
            faiss.write_index(self.index, faiss.PyCallbackIOWriter(file.write))
        self.item_ids.save(directory)
        write_array(directory / "item_idx.npy", self.item_idx)
        write_json(directory / "index.json", {"factory": self.factory, "space": self.space})

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read what ``save`` wrote; FAISS trusts its files, so only a verified directory may be given."""
        faiss = _faiss()

        return cls(
            index=faiss.read_index(str(directory / "index.faiss")),
            item_ids=IdMap.load(directory),
            item_idx=read_array(directory / "item_idx.npy"),
            **read_json(directory / "index.json"),
        )

    def _selected(self, eligible: BoolVector | None) -> BoolVector | None:
        """Return the entries that may be returned, or None for all."""
        if eligible is None and not self._has_gaps:
            return None
        selected: BoolVector = self.item_idx != NO_IDX
        if eligible is not None:
            selected &= eligible[self.item_idx]
        return None if selected.all() else selected

    def _search(
        self,
        queries: Vectors,
        top_k: int,
        selected: BoolVector | None,
        excluded: sp.csr_matrix | None,
        *,
        is_exhaustive: bool,
    ) -> Ranking:
        if excluded is None or not excluded.nnz:
            return Ranking(*self._nearest(queries, top_k, selected, is_exhaustive=is_exhaustive))
        item_idx = np.full((len(queries), top_k), NO_IDX, dtype=np.int64)
        best = np.full((len(queries), top_k), -np.inf, dtype=np.float32)
        if len(queries) == 1:
            # What follows does the same, but for so little it costs as much as the search itself.
            width = min(top_k + excluded.nnz, max(1, self.n_vectors))
            candidates, score = self._nearest(queries, width, selected, is_exhaustive=is_exhaustive)
            is_out = np.zeros(len(self.item_ids) + 1, dtype=np.bool_)
            is_out[excluded.indices] = is_out[NO_IDX] = True
            kept = np.flatnonzero(~is_out[candidates[0]])[:top_k]
            item_idx[0, : len(kept)], best[0, : len(kept)] = candidates[0, kept], score[0, kept]
            return Ranking(item_idx, best)
        # Powers of two make few groups, and nobody fetches more than twice what is needed.
        wanted = top_k + np.diff(excluded.indptr)
        widths = np.minimum(2 ** np.ceil(np.log2(wanted)).astype(np.int64), max(1, self.n_vectors))
        for width in np.unique(widths):
            rows = np.flatnonzero(widths == width)
            candidates, score = self._nearest(queries[rows], int(width), selected, is_exhaustive=is_exhaustive)
            keep = (candidates != NO_IDX) & ~is_member(candidates, excluded[rows])
            order = np.argsort(~keep, axis=1, kind="stable")[:, :top_k]
            kept = np.take_along_axis(keep, order, axis=1)
            best_columns = slice(0, order.shape[1])
            item_idx[rows, best_columns] = np.where(kept, np.take_along_axis(candidates, order, axis=1), NO_IDX)
            best[rows, best_columns] = np.where(kept, np.take_along_axis(score, order, axis=1), -np.inf)
        return Ranking(item_idx=item_idx, score=best)

    def _all_scored(
        self, queries: Vectors, top_k: int, selected: BoolVector | None, excluded: sp.csr_matrix | None
    ) -> Ranking:
        """Search a Flat index by scoring every entry, or every selected one where these are few."""
        vectors, rows = self._flat_vectors, self.item_idx
        if selected is not None and 2 * np.count_nonzero(selected) < self.n_vectors:
            vectors, rows, selected = vectors[selected], rows[selected], None
        left_out = None if selected is None else np.flatnonzero(~selected)
        if excluded is not None and not np.array_equal(rows, np.arange(excluded.shape[1])):
            excluded = excluded[:, rows]
        rows = np.append(rows, NO_IDX)  # one more, which padding looks up
        queries = np.negative(queries, dtype=np.float32)
        at_once = min(len(queries), max(LEAST_BLOCK, BLOCK_CELLS // max(1, len(vectors))))
        costs = np.empty((at_once, len(vectors)), dtype=np.float32)
        item_idx = np.empty((len(queries), top_k), dtype=np.int64)
        best = np.empty((len(queries), top_k), dtype=np.float32)
        for start in range(0, len(queries), at_once):
            block = slice(start, start + at_once)
            cost = np.matmul(queries[block], vectors.T, out=costs[: len(queries) - start])
            if left_out is not None:
                cost[:, left_out] = np.inf
            found = Ranking.from_costs(cost, top_k, None if excluded is None else excluded[block])
            item_idx[block], best[block] = rows[found.item_idx], found.score
        return Ranking(item_idx, best)

    def _nearest(
        self, queries: Vectors, width: int, selected: BoolVector | None, *, is_exhaustive: bool
    ) -> tuple[IdxMatrix, ScoreMatrix]:
        faiss = _faiss()

        index = _exact_storage(self.index) if is_exhaustive else self._index
        if selected is None and not is_exhaustive:
            score, labels = index.search(queries, width)
        else:
            bits = np.packbits(
                np.ones(self.n_vectors, dtype=np.bool_) if selected is None else selected, bitorder="little"
            )
            selector = faiss.IDSelectorBitmap(self.n_vectors, faiss.swig_ptr(bits))
            score, labels = index.search(
                queries, width, params=_search_params(index, selector, is_exhaustive=is_exhaustive)
            )
        item_idx = labels if self._is_identity else self._idx_or_none[labels]
        if _has_padding(item_idx):
            score[item_idx == NO_IDX] = -np.inf
        return item_idx, score

    @property
    def _flat_vectors(self) -> Vectors:
        """The vectors of a Flat index, where they lie."""
        shape = self.n_vectors, self.embedding_dim
        vectors: Vectors = _faiss().rev_swig_ptr(self._index.get_xb(), math.prod(shape)).reshape(shape)
        return vectors

    @cached_property
    def _index(self) -> Any:
        """The index as its own class: FAISS hands out base classes after loading."""
        faiss = _faiss()

        return faiss.downcast_index(self.index)


def build_index(embeddings: ItemEmbeddings, params: IndexParams, queries: Vectors | None = None) -> VectorIndex:
    """
    Index the items that have a vector.

    Parameters
    ----------
    embeddings : ItemEmbeddings
        Vectors to find; inner product is the score.
    params : IndexParams
        Factory and recall wanted.
    queries : float32 of shape (n_queries, embedding_dim), optional
        What an approximate index is tuned on, e.g. user vectors; a sample of the item vectors by default.

    Raises
    ------
    ConfigurationError
        If FAISS cannot build the factory for these vectors.

    Notes
    -----
    If no width of search reaches ``min_recall``, the widest is kept and ``recall_at`` tells.
    """
    faiss = _faiss()

    rows = np.flatnonzero(embeddings.has_vector)
    vectors = np.ascontiguousarray(embeddings.vectors[rows])
    factory = factory_for(*vectors.shape) if params.factory == AUTO else params.factory
    try:
        index = faiss.index_factory(embeddings.embedding_dim, factory, faiss.METRIC_INNER_PRODUCT)
        with _threads(1 if params.reproducible and factory.startswith("HNSW") else faiss.omp_get_max_threads()):
            index.train(vectors)
            index.add(vectors)
    except RuntimeError as error:
        raise ConfigurationError(
            f"FAISS cannot build {factory!r} over {len(vectors)} vectors of length {embeddings.embedding_dim}; "
            f"use {AUTO!r} or a factory that suits them ({error})"
        ) from error
    built = VectorIndex(
        index=index, item_ids=embeddings.item_ids, item_idx=rows, factory=factory, space=embeddings.space
    )
    if factory != "Flat" and len(rows):
        if queries is None or not len(queries):
            queries = vectors
        sample = np.random.default_rng(0).permutation(len(queries))[:N_TUNING_QUERIES]
        _widen_until(built, embeddings, queries[sample], params)
    return built


def factory_for(n_vectors: int, embedding_dim: int) -> str:
    """
    Return the FAISS factory string for a catalogue of this size.

    Examples
    --------
    >>> factory_for(1_500, 384), factory_for(1_000_000, 384), factory_for(9_000_000, 384)
    ('Flat', 'HNSW32', 'IVF12000,PQ96,RFlat')
    """
    if n_vectors < MAX_FLAT_VECTORS:
        return "Flat"
    if n_vectors <= MAX_HNSW_VECTORS:
        return "HNSW32"
    n_lists = 4 * math.isqrt(n_vectors)
    n_codes = max(n for n in range(1, max(1, embedding_dim // 4) + 1) if embedding_dim % n == 0)
    return f"IVF{n_lists},PQ{n_codes},RFlat"


def _widen_until(built: VectorIndex, embeddings: ItemEmbeddings, queries: Vectors, params: IndexParams) -> None:
    """Double the breadth of search until ``min_recall`` holds or everything is searched."""
    faiss = _faiss()

    space = faiss.ParameterSpace()
    is_graph = built.factory.startswith("HNSW")
    limit = built.n_vectors if is_graph else faiss.extract_index_ivf(built.index).nlist
    width = 64 if is_graph else 8
    exact = search_exactly(embeddings.vectors[embeddings.has_vector], queries, min(params.cutoff, built.n_vectors))
    while True:
        width = min(width, limit)
        space.set_index_parameter(built.index, "efSearch" if is_graph else "nprobe", width)
        if built.factory.endswith("RFlat"):
            space.set_index_parameter(built.index, "k_factor_rf", max(4, width // 2))
        if width == limit or built.recall_at(embeddings, queries, params.cutoff, exact=exact) >= params.min_recall:
            return
        width *= 2


def _faiss() -> Any:
    """Import FAISS on first use; its own type hints miss half of what it has."""
    import faiss

    return faiss


def _exact_storage(index: Any) -> Any:
    """Return the part of an index that scans every entry with the best vectors it has."""
    faiss = _faiss()

    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexHNSW):
        return faiss.downcast_index(index.storage)
    if isinstance(index, faiss.IndexRefine):
        return faiss.downcast_index(index.refine_index)
    return index


def _search_params(index: Any, selector: Any, *, is_exhaustive: bool) -> Any:
    """Return parameters with a selector; whatever they leave out would fall back to FAISS's defaults."""
    faiss = _faiss()

    if isinstance(index, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(sel=selector, efSearch=index.hnsw.efSearch)
    if isinstance(index, faiss.IndexRefine):
        base = _search_params(faiss.downcast_index(index.base_index), selector, is_exhaustive=is_exhaustive)
        return faiss.IndexRefineSearchParameters(k_factor=index.k_factor, base_index_params=base)
    if isinstance(index, faiss.IndexIVF):
        return faiss.SearchParametersIVF(sel=selector, nprobe=index.nlist if is_exhaustive else index.nprobe)
    return faiss.SearchParameters(sel=selector)


def _has_padding(item_idx: IdxMatrix) -> bool:
    """Tell whether a query found fewer items than it asked for."""
    return NO_IDX in item_idx[:, -1].tolist()  # a list: numpy takes eight times as long for one query


@contextmanager
def _threads(n_threads: int) -> Iterator[None]:
    faiss = _faiss()

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(n_threads)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)

"""Item vectors of any origin on one pattern, and the cache that spares encoding a text twice."""

import hashlib
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd

from rec_pipeline.engine import columns as c
from rec_pipeline.engine import mirrors
from rec_pipeline.engine.artifacts import read_array, read_json, sha256_of, write_array, write_atomically, write_json
from rec_pipeline.engine.compute import LOCAL, Compute
from rec_pipeline.engine.data.batches import BoolVector
from rec_pipeline.engine.data.id_map import NO_IDX, IdMap
from rec_pipeline.engine.embeddings.encoder import OnProgress, TextEncoder, Vectors
from rec_pipeline.engine.embeddings.item_text import item_texts

# Texts encoded between two writes of the cache: what a killed run loses at most.
CHUNK_SIZE = 512

COLLABORATIVE_SPACE = "ncf-gmf"
SEQUENCE_SPACE = "sequence"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ItemEmbeddings:
    """
    One vector an item; the inner product with a query of the same space is the item's score.

    Attributes
    ----------
    item_ids
        The items, in row order.
    vectors
        float32 C-contiguous of shape (n_items, embedding_dim), finite; zero where ``has_vector`` is false. Content
        vectors have length 1, collaborative ones any length.
    has_vector
        Bool of shape (n_items,); items without one are in no index.
    space
        What the vectors mean, e.g. the encoder's ``model_id``. Vectors of different spaces cannot be compared.

    Raises
    ------
    ValueError
        If shapes or dtypes differ from these, or a value is not finite.
    """

    item_ids: IdMap
    vectors: Vectors
    has_vector: BoolVector
    space: str

    def __post_init__(self) -> None:
        n_items = len(self.item_ids)
        if self.vectors.ndim != 2 or len(self.vectors) != n_items or self.has_vector.shape != (n_items,):
            raise ValueError(
                f"{n_items} items need one vector and one flag each, found vectors of shape {self.vectors.shape} "
                f"and flags of shape {self.has_vector.shape}"
            )
        if self.vectors.dtype != np.float32 or self.has_vector.dtype != np.bool_:
            raise ValueError(
                f"expected float32 vectors and bool flags, found {self.vectors.dtype}, {self.has_vector.dtype}"
            )
        finite = np.isfinite(self.vectors).all(axis=1)
        if not finite.all():
            raise ValueError(f"the vector of item {self.item_ids.ids[np.argmin(finite)]!r} is not finite")
        object.__setattr__(self, "vectors", np.ascontiguousarray(self.vectors))

    @property
    def embedding_dim(self) -> int:
        """Length of a vector."""
        return int(self.vectors.shape[1])

    def aligned_to(self, items: IdMap) -> Self:
        """Return the embeddings in the row order of ``items``; an item not found here has no vector."""
        rows = self.item_ids.to_idx(items.ids)
        has_vector = np.append(self.has_vector, np.False_)[rows]
        vectors = np.zeros((len(items), self.embedding_dim), dtype=np.float32)
        vectors[has_vector] = self.vectors[rows[has_vector]]
        return type(self)(item_ids=items, vectors=vectors, has_vector=has_vector, space=self.space)

    def save(self, directory: Path) -> None:
        """Write the ids, ``vectors.npy``, ``has_vector.npy`` and ``space.json``."""
        self.item_ids.save(directory)
        write_array(directory / "vectors.npy", self.vectors)
        write_array(directory / "has_vector.npy", self.has_vector)
        write_json(directory / "space.json", {"space": self.space})

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read what ``save`` wrote."""
        return cls(
            item_ids=IdMap.load(directory),
            vectors=read_array(directory / "vectors.npy"),
            has_vector=read_array(directory / "has_vector.npy"),
            **read_json(directory / "space.json"),
        )


def collaborative_embeddings(items: IdMap, vectors: Vectors) -> ItemEmbeddings:
    """
    Wrap the item vectors of a collaborative model.

    Parameters
    ----------
    items : IdMap
        The catalogue, in the rows of the model.
    vectors : float32 of shape (n_items, embedding_dim)
        In inner-product form, of any length.
    """
    has_vector = np.ones(len(items), dtype=np.bool_)
    return ItemEmbeddings(item_ids=items, vectors=vectors, has_vector=has_vector, space=COLLABORATIVE_SPACE)


def sequence_embeddings(items: IdMap, vectors: Vectors, is_fitted: BoolVector) -> ItemEmbeddings:
    """
    Wrap the output item vectors of a sequence model.

    Parameters
    ----------
    items : IdMap
        The catalogue, in the rows of the model.
    vectors : float32 of shape (n_items, embedding_dim)
        In inner-product form, of any length.
    is_fitted : bool of shape (n_items,)
        Items that were in the training data; the others get no vector, as theirs means nothing.
    """
    vectors = np.where(is_fitted[:, None], vectors, np.float32(0))
    return ItemEmbeddings(item_ids=items, vectors=vectors, has_vector=is_fitted, space=SEQUENCE_SPACE)


@dataclass(frozen=True)
class EmbeddingCounts:
    """
    Where the vectors of a catalogue came from; the three add up to its size.

    Attributes
    ----------
    n_encoded
        Distinct texts that were encoded now.
    n_reused
        Items whose vector was in the cache, or whose text equals that of another item.
    n_without_text
        Items that say nothing and have no vector.
    """

    n_encoded: int
    n_reused: int
    n_without_text: int


@dataclass(frozen=True)
class EmbeddingCache:
    """
    Vectors by sha256 of model and text, in shards that are only ever added.

    A shard is one ``.npy`` of (key, vector) records in the folder of its model, named by the sha256 of its content and
    written atomically, so a killed run keeps what it had encoded and several runs may write at once. A shard that is
    not what its name says is dropped with a warning: its texts are encoded again.

    Attributes
    ----------
    directory
        Where the shards are; made on the first write.
    """

    directory: Path

    def get(self, model_id: str, keys: Sequence[bytes]) -> tuple[BoolVector, Vectors]:
        """
        Look vectors up, one shard in memory at a time.

        Returns
        -------
        bool of shape (n_keys,)
            Which keys were found.
        float32 of shape (n_keys, embedding_dim)
            Their vectors, zero where not found; of shape (n_keys, 0) if nothing is stored for the model.
        """
        row_of = {key: row for row, key in enumerate(keys)}
        found = np.zeros(len(keys), dtype=np.bool_)
        vectors = np.zeros((len(keys), 0), dtype=np.float32)
        folder = self._folder(model_id)
        for name in mirrors.names(folder):
            mirrors.fetch(folder / name)
        for path in sorted(folder.glob("*.npy")):
            if sha256_of(path) != path.stem:
                logger.warning("dropping damaged cache shard %s: its texts will be encoded again", path)
                path.unlink()
                continue
            shard = read_array(path)
            if not vectors.shape[1]:
                vectors = np.zeros((len(keys), shard["vector"].shape[1]), dtype=np.float32)
            rows = np.array([row_of.get(key, NO_IDX) for key in shard["key"].tolist()], dtype=np.int64)
            vectors[rows[rows >= 0]] = shard["vector"][rows >= 0]
            found[rows[rows >= 0]] = True
        return found, vectors

    def put(self, model_id: str, keys: Sequence[bytes], vectors: Vectors) -> None:
        """Add one shard; it is on disk, whole, when this returns."""
        shard = np.empty(len(keys), dtype=[("key", "S64"), ("vector", np.float32, (vectors.shape[1],))])
        shard["key"], shard["vector"] = keys, vectors
        buffer = io.BytesIO()
        np.save(buffer, shard, allow_pickle=False)
        folder = self._folder(model_id)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{hashlib.sha256(buffer.getvalue()).hexdigest()}.npy"
        write_atomically(path, buffer.getvalue())
        mirrors.send(path)

    def _folder(self, model_id: str) -> Path:
        return self.directory / hashlib.sha256(model_id.encode()).hexdigest()[:16]


def embed_items(
    items: pd.DataFrame,
    encoder: TextEncoder,
    cache: EmbeddingCache,
    on_progress: OnProgress | None = None,
    compute: Compute = LOCAL,
) -> tuple[ItemEmbeddings, EmbeddingCounts]:
    """
    Embed the text of every item, encoding only texts that the cache does not hold.

    Parameters
    ----------
    items : pd.DataFrame
        One row an item, ``item_id`` unique; text as in ``item_texts``.
    encoder : TextEncoder
        Not asked to load its model when every text is in the cache.
    cache : EmbeddingCache
        Read first, written after every few hundred texts.
    on_progress : callable, optional
        Called with the number of texts encoded and the number of those to encode.
    compute
        Where texts are encoded, ``CHUNK_SIZE`` at a time; changes no vector.

    Returns
    -------
    ItemEmbeddings
        In the order of ``items``, unit vectors; items without text have none.
    EmbeddingCounts
        How many texts were encoded and how many spared.
    """
    texts = pd.Series(item_texts(items), dtype=object).to_numpy()
    has_text = texts != ""
    # factorize keeps the first of equal texts: position of every item's text among the distinct ones.
    position, distinct = pd.factorize(texts[has_text])
    keys = [_key(encoder.model_id, text) for text in distinct]
    found, vectors = cache.get(encoder.model_id, keys)
    to_encode = np.flatnonzero(~found)
    chunks = [to_encode[start : start + CHUNK_SIZE] for start in range(0, len(to_encode), CHUNK_SIZE)]
    texts_of = ([distinct[row] for row in rows] for rows in chunks)
    n_done = 0
    for rows, encoded in zip(chunks, compute.map(_encode, texts_of, encoder, wants_gpu=True), strict=True):
        if not vectors.shape[1]:
            vectors = np.zeros((len(keys), encoded.shape[1]), dtype=np.float32)
        vectors[rows] = encoded
        n_done += len(rows)
        if on_progress is not None:
            on_progress(n_done, len(to_encode))
        cache.put(encoder.model_id, [keys[row] for row in rows], vectors[rows])
    if not vectors.shape[1]:
        vectors = np.zeros((len(keys), encoder.embedding_dim), dtype=np.float32)

    item_vectors = np.zeros((len(items), vectors.shape[1]), dtype=np.float32)
    item_vectors[has_text] = vectors[position]
    embeddings = ItemEmbeddings(
        item_ids=IdMap(items[c.ITEM_ID].to_numpy(dtype=object)),
        vectors=item_vectors,
        has_vector=has_text,
        space=encoder.model_id,
    )
    n_with_text = int(has_text.sum())
    return embeddings, EmbeddingCounts(
        n_encoded=len(to_encode), n_reused=n_with_text - len(to_encode), n_without_text=len(items) - n_with_text
    )


def _encode(encoder: TextEncoder, texts: Sequence[str]) -> Vectors:
    return encoder.encode(texts)


def _key(model_id: str, text: str) -> bytes:
    return hashlib.sha256(f"{model_id}\0{text}".encode()).hexdigest().encode()

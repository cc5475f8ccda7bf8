"""Everything that serving needs, bound together: fitted models, vectors, indexes, ids and settings of one run."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from rec_pipeline.engine import columns as c
from rec_pipeline.engine.artifacts import map_array, read_json, read_table, write_array, write_json, write_table
from rec_pipeline.engine.data.batches import IdxVector, UserBatch, iterate_users
from rec_pipeline.engine.data.id_map import IdMap
from rec_pipeline.engine.data.sequences import UserSequences
from rec_pipeline.engine.models.popularity import PopularityModel
from rec_pipeline.engine.models.trending import TrendingModel
from rec_pipeline.engine.recommenders.collaborative import CollaborativeRanker
from rec_pipeline.engine.recommenders.content import ContentRanker, unit_rows
from rec_pipeline.engine.recommenders.context import ContextLifts
from rec_pipeline.engine.recommenders.filters import ItemFacts
from rec_pipeline.engine.recommenders.global_ranker import GlobalRanker
from rec_pipeline.engine.recommenders.hybrid import HybridRanker
from rec_pipeline.engine.recommenders.params import (
    COLLABORATIVE,
    CONTENT,
    POPULARITY,
    SEQUENCE,
    TRENDING,
    WELL_KNOWN_USERS,
    HybridParams,
)
from rec_pipeline.engine.recommenders.sequence import SequenceRanker

if TYPE_CHECKING:
    from rec_pipeline.engine.embeddings.item_embeddings import ItemEmbeddings
    from rec_pipeline.engine.index.vector_index import VectorIndex
    from rec_pipeline.engine.models.ncf import NCFModel
    from rec_pipeline.engine.models.sequence import SequenceModel


_OF_MATRIX: Final = ("data", "indices", "indptr")


@dataclass(frozen=True)
class ServingBundle:
    """
    The parts of one run that make recommendations together; all are fitted on the same interactions.

    Attributes
    ----------
    users, items
        Rows of everything below.
    history
        All interactions, float32 CSR of shape (n_users, n_items).
    sequences
        The same interactions in order of time, by user.
    titles
        What people call each item, str objects of shape (n_items,); its id where it has no title.
    facts
        What filters know of the items: availability, dates, categories.
    lifts
        How context changes what is taken.
    ncf, sequence, popularity, trending
        The fitted models.
    content_embeddings, content_index
        Text vectors in the rows of ``items``, and the index over them.
    collaborative_index
        Index over ``ncf.item_vectors()``.
    sequence_index
        Index over ``sequence.item_vectors()``, without the items that were not in its training data.
    params
        How the hybrid merges its sources.
    metadata
        Facts about its making, JSON-serialisable: run id, data digest, code version, gate results.

    Raises
    ------
    ValueError
        If the parts are not of one catalogue.
    """

    users: IdMap
    items: IdMap
    history: sp.csr_matrix
    sequences: UserSequences
    titles: npt.NDArray[np.object_]
    facts: ItemFacts
    lifts: ContextLifts
    ncf: "NCFModel"
    sequence: "SequenceModel"
    popularity: PopularityModel
    trending: TrendingModel
    content_embeddings: "ItemEmbeddings"
    content_index: "VectorIndex"
    collaborative_index: "VectorIndex"
    sequence_index: "VectorIndex"
    params: HybridParams
    metadata: Mapping[str, Any]

    def __post_init__(self) -> None:
        n_items = len(self.items)
        found = {
            "history": self.history.shape[1],
            "titles": len(self.titles),
            "facts": len(self.facts.available),
            "lifts": self.lifts.in_category.shape[0],
            "popularity": len(self.popularity.n_interactions),
            "trending": len(self.trending.weight),
            "ncf": self.ncf.n_items,
            "sequence": self.sequence.n_items,
        }
        wrong = {name: size for name, size in found.items() if size != n_items}
        if wrong or not self.history.shape[0] == len(self.sequences) == len(self.users):
            raise ValueError(
                f"bundle of {len(self.users)} users and {n_items} items has a history of shape {self.history.shape}, "
                f"sequences of {len(self.sequences)} users and parts of other sizes: {wrong}"
            )
        for name in ("content_embeddings", "content_index", "collaborative_index", "sequence_index"):
            if not np.array_equal(getattr(self, name).item_ids.ids, self.items.ids):
                raise ValueError(f"{name} is not in the bundle's row order: pass {name}.aligned_to(items)")

    def batches(self, user_idx: IdxVector, batch_size: int) -> Iterator[UserBatch]:
        """Yield users by row in order, ``batch_size`` at a time, with all that is known of each; ``-1`` is nobody."""
        return iterate_users(self.history, user_idx, batch_size, sequences=self.sequences)

    def recommender(self) -> HybridRanker:
        """
        Return the hybrid recommender over the parts; it never returns an item that is not available.

        What may be shown at a time (``facts.shown_at``) is for those to say who ask.
        """
        return HybridRanker(
            sources={
                COLLABORATIVE: CollaborativeRanker(self.ncf, self.collaborative_index, name=COLLABORATIVE),
                CONTENT: ContentRanker(self.content_embeddings, self.content_index, name=CONTENT),
                SEQUENCE: SequenceRanker(self.sequence, self.sequence_index, name=SEQUENCE),
                TRENDING: GlobalRanker(TRENDING, self.trending.weight),
            },
            fallback=GlobalRanker(POPULARITY, self.trending.newcomer_weight),
            params=self.params,
            eligible=self.facts.available,
            lifts=self.lifts,
            vectors=self.content_embeddings.vectors,
            in_category=self.facts.in_category,
            is_new=self.popularity.n_interactions < WELL_KNOWN_USERS,
        )

    @cached_property
    def spaces(self) -> Mapping[str, npt.NDArray[np.float32]]:
        """Unit item vectors by source, float32 of shape (n_items, dim), to tell which items are alike for it."""
        known = self.sequence.is_fitted_item[:, None]
        return {
            # Without the bias, which is last: popular is not alike.
            COLLABORATIVE: unit_rows(self.ncf.item_vectors()[:, :-1]),
            CONTENT: self.content_embeddings.vectors,
            SEQUENCE: unit_rows(self.sequence.item_vectors()[:, :-1] * known),
        }

    def save(self, directory: Path) -> None:
        """Write each part in a folder of its own, ``items.parquet`` and ``bundle.json``."""
        for name in ("users", *_parts()):
            (directory / name).mkdir()
            getattr(self, name).save(directory / name)
        catalogue = pd.DataFrame(
            {
                c.ITEM_ID: pd.Series(self.items.ids, dtype="str"),
                c.TITLE: pd.Series(self.titles, dtype="str"),
            }
        )
        write_table(directory / "items.parquet", catalogue)
        (directory / "history").mkdir()
        for name in _OF_MATRIX:
            write_array(directory / "history" / f"{name}.npy", getattr(self.history, name))
        write_json(
            directory / "bundle.json", {"params": self.params.model_dump(mode="json"), "metadata": dict(self.metadata)}
        )

    @classmethod
    def load(cls, directory: Path) -> Self:
        """
        Read what ``save`` wrote; FAISS trusts its files, so only a verified directory may be given.

        History and sequences stay files, of which the system reads what is used.
        """
        catalogue = read_table(directory / "items.parquet")
        settings, users = read_json(directory / "bundle.json"), IdMap.load(directory / "users")
        return cls(
            users=users,
            items=IdMap(catalogue[c.ITEM_ID].to_numpy(dtype=object)),
            history=sp.csr_matrix(
                tuple(map_array(directory / "history" / f"{name}.npy") for name in _OF_MATRIX),
                (len(users), len(catalogue)),
            ),
            titles=catalogue[c.TITLE].to_numpy(dtype=object),
            params=HybridParams(**settings["params"]),
            metadata=settings["metadata"],
            **{name: kind.load(directory / name) for name, kind in _parts().items()},
        )

    @staticmethod
    def load_titles(directory: Path) -> dict[str, str]:
        """Read the title of each item alone, its id where it has none."""
        catalogue = read_table(directory / "items.parquet")
        return dict(zip(catalogue[c.ITEM_ID], catalogue[c.TITLE], strict=True))


def _parts() -> dict[str, Any]:
    """Return the class of each part that stores itself; torch and FAISS are imported here and not with this module."""
    from rec_pipeline.engine.embeddings.item_embeddings import ItemEmbeddings
    from rec_pipeline.engine.index.vector_index import VectorIndex
    from rec_pipeline.engine.models.ncf import NCFModel
    from rec_pipeline.engine.models.sequence import SequenceModel

    return {
        "sequences": UserSequences,
        "facts": ItemFacts,
        "lifts": ContextLifts,
        "ncf": NCFModel,
        "sequence": SequenceModel,
        "popularity": PopularityModel,
        "trending": TrendingModel,
        "content_embeddings": ItemEmbeddings,
        "content_index": VectorIndex,
        "collaborative_index": VectorIndex,
        "sequence_index": VectorIndex,
    }

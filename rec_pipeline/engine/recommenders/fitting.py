"""Bundles of fitted parts: those evaluated, on what precedes the test part; those served, on all interactions."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from rec_pipeline.engine import columns as c
from rec_pipeline.engine.compute import LOCAL, Compute
from rec_pipeline.engine.data.histories import histories_of
from rec_pipeline.engine.data.id_map import IdMap
from rec_pipeline.engine.data.pairs import is_first_of_pair
from rec_pipeline.engine.data.sequences import in_order
from rec_pipeline.engine.data.space import Space
from rec_pipeline.engine.data.split import InteractionSplit, encode_interactions
from rec_pipeline.engine.data.table import Table
from rec_pipeline.engine.data.tally import Tally
from rec_pipeline.engine.embeddings.item_embeddings import ItemEmbeddings, collaborative_embeddings, sequence_embeddings
from rec_pipeline.engine.index.vector_index import IndexParams, VectorIndex, build_index
from rec_pipeline.engine.models.ncf_params import TrainingOptions
from rec_pipeline.engine.models.popularity import PopularityModel
from rec_pipeline.engine.models.trending import TrendingModel
from rec_pipeline.engine.recommenders.bundle import ServingBundle
from rec_pipeline.engine.recommenders.context import ContextLifts
from rec_pipeline.engine.recommenders.filters import ItemFacts
from rec_pipeline.engine.recommenders.params import HybridParams

if TYPE_CHECKING:
    from rec_pipeline.engine.models.ncf import NCFModel
    from rec_pipeline.engine.models.sequence import SequenceModel
    from rec_pipeline.engine.models.training import EpochMetrics


def fit_bundle(
    evaluated: ServingBundle,
    interactions: Table,
    items: pd.DataFrame,
    content_embeddings: ItemEmbeddings,
    *,
    metadata: Mapping[str, Any],
    training: TrainingOptions | None = None,
    index_params: IndexParams | None = None,
    compute: Compute = LOCAL,
    on_epoch: "Callable[[EpochMetrics], None] | None" = None,
    scratch: Path | None = None,
) -> ServingBundle:
    """
    Fit what is served, on all interactions.

    Parameters
    ----------
    evaluated
        What passed the gate: its settings, the numbers of epochs that early stopping found among them, are used again,
        and its sequence model is trained on.
    interactions, items
        Valid tables; every user of the interactions and every item of the catalogue gets a row of the id maps.
    content_embeddings : ItemEmbeddings
        Text vectors of the items, in any order.
    training, index_params
        As evaluated.
    metadata
        Facts about its making, JSON-serialisable.
    compute
        Who trains.
    on_epoch
        Called after each epoch of NCF.
    scratch
        Folder for what of many interactions does not fit in memory, as for ``split_interactions``.
    """
    from rec_pipeline.engine.models.ncf_training import fit_ncf
    from rec_pipeline.engine.models.sequence_training import continue_sequence

    users, catalogue = IdMap.from_ids(Tally.of(interactions, c.USER_ID).ids), IdMap.from_ids(items[c.ITEM_ID])
    space = Space.for_rows(len(interactions), scratch)
    encoded = in_order(encode_interactions(interactions, users, catalogue, space)).reset_index(drop=True)
    (histories,) = histories_of(encoded, len(users), len(catalogue), space=space)
    table = items.set_index(c.ITEM_ID).loc[list(catalogue.ids)]
    facts = ItemFacts.of(table)
    lifts = ContextLifts.fit(encoded, encoded[c.ITEM_IDX].to_numpy(), facts.in_category)
    half_lives = (evaluated.trending.half_life_days, evaluated.trending.newcomer_half_life_days)
    last = space.chosen(encoded, is_first_of_pair(encoded, space, from_end=True))
    trending = TrendingModel.fit(last, len(catalogue), *half_lives)
    del encoded, last  # 20 bytes an interaction, which would lie there while models are trained
    content = content_embeddings.aligned_to(catalogue)
    ncf = fit_ncf(histories.user_item, evaluated.ncf.params, training, on_epoch=on_epoch, compute=compute).model
    known_sequence = evaluated.sequence.for_catalogue(evaluated.items.to_idx(catalogue.ids))
    sequence = continue_sequence(known_sequence, histories.sequences, training, compute=compute)
    sequence_vectors = sequence_embeddings(catalogue, sequence.item_vectors(), sequence.is_fitted_item)
    index_params = index_params or IndexParams()
    return ServingBundle(
        users=users,
        items=catalogue,
        history=histories.user_item,
        sequences=histories.sequences,
        titles=item_titles(table),
        facts=facts,
        lifts=lifts,
        ncf=ncf,
        sequence=sequence,
        popularity=PopularityModel.fit(histories.user_item),
        trending=trending,
        content_embeddings=content,
        content_index=build_index(content, index_params),
        collaborative_index=build_index(collaborative_embeddings(catalogue, ncf.item_vectors()), index_params),
        sequence_index=build_index(sequence_vectors, index_params),
        params=evaluated.params,
        metadata=metadata,
    )


def evaluated_bundle(
    split: InteractionSplit,
    items: pd.DataFrame,
    *,
    ncf: "NCFModel",
    sequence: "SequenceModel",
    popularity: PopularityModel,
    trending: TrendingModel,
    content_embeddings: ItemEmbeddings,
    content_index: VectorIndex,
    collaborative_index: VectorIndex,
    sequence_index: VectorIndex,
    params: HybridParams,
    metadata: Mapping[str, Any],
) -> ServingBundle:
    """
    Bind parts fitted on ``split.fitting`` into the bundle whose recommender is evaluated.

    Every item may be recommended and is called by its id: an evaluation asks what people took, not what is in stock.

    Parameters
    ----------
    split
        What the parts were fitted on; its id maps and its history are the bundle's.
    items : pd.DataFrame
        Catalogue of at least the items of the split; its categories are looked at.
    ncf, sequence, popularity, trending, collaborative_index, sequence_index
        Fitted on ``split.fitting``, in the rows of ``split.items``.
    content_embeddings, content_index
        Of at least the items of the split, in any order.
    params
        How the hybrid merges its sources.
    metadata
        Facts about its making, JSON-serialisable.
    """
    facts = facts_of(split, items)
    known = split.fitting
    return ServingBundle(
        users=split.users,
        items=split.items,
        history=split.by_user.fitting.user_item,
        sequences=split.by_user.fitting.sequences,
        titles=split.items.ids,
        facts=facts,
        lifts=ContextLifts.fit(known, known[c.ITEM_IDX].to_numpy(), facts.in_category),
        ncf=ncf,
        sequence=sequence,
        popularity=popularity,
        trending=trending,
        content_embeddings=content_embeddings.aligned_to(split.items),
        content_index=content_index.aligned_to(split.items),
        collaborative_index=collaborative_index,
        sequence_index=sequence_index,
        params=params,
        metadata=metadata,
    )


def item_titles(items: pd.DataFrame) -> npt.NDArray[np.object_]:
    """Return the title of each item, its id where it has none; ``items`` is indexed by id."""
    ids = items.index.to_series().astype(object)
    if c.TITLE not in items:
        return ids.to_numpy(dtype=object)
    titles = items[c.TITLE].astype(object).where(items[c.TITLE].fillna("").str.strip() != "", ids)
    return titles.to_numpy(dtype=object)


def facts_of(split: InteractionSplit, items: pd.DataFrame) -> ItemFacts:
    """Return the categories of the split's items, in its rows, out of a catalogue of at least these; all are shown."""
    table = items.set_index(c.ITEM_ID).loc[list(split.items.ids)]
    return ItemFacts.of(table.filter(items=[c.CATEGORIES]))

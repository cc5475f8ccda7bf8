"""Checks of the embeddings."""

import dagster as dg
import numpy as np
import numpy.typing as npt

from rec_pipeline.checks.verdict import WARN, verdict
from rec_pipeline.engine import columns as c
from rec_pipeline.engine.data.space import count
from rec_pipeline.engine.data.split import InteractionSplit
from rec_pipeline.engine.embeddings.item_embeddings import ItemEmbeddings

MAX_LENGTH_ERROR = 1e-3  # float32 sums over a few hundred entries are a hundred times more exact than this
MIN_SHARE_WITH_TEXT = 0.5  # below it, content recommendations reach less than half of the catalogue


@dg.asset_check(asset="content_embeddings", blocking=True)
def content_vectors_have_unit_length(content_embeddings: ItemEmbeddings) -> dg.AssetCheckResult:
    """So that an inner product is a cosine."""
    length = np.linalg.norm(content_embeddings.vectors[content_embeddings.has_vector], axis=1)
    error = np.abs(length - 1).max(initial=0.0)
    return verdict(error <= MAX_LENGTH_ERROR, largest_error=error, bound=MAX_LENGTH_ERROR)


@dg.asset_check(asset="content_embeddings")
def most_items_have_text(content_embeddings: ItemEmbeddings) -> dg.AssetCheckResult:
    """Items without text cannot be recommended by content."""
    share = content_embeddings.has_vector.mean() if len(content_embeddings.has_vector) else 0.0
    return verdict(share >= MIN_SHARE_WITH_TEXT, severity=WARN, share_with_text=share, bound=MIN_SHARE_WITH_TEXT)


@dg.asset_check(asset="collaborative_embeddings", blocking=True, additional_ins={"interaction_split": dg.AssetIn()})
def every_item_of_the_split_has_a_collaborative_vector(
    collaborative_embeddings: ItemEmbeddings, interaction_split: InteractionSplit
) -> dg.AssetCheckResult:
    """A model of another split would leave items that can never be retrieved, or name items that are gone."""
    return _same_items(interaction_split.items.ids, collaborative_embeddings.item_ids.ids)


@dg.asset_check(asset="collaborative_embeddings")
def items_have_different_vectors(collaborative_embeddings: ItemEmbeddings) -> dg.AssetCheckResult:
    """Vectors that collapsed to one point tell no items apart."""
    spread = collaborative_embeddings.vectors.std(axis=0).max(initial=0.0)
    return verdict(spread > 0, largest_standard_deviation=spread)


@dg.asset_check(asset="sequence_embeddings", blocking=True, additional_ins={"interaction_split": dg.AssetIn()})
def every_item_that_was_learnt_has_a_sequence_vector(
    sequence_embeddings: ItemEmbeddings, interaction_split: InteractionSplit
) -> dg.AssetCheckResult:
    """An item of the fitted interactions without a vector can never come next; a model of another split lacks some."""
    n_learnt = count(interaction_split.fitting[c.ITEM_IDX].to_numpy(), len(interaction_split.items))
    learnt = interaction_split.items.to_ids(np.flatnonzero(n_learnt))
    return _same_items(learnt, sequence_embeddings.item_ids.ids[sequence_embeddings.has_vector])


@dg.asset_check(asset="sequence_embeddings")
def learnt_items_have_different_sequence_vectors(sequence_embeddings: ItemEmbeddings) -> dg.AssetCheckResult:
    """Vectors that collapsed to one point tell no items apart; the bias, which is last, does not count."""
    vectors = sequence_embeddings.vectors[sequence_embeddings.has_vector, :-1]
    spread = vectors.std(axis=0).max(initial=0.0) if len(vectors) else 0.0
    return verdict(spread > 0, largest_standard_deviation=spread)


def _same_items(expected: npt.NDArray[np.object_], found: npt.NDArray[np.object_]) -> dg.AssetCheckResult:
    # Sets: numpy compares objects pair by pair.
    n_missing, n_foreign = len(set(expected) - set(found)), len(set(found) - set(expected))
    return verdict(n_missing == n_foreign == 0, n_missing=n_missing, n_foreign=n_foreign)

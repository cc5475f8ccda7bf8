"""Who takes part in an evaluation: the baselines, each source of the hybrid alone, and the hybrid."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from rec_pipeline.engine.data.space import MEMORY, Space
from rec_pipeline.engine.data.split import InteractionSplit
from rec_pipeline.engine.embeddings.item_embeddings import ItemEmbeddings, collaborative_embeddings, sequence_embeddings
from rec_pipeline.engine.index.vector_index import IndexParams, build_index
from rec_pipeline.engine.models.item_knn import ItemKNNModel, ItemKNNParams
from rec_pipeline.engine.models.ncf_params import NCFParams, TrainingOptions
from rec_pipeline.engine.models.popularity import PopularityModel
from rec_pipeline.engine.models.scorer import Scorer
from rec_pipeline.engine.models.sequence_params import SequenceParams
from rec_pipeline.engine.recommenders.bundle import ServingBundle
from rec_pipeline.engine.recommenders.content import ContentRanker
from rec_pipeline.engine.recommenders.fitting import evaluated_bundle, facts_of
from rec_pipeline.engine.recommenders.global_ranker import GlobalRanker
from rec_pipeline.engine.recommenders.hybrid import HybridRanker
from rec_pipeline.engine.recommenders.params import (
    COLLABORATIVE,
    CONTENT,
    POPULARITY,
    SEQUENCE,
    TRENDING,
    HybridParams,
)
from rec_pipeline.engine.recommenders.ranker import Ranker
from rec_pipeline.engine.recommenders.score_ranker import ScoreRanker
from rec_pipeline.engine.recommenders.tuning import fit_trending, tune_fusion
from rec_pipeline.engine.recommenders.validation import ValidationRanking, collaborative_lists, sequence_lists

ITEM_KNN = "item_knn"
NAMES = {COLLABORATIVE: "ncf"}  # sources that reports know by the name of their model


def line_up(bundle: ServingBundle, models: Mapping[str, Scorer]) -> list[Ranker]:
    """
    Return ``popularity``, each of ``models`` by its name, each source of the hybrid alone and ``hybrid``.

    All serve every user. A personal recommender fills up from the hybrid's fallback where it knows nothing or too
    little, as it would in use, so that the comparison is between what users would see.

    Parameters
    ----------
    bundle
        The evaluated parts; its recommender is the hybrid.
    models
        Personal models that are no source, fitted on the same interactions, in the rows of the same items.
    """
    hybrid = bundle.recommender()
    popularity = GlobalRanker(POPULARITY, bundle.popularity.n_interactions.astype(np.float32))

    def alone(name: str, source: Ranker) -> Ranker:
        params = HybridParams(weights={source.name: 1.0})
        return HybridRanker({source.name: source}, hybrid.fallback, params, name=name, impersonal=())

    return [
        popularity,
        *(alone(name, ScoreRanker(name, model)) for name, model in models.items()),
        *(alone(NAMES.get(name, name), source) for name, source in sorted(hybrid.sources.items(), reverse=True)),
        hybrid,
    ]


def fit_line_up(
    split: InteractionSplit,
    items: pd.DataFrame,
    content_embeddings: ItemEmbeddings,
    *,
    ncf_params: NCFParams,
    sequence_params: SequenceParams,
    knn_params: ItemKNNParams,
    hybrid_params: HybridParams,
    training: TrainingOptions | None = None,
    space: Space = MEMORY,
) -> list[Ranker]:
    """
    Fit everything that takes part on what comes before the test part of ``split``, as the lineage does.

    Parameters
    ----------
    split
        Its validation part stops training early; models are then fitted again on train and validation.
    items : pd.DataFrame
        Catalogue of at least the items of the split.
    content_embeddings
        Of at least the items of the split.
    ncf_params, sequence_params, knn_params, training
        Settings of the parts.
    hybrid_params
        Where the search for weights starts, which is done on the validation part.
    space
        Where item-kNN puts interactions by item.
    """
    from rec_pipeline.engine.models.ncf_training import fit_ncf
    from rec_pipeline.engine.models.sequence_training import continue_sequence, fit_sequence

    parts, n_items = split.by_user, len(split.items)
    known, validation = parts.fitting.user_item, parts.validation.user_item
    first = fit_ncf(parts.train.user_item, ncf_params, training, validation=validation)
    ncf = fit_ncf(known, first.refit_params, training).model
    first_sequence = fit_sequence(parts.train.sequences, n_items, sequence_params, training, validation=validation)
    sequence = continue_sequence(first_sequence.model, parts.fitting.sequences, training)
    expected_next = sequence_embeddings(split.items, sequence.item_vectors(), sequence.is_fitted_item)
    content = content_embeddings.aligned_to(split.items)
    content_index = build_index(content, IndexParams())
    trending, trending_lists = fit_trending(split)
    lists = {
        COLLABORATIVE: collaborative_lists(first, split, training),
        CONTENT: ValidationRanking.of(lambda _: ContentRanker(content, content_index), split),
        SEQUENCE: sequence_lists(first_sequence, split, training),
        TRENDING: trending_lists,
    }
    bundle = evaluated_bundle(
        split,
        items,
        ncf=ncf,
        sequence=sequence,
        popularity=PopularityModel.fit(known),
        trending=trending,
        content_embeddings=content,
        content_index=content_index,
        collaborative_index=build_index(collaborative_embeddings(split.items, ncf.item_vectors()), IndexParams()),
        sequence_index=build_index(expected_next, IndexParams()),
        params=tune_fusion(lists, split, hybrid_params, in_category=facts_of(split, items).in_category).params,
        metadata={},
    )
    return line_up(bundle, {ITEM_KNN: ItemKNNModel.fit(known, knn_params, space)})

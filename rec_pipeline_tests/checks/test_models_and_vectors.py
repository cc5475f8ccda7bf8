"""Each check of models, embeddings and indexes fails for what it is there to find."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import scipy.sparse as sp

from rec_pipeline.checks import embeddings as vector_checks
from rec_pipeline.checks import indexing, training
from rec_pipeline.engine.artifacts import ArtifactStore
from rec_pipeline.engine.compute import LOCAL
from rec_pipeline.engine.data.id_map import IdMap
from rec_pipeline.engine.data.split import InteractionSplit, SplitParams, split_interactions
from rec_pipeline.engine.embeddings.item_embeddings import ItemEmbeddings, sequence_embeddings
from rec_pipeline.engine.index.vector_index import IndexParams, VectorIndex, build_index
from rec_pipeline.engine.models.item_knn import ItemKNNModel, ItemKNNParams
from rec_pipeline.engine.models.ncf_params import TrainingOptions
from rec_pipeline.engine.models.popularity import PopularityModel
from rec_pipeline.engine.models.sequence_params import SequenceParams
from rec_pipeline.engine.models.sequence_training import fit_sequence
from rec_pipeline.resources.artifacts import SealedArtifact
from rec_pipeline_tests.checks.test_ingestion import interactions_table, items_table


@pytest.fixture(scope="module")
def split() -> InteractionSplit:
    return split_interactions(interactions_table(), items_table(), SplitParams())


def item_vectors(ids: IdMap, vectors: npt.NDArray[np.float32], has_vector: npt.NDArray[np.bool_]) -> ItemEmbeddings:
    return ItemEmbeddings(ids, vectors, has_vector, "planted")


@pytest.fixture
def content() -> ItemEmbeddings:
    vectors = np.random.default_rng(3).normal(size=(200, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = IdMap(np.array([f"i{row:03d}" for row in range(200)], dtype=object))
    return item_vectors(ids, vectors, np.ones(200, dtype=np.bool_))


@pytest.fixture
def index(content: ItemEmbeddings) -> VectorIndex:
    return build_index(content, IndexParams())


def test_counts_that_are_not_those_of_the_interactions_are_noticed(split: InteractionSplit) -> None:
    model = PopularityModel.fit(split.by_user.fitting.user_item)

    assert training.counts_are_those_of_the_interactions(model, split).passed
    assert not training.counts_are_those_of_the_interactions(PopularityModel(model.n_interactions + 1), split).passed


def test_equal_popularity_of_everything_is_noticed() -> None:
    assert training.some_items_are_more_popular_than_others(PopularityModel(np.array([1, 2]))).passed
    assert not training.some_items_are_more_popular_than_others(PopularityModel(np.array([2, 2]))).passed


@pytest.mark.parametrize("value", [-0.1, 0.0, 1.1])
def test_a_similarity_that_is_no_cosine_is_noticed(split: InteractionSplit, value: float) -> None:
    model = ItemKNNModel.fit(split.by_user.fitting.user_item, ItemKNNParams())
    spoilt = model.similarity.copy()
    spoilt.data[0] = value

    assert training.similarities_are_cosines(model).passed
    assert not training.similarities_are_cosines(replace(model, similarity=spoilt)).passed


def test_an_item_that_is_its_own_neighbour_is_noticed(split: InteractionSplit) -> None:
    model = ItemKNNModel.fit(split.by_user.fitting.user_item, ItemKNNParams())
    spoilt = sp.csr_matrix(model.similarity + sp.identity(model.similarity.shape[0], dtype=np.float32))

    assert training.no_item_is_its_own_neighbour(model).passed
    assert not training.no_item_is_its_own_neighbour(replace(model, similarity=spoilt)).passed


def test_content_vectors_of_another_length_are_refused(content: ItemEmbeddings) -> None:
    longer = replace(content, vectors=content.vectors * np.float32(1.01))

    assert vector_checks.content_vectors_have_unit_length(content).passed
    assert not vector_checks.content_vectors_have_unit_length(longer).passed


def test_a_catalogue_that_is_mostly_without_text_is_noticed(content: ItemEmbeddings) -> None:
    is_known = np.arange(200) < 99

    assert vector_checks.most_items_have_text(content).passed
    assert not vector_checks.most_items_have_text(replace(content, has_vector=is_known)).passed


def test_collaborative_vectors_of_another_split_are_refused(split: InteractionSplit) -> None:
    n_items = len(split.items)
    vectors, known = np.ones((n_items, 4), dtype=np.float32), np.ones(n_items, dtype=np.bool_)
    foreign = IdMap(np.array([f"other{row}" for row in range(n_items)], dtype=object))
    check = vector_checks.every_item_of_the_split_has_a_collaborative_vector

    assert check(item_vectors(split.items, vectors, known), split).passed
    found = check(item_vectors(foreign, vectors, known), split)
    assert not found.passed
    assert found.metadata["n_missing"].value == n_items


def test_vectors_that_collapsed_to_a_point_are_noticed(content: ItemEmbeddings) -> None:
    collapsed = replace(content, vectors=np.ones_like(content.vectors))

    assert vector_checks.items_have_different_vectors(content).passed
    assert not vector_checks.items_have_different_vectors(collapsed).passed


@pytest.mark.parametrize(
    "check",
    [
        indexing.content_index_finds_what_exact_search_finds,
        indexing.collaborative_index_finds_what_exact_search_finds,
        indexing.sequence_index_finds_what_exact_search_finds,
    ],
)
def test_an_index_over_other_vectors_is_refused(check: object, index: VectorIndex, content: ItemEmbeddings) -> None:
    others = replace(content, vectors=np.ascontiguousarray(content.vectors[::-1]))

    assert callable(check)
    assert check(index, content, LOCAL).passed
    assert not check(index, others, LOCAL).passed


@pytest.mark.parametrize(
    "check",
    [
        indexing.content_index_holds_every_vector,
        indexing.collaborative_index_holds_every_vector,
        indexing.sequence_index_holds_every_vector,
    ],
)
def test_an_index_that_lacks_a_vector_is_noticed(check: object, index: VectorIndex, content: ItemEmbeddings) -> None:
    without_last = np.arange(200) < 199
    smaller = build_index(replace(content, has_vector=without_last), IndexParams())

    assert callable(check)
    assert check(index, content).passed
    assert not check(smaller, content).passed


def test_learnt_items_without_a_sequence_vector_are_refused(split: InteractionSplit) -> None:
    learnt = np.isin(np.arange(len(split.items)), split.fitting["item_idx"])
    vectors = np.ones((len(split.items), 4), dtype=np.float32)
    without_one = learnt & (np.arange(len(learnt)) != np.flatnonzero(learnt)[0])
    check = vector_checks.every_item_that_was_learnt_has_a_sequence_vector

    assert check(sequence_embeddings(split.items, vectors, learnt), split).passed
    assert not check(sequence_embeddings(split.items, vectors, without_one), split).passed


def test_sequence_vectors_that_differ_in_nothing_but_their_bias_are_noticed(content: ItemEmbeddings) -> None:
    alike = np.ones_like(content.vectors)
    alike[:, -1] = np.arange(len(alike))

    assert vector_checks.learnt_items_have_different_sequence_vectors(content).passed
    assert not vector_checks.learnt_items_have_different_sequence_vectors(replace(content, vectors=alike)).passed


def test_a_sequence_model_that_is_not_finite_or_ignores_the_order_is_noticed(
    split: InteractionSplit, tmp_path: Path
) -> None:
    params = SequenceParams(embedding_dim=16, n_layers=1, epochs=30, batch_events=64, learning_rate=1e-2)
    model = fit_sequence(split.by_user.fitting.sequences, len(split.items), params, TrainingOptions(n_threads=1)).model
    store = ArtifactStore(tmp_path)

    def sealed() -> SealedArtifact:
        store.write("sequence_model", model.save, kind="SequenceModel")
        return SealedArtifact(store.path("sequence_model"))

    assert training.sequence_scores_are_finite(sealed(), split).passed
    assert training.order_changes_what_comes_next(sealed(), split).passed
    model.network.norm.weight.zero_()
    assert not training.order_changes_what_comes_next(sealed(), split).passed
    model.network.items.fill_(10)  # a weight that is not finite is not even saved
    model.network.norm.bias.fill_(3e38)
    with np.errstate(over="ignore"):
        assert not training.sequence_scores_are_finite(sealed(), split).passed

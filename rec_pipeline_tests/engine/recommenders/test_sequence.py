import numpy as np
import pytest
import scipy.sparse as sp

from rec_pipeline.engine.data.batches import UserBatch
from rec_pipeline.engine.embeddings.item_embeddings import sequence_embeddings
from rec_pipeline.engine.index.vector_index import IndexParams, build_index
from rec_pipeline.engine.models.ncf_params import TrainingOptions
from rec_pipeline.engine.models.sequence import SequenceModel
from rec_pipeline.engine.models.sequence_params import SequenceParams
from rec_pipeline.engine.models.sequence_training import fit_sequence
from rec_pipeline.engine.recommenders.sequence import SequenceRanker
from rec_pipeline_tests.engine.recommenders.planted import id_map, sequences_of

N_ITEMS = 30


@pytest.fixture(scope="module")
def model() -> SequenceModel:
    """Users like items of their own parity; items 28 and 29 are new."""
    rng = np.random.default_rng(5)
    seen = (np.arange(60)[:, None] % 2 == np.arange(N_ITEMS) % 2) & (rng.random((60, N_ITEMS)) < 0.5)
    seen[:, 28:] = False
    params = SequenceParams(embedding_dim=16, n_layers=1, epochs=30, batch_events=256, learning_rate=1e-2)
    return fit_sequence(sequences_of(sp.csr_matrix(seen)), N_ITEMS, params, TrainingOptions(n_threads=1)).model


@pytest.fixture
def newcomers() -> UserBatch:
    """Three events, one event, none; the history of the second is longer than what is recent."""
    history = np.zeros((3, N_ITEMS), dtype=np.float32)
    history[0, [2, 4, 8]] = history[1, [5, 7]] = 1
    recent = np.array([[2, 8, 4], [-1, -1, 7], [-1, -1, -1]])
    return UserBatch(np.full(3, -1), sp.csr_matrix(history), recent)


def index_over(model: SequenceModel) -> SequenceRanker:
    vectors = sequence_embeddings(id_map(N_ITEMS), model.item_vectors(), model.is_fitted_item)
    return SequenceRanker(model, build_index(vectors, IndexParams()), exact_up_to=0)


def test_a_newcomer_with_three_events_gets_items_of_their_taste(model: SequenceModel, newcomers: UserBatch) -> None:
    items = SequenceRanker(model).recommend(newcomers, 8).item_idx

    assert (items[0] % 2 == 0).mean() > 0.8
    assert (items[1] % 2 == 1).mean() > 0.8
    assert items[2].tolist() == [-1] * 8


def test_the_index_finds_what_exact_scoring_ranks(model: SequenceModel, newcomers: UserBatch) -> None:
    exact = SequenceRanker(model).recommend(newcomers, 10)

    found = index_over(model).recommend(newcomers, 10)

    assert found.item_idx.tolist() == exact.item_idx.tolist()
    np.testing.assert_allclose(found.score[:2], exact.score[:2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("exact", [True, False])
def test_neither_seen_nor_ineligible_nor_unlearnt_items_are_returned(
    model: SequenceModel, newcomers: UserBatch, exact: bool
) -> None:
    ranker = SequenceRanker(model) if exact else index_over(model)
    eligible = np.ones(N_ITEMS, dtype=np.bool_)
    eligible[[0, 1]] = False

    items = ranker.recommend(newcomers, N_ITEMS, eligible=eligible).item_idx

    assert not {0, 1, 2, 4, 8, 28, 29} & set(items[0])
    assert not {0, 1, 5, 7, 28, 29} & set(items[1])
    assert (items[0] >= 0).sum() == N_ITEMS - 7

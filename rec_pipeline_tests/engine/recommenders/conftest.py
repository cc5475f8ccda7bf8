import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from rec_pipeline.engine.embeddings.item_embeddings import ItemEmbeddings, sequence_embeddings
from rec_pipeline.engine.index.vector_index import IndexParams, build_index
from rec_pipeline.engine.models.ncf_params import NCFParams, TrainingOptions
from rec_pipeline.engine.models.ncf_training import fit_ncf
from rec_pipeline.engine.models.popularity import PopularityModel
from rec_pipeline.engine.models.sequence_params import SequenceParams
from rec_pipeline.engine.models.sequence_training import fit_sequence
from rec_pipeline.engine.models.trending import TrendingModel
from rec_pipeline.engine.recommenders.bundle import ServingBundle
from rec_pipeline.engine.recommenders.context import ContextLifts
from rec_pipeline.engine.recommenders.filters import ItemFacts
from rec_pipeline.engine.recommenders.params import HybridParams
from rec_pipeline_tests.engine.recommenders.planted import embeddings, id_map, sequences_of

N_USERS, N_ITEMS = 60, 40


@pytest.fixture(scope="package")
def bundle() -> ServingBundle:
    """
    Users like items of their own parity; the last two have no history, item 38 is new and 39 unavailable.

    In the morning (6 to 12) odd items are taken, in the evening (18 to 24) even ones.
    """
    rng = np.random.default_rng(0)
    same_parity = np.arange(N_USERS)[:, None] % 2 == np.arange(N_ITEMS) % 2
    seen = same_parity & (rng.random(same_parity.shape) < 0.4)
    seen[:, 38] = False
    seen[58:] = False
    history = sp.csr_matrix(seen.astype(np.float32))
    direction = np.where(np.arange(N_ITEMS)[:, None] % 2 == 0, [[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]])
    content = embeddings((direction + rng.normal(0, 0.1, direction.shape)).astype(np.float32))
    params = NCFParams(embedding_dim=8, mlp_dim=4, layers=[8], pretrain_epochs=15, epochs=10, batch_size=16)
    ncf = fit_ncf(history, params, TrainingOptions(device="cpu", seed=1, n_threads=1)).model
    item_vectors = ncf.item_vectors()
    sequence_params = SequenceParams(embedding_dim=16, n_layers=1, epochs=60, batch_events=256, learning_rate=1e-2)
    sequence = fit_sequence(sequences_of(history), N_ITEMS, sequence_params, TrainingOptions(n_threads=1)).model
    expected_next = sequence_embeddings(id_map(N_ITEMS), sequence.item_vectors(), sequence.is_fitted_item)
    collaborative = ItemEmbeddings(id_map(N_ITEMS), item_vectors, np.ones(N_ITEMS, dtype=bool), "ncf")
    is_even, is_morning = np.arange(N_ITEMS) % 2 == 0, rng.random(2000) < 0.5
    facts = ItemFacts.of(
        pd.DataFrame({"categories": np.where(is_even, "even", "odd|strange"), "available": np.arange(N_ITEMS) != 39})
    )
    events = pd.DataFrame(
        {"timestamp": pd.to_datetime(np.where(is_morning, "2024-01-01T08", "2024-01-01T20"), utc=True)}
    )
    taken = np.where(rng.random(2000) < 0.9, is_morning, ~is_morning).astype(np.int64)  # odd ones in the morning
    counts = np.bincount(history.indices, minlength=N_ITEMS).astype(np.float32)
    titles = np.array([f'Ægir "Løve" 🦁, 獅子 {row}' for row in range(N_ITEMS)], dtype=object)
    return ServingBundle(
        users=id_map(N_USERS, "u"),
        items=id_map(N_ITEMS),
        history=history,
        sequences=sequences_of(history),
        titles=titles,
        facts=facts,
        lifts=ContextLifts.fit(events, taken, facts.in_category),
        ncf=ncf,
        sequence=sequence,
        popularity=PopularityModel.fit(history),
        trending=TrendingModel(counts, 7.0, counts[::-1].copy(), 30.0),
        content_embeddings=content,
        content_index=build_index(content, IndexParams()),
        collaborative_index=build_index(collaborative, IndexParams()),
        sequence_index=build_index(expected_next, IndexParams()),
        params=HybridParams(n_candidates=20),
        metadata={"run_id": "r1", "gate": {"passed": True}},
    )

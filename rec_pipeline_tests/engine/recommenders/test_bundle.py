import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rec_pipeline.engine import columns as c
from rec_pipeline.engine.artifacts import ArtifactStore, Storable
from rec_pipeline.engine.data import pairs, space
from rec_pipeline.engine.data.batches import IdxVector, UserBatch
from rec_pipeline.engine.data.table import Table
from rec_pipeline.engine.recommenders.bundle import ServingBundle
from rec_pipeline.engine.recommenders.fitting import fit_bundle
from rec_pipeline.engine.recommenders.fusion import Explained
from rec_pipeline.engine.recommenders.reasons import reason_rows, reason_texts
from rec_pipeline_tests.engine.recommenders.planted import id_map


def all_users(bundle: ServingBundle) -> UserBatch:
    (users,) = bundle.batches(np.arange(len(bundle.users)), len(bundle.users))
    return users


def test_a_stored_bundle_recommends_the_same(bundle: ServingBundle, tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    store.write("serving_bundle", bundle.save, kind="ServingBundle")

    loaded = ServingBundle.load(store.path("serving_bundle"))

    assert isinstance(bundle, Storable)
    before = bundle.recommender().recommend_explained(all_users(bundle), 10)
    after = loaded.recommender().recommend_explained(all_users(loaded), 10)
    assert np.array_equal(after.ranking.item_idx, before.ranking.item_idx)
    assert np.array_equal(after.ranking.score, before.ranking.score)
    assert np.array_equal(after.share, before.share)
    assert np.array_equal(loaded.sequences.recent(np.arange(60)), bundle.sequences.recent(np.arange(60)))
    assert loaded.titles.tolist() == bundle.titles.tolist()
    assert loaded.metadata == bundle.metadata
    assert loaded.params == bundle.params


def test_the_same_bundle_is_stored_under_the_same_version(bundle: ServingBundle, tmp_path: Path) -> None:
    first = ArtifactStore(tmp_path / "a").write("serving_bundle", bundle.save, kind="ServingBundle")
    second = ArtifactStore(tmp_path / "b").write("serving_bundle", bundle.save, kind="ServingBundle")

    assert first.version == second.version


def test_a_bundle_fitted_on_disk_is_the_one_fitted_in_memory(
    bundle: ServingBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = bundle.history.tocoo()
    start = pd.Timestamp("2024-01-01", tz="UTC")
    interactions = pd.DataFrame(
        {
            c.USER_ID: pd.Series(bundle.users.to_ids(known.row), dtype="str"),
            c.ITEM_ID: pd.Series(bundle.items.to_ids(known.col), dtype="str"),
            c.TIMESTAMP: start + pd.to_timedelta(np.arange(known.nnz), unit="h").as_unit("us"),
            c.WEIGHT: known.data,
        }
    )
    again = interactions.head(50).assign(**{c.TIMESTAMP: start + pd.Timedelta(days=365)})
    table, items = Table((interactions, again)), pd.DataFrame({c.ITEM_ID: pd.Series(bundle.items.ids, dtype="str")})
    for module in (pairs, space):
        monkeypatch.setattr(module, "PART_ROWS", 200)

    in_memory, on_disk = (
        fit_bundle(bundle, table, items, bundle.content_embeddings, metadata={}, scratch=scratch)
        for scratch in (None, tmp_path)
    )

    assert len(table) > 200
    assert (on_disk.history != in_memory.history).nnz == 0
    assert np.array_equal(on_disk.sequences.item_idx, in_memory.sequences.item_idx)
    assert np.array_equal(on_disk.trending.weight, in_memory.trending.weight)
    assert np.array_equal(on_disk.ncf.item_vectors(), in_memory.ncf.item_vectors())


def test_recommendations_follow_the_planted_taste(bundle: ServingBundle) -> None:
    with_history = np.arange(58)

    items = bundle.recommender().recommend(all_users(bundle), 5).item_idx[with_history]

    assert (items % 2 == with_history[:, None] % 2).mean() > 0.95


def test_unavailable_items_are_never_recommended(bundle: ServingBundle) -> None:
    items = bundle.recommender().recommend(all_users(bundle), len(bundle.items)).item_idx

    assert 39 not in items
    assert (np.sort(items, axis=1)[58:, -39:] == np.arange(39)).all()


def test_settings_of_the_hybrid_rerank_its_lists(bundle: ServingBundle) -> None:
    def lists(**settings: object) -> Explained:
        changed = replace(bundle, params=bundle.params.model_copy(update=settings))
        return changed.recommender().recommend_explained(all_users(bundle), 8)

    def n_more_of_one_parity(explained: Explained) -> IdxVector:
        return np.abs((explained.ranking.item_idx % 2 == 1).sum(axis=1)[:58] - 4)

    plain, capped, explored = lists(), lists(category_cap=5), lists(exploration_share=0.5)
    varied, as_it_is = lists(mmr_trade_off=0.1), lists(mmr_trade_off=1.0)

    assert n_more_of_one_parity(plain).mean() > 3
    assert n_more_of_one_parity(capped).max() == 1
    assert n_more_of_one_parity(varied).mean() < 2.5
    assert np.array_equal(as_it_is.ranking.item_idx, plain.ranking.item_idx)
    for reranked in (plain, capped, varied, explored):
        assert reranked.is_present.all()
        assert all(len(set(row)) == 8 for row in reranked.ranking.item_idx.tolist())
        np.testing.assert_allclose(reranked.share.sum(axis=2), 1, rtol=1e-5)
        assert (np.diff(reranked.ranking.score, axis=1) <= 0).all()
    is_drawn = explored.rank[:, :, explored.sources.index("exploration")] > 0
    assert np.array_equal(is_drawn, explored.ranking.item_idx != plain.ranking.item_idx)
    assert 0.4 < is_drawn[:, 1:].mean() < 0.6
    reasons = reason_texts(bundle.titles)[reason_rows(explored, bundle.history, bundle.spaces)]
    assert np.array_equal(reasons == "Something different", is_drawn)
    assert not explored.is_personal[58:].any()


def test_parts_of_another_catalogue_are_refused(bundle: ServingBundle) -> None:
    with pytest.raises(ValueError, match="'titles': 3"):
        replace(bundle, titles=bundle.titles[:3])
    with pytest.raises(ValueError, match="content_embeddings is not in the bundle's row order"):
        replace(bundle, content_embeddings=bundle.content_embeddings.aligned_to(id_map(40, "x")))


def test_the_module_is_imported_without_the_heavy_libraries() -> None:
    code = "import sys, rec_pipeline.engine.recommenders.bundle; print({'torch', 'faiss'} & set(sys.modules))"

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"  # noqa: S603 # our own code

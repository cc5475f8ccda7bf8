"""What a loaded bundle answers with is what it was published with."""

import numpy as np
import pytest

from rec_pipeline.engine.recommenders.bundle import ServingBundle
from rec_pipeline.serving import bundles
from rec_pipeline.serving.bundles import LoadedBundle


def test_a_large_catalogue_is_retrieved_from_and_the_answer_is_the_same(
    bundle: ServingBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = next(bundle.batches(np.arange(58), 58))
    exact = LoadedBundle.of(bundle, "v").hybrid.recommend(users, 10).item_idx
    monkeypatch.setattr(bundles, "EXACT_ITEMS", 0)
    monkeypatch.setattr(bundles, "N_RETRIEVED", 30)

    def unasked(*_: object) -> None:
        raise AssertionError("the whole catalogue was scored")

    for model in (bundle.ncf, bundle.sequence):
        monkeypatch.setattr(type(model), "score", unasked)
    retrieved = LoadedBundle.of(bundle, "v").hybrid.recommend(users, 10).item_idx

    in_common = [len(set(one) & set(other)) for one, other in zip(exact, retrieved, strict=True)]
    assert np.mean(in_common) > 9.5

"""Every model keeps the contract of a scorer."""

from typing import Any

import scipy.sparse as sp

from rec_pipeline.engine.models.item_knn import ItemKNNModel, ItemKNNParams
from rec_pipeline.engine.models.ncf import NCFModel
from rec_pipeline.engine.models.ncf_params import NCFParams, NCFVariant, TrainingOptions
from rec_pipeline.engine.models.ncf_training import fit_ncf
from rec_pipeline.engine.models.popularity import PopularityModel
from rec_pipeline_tests.contracts.scorer import PersonalScorerContract, ScorerContract


class TestPopularity(ScorerContract):
    kind = PopularityModel

    @classmethod
    def fit(cls, history: sp.csr_matrix) -> Any:
        return PopularityModel.fit(history)


class TestItemKNN(PersonalScorerContract):
    kind = ItemKNNModel

    @classmethod
    def fit(cls, history: sp.csr_matrix) -> Any:
        return ItemKNNModel.fit(history, ItemKNNParams(shrinkage=1))


class TestNeuMF(PersonalScorerContract):
    kind = NCFModel
    variant = NCFVariant.NEUMF

    @classmethod
    def fit(cls, history: sp.csr_matrix) -> Any:
        params = NCFParams(
            variant=cls.variant, embedding_dim=8, mlp_dim=4, layers=[8], epochs=30, batch_size=8, learning_rate=0.02
        )
        return fit_ncf(history, params, TrainingOptions(device="cpu", n_threads=1)).model


class TestGMF(TestNeuMF):
    variant = NCFVariant.GMF


class TestMLP(TestNeuMF):
    variant = NCFVariant.MLP

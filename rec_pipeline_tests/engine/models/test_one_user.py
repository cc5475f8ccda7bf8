from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
import scipy.sparse as sp
import torch
from torch import nn

from rec_pipeline.engine.data.batches import UserBatch
from rec_pipeline.engine.models.ncf import NCFModel, NCFNetwork
from rec_pipeline.engine.models.ncf_params import NCFParams, NCFVariant
from rec_pipeline.engine.models.sequence import SequenceModel, SequenceNetwork
from rec_pipeline.engine.models.sequence_params import SequenceParams

N_USERS, N_ITEMS = 5, 60


def with_random_weights(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    for parameter in network.requires_grad_(requires_grad=False).parameters():
        parameter.normal_(0, 0.3, generator=generator)
    network.is_fitted_item[: N_ITEMS - 3] = True  # type: ignore[operator, index]
    return network.eval()


def users_of(rows: Sequence[int], history: Sequence[Sequence[int]]) -> UserBatch:
    matrix = np.zeros((len(rows), N_ITEMS), dtype=np.float32)
    for row, items in enumerate(history):
        matrix[row, list(items)] = 1
    width = max(len(items) for items in history)
    recent = [[-1] * (width - len(items)) + list(items) for items in history]
    return UserBatch(np.array(rows), sp.csr_matrix(matrix), np.array(recent, dtype=np.int64).reshape(len(rows), width))


def one_by_one(users: UserBatch) -> list[UserBatch]:
    return [
        UserBatch(users.user_idx[[row]], sp.csr_matrix(users.history[row]), users.recent[[row]])
        for row in range(len(users))
    ]


@pytest.mark.parametrize("variant", list(NCFVariant))
@pytest.mark.parametrize("linear_dim", [0, 6])
def test_one_user_is_scored_as_among_others(variant: NCFVariant, linear_dim: int) -> None:
    params = NCFParams(variant=variant, embedding_dim=8, linear_dim=linear_dim, mlp_dim=4, layers=[12, 6])
    network = with_random_weights(NCFNetwork(N_USERS, N_ITEMS, params))
    assert isinstance(network, NCFNetwork)
    model = NCFModel(network, params)
    users = users_of([2, -1, 4, 0, 1], [[3, 8, 59], [1], [], [7, 30], [58]])
    candidates = np.array([[5, 40, -1, 59]])

    def given(queries: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int64], None]:
        asked.append(queries[0])
        return candidates, None

    def found(queries: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        return candidates, queries @ model.item_vectors()[candidates[0]].T

    asked: list[npt.NDArray[np.float32]] = []
    score = [model.retrieve_and_score(user, given)[1][0] for user in one_by_one(users)]

    np.testing.assert_allclose(asked, model.user_vectors(users), rtol=1e-5, atol=1e-6)
    expected = model.score_candidates(users, np.tile(candidates, (len(users), 1)))
    np.testing.assert_allclose(score, expected, rtol=1e-5, atol=1e-5)
    score = [model.retrieve_and_score(user, found)[1][0] for user in one_by_one(users)]
    np.testing.assert_allclose(score, expected, rtol=1e-5, atol=1e-5)
    assert not expected[[2, 4]][:, [0, 1, 3]].any()  # nothing that was fitted is known of them


@pytest.mark.parametrize(("n_layers", "n_heads"), [(1, 1), (2, 2), (3, 4)])
def test_one_sequence_is_read_as_among_others(n_layers: int, n_heads: int) -> None:
    params = SequenceParams(embedding_dim=16, n_layers=n_layers, n_heads=n_heads, max_length=8)
    network = with_random_weights(SequenceNetwork(N_ITEMS, params))
    assert isinstance(network, SequenceNetwork)
    model = SequenceModel(network, params)
    users = users_of([0, 1, 2, 3], [list(range(11)), [4, 59, 9], [1], [58]])

    alone = np.concatenate([model.user_vectors(user) for user in one_by_one(users)])

    np.testing.assert_allclose(alone, model.user_vectors(users), rtol=1e-4, atol=1e-5)
    assert alone[:3].any(axis=1).all()
    assert not alone[3].any()

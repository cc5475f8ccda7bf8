"""Several trainers find what one finds: the same up to the order of sums, or the same quality where chance differs."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from rec_pipeline.engine.compute import LOCAL, Compute, Group
from rec_pipeline.engine.models.ncf_params import NCFLoss, NCFVariant
from rec_pipeline.engine.models.ncf_training import fit_ncf
from rec_pipeline.engine.models.sequence_training import continue_sequence, fit_sequence
from rec_pipeline.engine.models.trainers import Trainers
from rec_pipeline_tests.engine.models import test_ncf as ncf
from rec_pipeline_tests.engine.models import test_sequence as sequence
from rec_pipeline_tests.engine.models.test_ncf import parity


class Threads:
    """Trains in threads of this process, which talk over gloo as processes do."""

    def __init__(self, n_trainers: int) -> None:
        self.n_trainers = n_trainers

    map = LOCAL.map

    def together(self, member: Callable[[Group], object], lead: Callable[[Group], Any]) -> Any:
        store = torch.distributed.HashStore()

        def run(rank: int) -> Any:
            return (member if rank else lead)(Trainers(store, rank, self.n_trainers))

        with ThreadPoolExecutor(self.n_trainers) as pool:
            return next(iter([*pool.map(run, range(self.n_trainers))]))


@pytest.fixture(autouse=True)
def _nobody_waits_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a member that has failed fail the others too."""
    monkeypatch.setattr("rec_pipeline.engine.models.trainers.CALL_SECONDS", 20.0)


@pytest.fixture(params=[2, 4])
def trainers(request: pytest.FixtureRequest) -> Threads:
    return Threads(request.param)


__all__ = ["parity"]


@pytest.mark.parametrize("variant", [NCFVariant.NEUMF, NCFVariant.MLP])
@pytest.mark.parametrize("loss", list(NCFLoss))
def test_ncf_of_several_trainers_is_that_of_one_but_for_the_order_of_sums(
    parity: tuple[sp.csr_matrix, sp.csr_matrix], trainers: Compute, loss: NCFLoss, variant: NCFVariant
) -> None:
    params = ncf.SMALL.model_copy(
        update={
            "loss": loss,
            "variant": variant,
            "n_negatives": 5,
            "mlp_negatives": 9,
            "pretrain_epochs": 3,
            "epochs": 2,
        }
    )
    users = ncf.everyone(parity[0])

    one, several = (
        fit_ncf(parity[0], params, ncf.OPTIONS, validation=parity[1], compute=compute) for compute in (LOCAL, trainers)
    )

    assert np.ptp(one.model.score(users)) > 0.2
    np.testing.assert_allclose(several.model.score(users), one.model.score(users), atol=2e-4)
    for here, there in zip(one.history, several.history, strict=True):
        assert there.train_loss == pytest.approx(here.train_loss, rel=1e-5)
        assert there.validation_ndcg == pytest.approx(here.validation_ndcg, abs=0.02)


@pytest.mark.parametrize("n_negatives", [sequence.N_ITEMS, 6])
def test_a_sequence_model_of_several_trainers_is_that_of_one_but_for_the_order_of_sums(
    trainers: Compute, n_negatives: int
) -> None:
    params = sequence.PARAMS.model_copy(update={"dropout": 0.0, "epochs": 3, "n_negatives": n_negatives})
    train, validation = sequence.held_out(sequence.walks())
    users = sequence.users_of([[1, 2], [5], [17, 18, 19]])

    def scores(compute: Compute) -> list[np.ndarray[Any, Any]]:
        fit = fit_sequence(train, sequence.N_ITEMS, params, sequence.OPTIONS, validation=validation, compute=compute)
        more = continue_sequence(fit.model, sequence.walks(), sequence.OPTIONS, compute=compute)
        return [fit.model.score(users), more.score(users)]

    one, several = scores(LOCAL), scores(trainers)
    assert np.ptp(one[0]) > 0.1
    np.testing.assert_allclose(several, one, atol=1e-3)

"""The training loop on a parabola, where it is known at which rates descent converges."""

import pytest
import torch

from rec_pipeline.engine.errors import TrainingDivergedError
from rec_pipeline.engine.models.ncf_params import TrainingOptions
from rec_pipeline.engine.models.training import MAX_HALVINGS, EpochMetrics, Trainer

HIGHEST_RATE = 2.2  # heavy-ball descent with momentum 0.1 on a parabola of curvature 1 converges below 2 (1 + 0.1)
STEPS = 100


def descend(rate: float, *, epochs: int = 2) -> tuple[float, list[EpochMetrics]]:
    """Descend from 1; return where it ends and the epochs."""
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(network.weight)
    optimizer = torch.optim.SGD(network.parameters(), lr=rate, momentum=0.1)

    def train_epoch(_: int, rate_share: float) -> tuple[float, int]:
        optimizer.param_groups[0]["lr"] = rate * rate_share
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss = network.weight.square().sum() / 2
            loss.backward()
            optimizer.step()
        return loss.item(), STEPS

    trainer = Trainer(network, TrainingOptions(), digest="")
    trainer.run("phase", optimizer, train_epoch=train_epoch, validate=None, epochs=epochs, patience=epochs)
    return network.weight.item(), trainer.progress.history


@pytest.mark.parametrize("n_halvings", range(MAX_HALVINGS + 1))
def test_f17_training_that_diverges_goes_on_at_half_the_rate(n_halvings: int) -> None:
    weight, history = descend(0.9 * HIGHEST_RATE * 2**n_halvings)

    assert abs(weight) < 1e-3
    assert [(entry.epoch, entry.rate_share) for entry in history] == [(1, 0.5**n_halvings), (2, 0.5**n_halvings)]


def test_f17_training_that_diverges_at_every_rate_fails() -> None:
    with pytest.raises(TrainingDivergedError, match=r"in epoch 1 .* at 25% of the learning rate") as failed:
        descend(0.9 * HIGHEST_RATE * 2 ** (MAX_HALVINGS + 1))

    assert failed.value.exit_code == 4

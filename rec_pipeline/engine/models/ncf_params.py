"""Settings of NCF, apart from the network so that reading them does not import torch."""

from enum import StrEnum
from typing import Final, Self

from pydantic import BaseModel, Field, model_validator

EXACT_SCORING_ITEMS: Final = 10_000
"""Largest catalogue of which the MLP scores every item: 10,000 pairs take a millisecond of a processor."""
N_CANDIDATES: Final = 300
"""Items of a larger one that it ranks, the best by the inner product: they hold the exact first 100 (BENCHMARKS.md)."""
GMF_STEPS: Final = 3_000
"""Steps after which the GMF branch of many users has learned what it will; more of them fit noise (BENCHMARKS.md)."""
LEAST_EPOCHS: Final = 4
"""Times that each user's learned vector moves at least."""
ITEM_EXPONENTS: Final = (0.25, 0.45)
"""Powers of popularity that the closed form chooses from; of dense data the first is best, of sparse data often not."""
SHRINKAGES: Final = (0.8, 1.6, 3.2, 6.4)
"""Shrinkages that it chooses from; of dense data the first is best (BENCHMARKS.md)."""
LINEAR_WEIGHTS: Final = (2.0, 4.0, 8.0)
"""Weights besides 1 that the closed form may get beside the learned vectors."""


class NCFVariant(StrEnum):
    """Which branches the network has."""

    NEUMF = "neumf"
    GMF = "gmf"
    MLP = "mlp"


class NCFLoss(StrEnum):
    """What training makes small."""

    SOFTMAX = "softmax"
    BINARY_CROSS_ENTROPY = "binary_cross_entropy"


class NCFParams(BaseModel, frozen=True, extra="forbid"):
    """Hyper-parameters of NCF; the defaults come from the measured runs in docs/BENCHMARKS.md."""

    variant: NCFVariant = Field(
        NCFVariant.NEUMF, description="neumf: both branches under one head; gmf or mlp: that branch alone."
    )
    loss: NCFLoss = Field(
        NCFLoss.SOFTMAX,
        description="softmax: each item of a user against the whole catalogue; binary_cross_entropy: each pair of user "
        "and item for itself, as in the paper, but with every other item as a negative. Either is estimated from the "
        "negatives drawn. The softmax ranks better beside the closed-form vectors, not without (docs/BENCHMARKS.md).",
    )
    embedding_dim: int = Field(128, ge=1, le=2048, description="Width of the GMF branch's learned vectors.")
    linear_dim: int = Field(
        128,
        ge=0,
        le=2048,
        description="Width of the GMF branch's closed-form vectors, which come before the learned ones in the vectors "
        "to index; 0 leaves them out.",
    )
    linear_item_exponent: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Power of an item's popularity by which the closed form divides it; by default chosen on "
        "interactions hidden from it, from " + " and ".join(map(str, ITEM_EXPONENTS)) + ".",
    )
    linear_shrinkage: float | None = Field(
        None,
        gt=0,
        description="How far the closed form is shrunk, in units of the noise in such data; by default chosen "
        "likewise, from " + ", ".join(map(str, SHRINKAGES)) + ".",
    )
    linear_weight: float | None = Field(
        None,
        gt=0,
        description="Weight of the closed-form vectors in the head; by default 1, unless validation data says beyond "
        "doubt that one of " + ", ".join(map(str, LINEAR_WEIGHTS)) + " is better.",
    )
    mlp_dim: int = Field(32, ge=1, le=2048, description="Width of the user and of the item half of the MLP's input.")
    layers: list[int] = Field([64, 32], min_length=1, description="Units of each hidden layer of the MLP branch.")
    dropout: float = Field(
        0.5, ge=0, lt=1, description="Share of a user's history hidden from the MLP at each step, to be predicted."
    )
    n_negatives: int = Field(
        4096,
        ge=1,
        description="Items that a batch of users is scored against in the GMF branch beside those its users have; "
        "all of them if there are no more.",
    )
    mlp_negatives: int = Field(256, ge=1, description="Items drawn once for a batch of users in training the MLP.")
    batch_size: int | None = Field(
        None,
        ge=1,
        description="Users in a training step; by default a 32nd of them, but 32 at least and 256 at most, so that few "
        "users make enough steps an epoch too.",
    )
    gmf_learning_rate: float = Field(
        0.1,
        gt=0,
        description="Peak rate of Adam for the GMF branch: it rises for a fifth of the steps, then falls to 0.",
    )
    gmf_weight_decay: float = Field(
        4.0,
        ge=0,
        description="L2 penalty on each learned vector of the GMF branch, beside the summed loss of all positives: the "
        "fewer a user or an item has, the more it counts.",
    )
    learning_rate: float = Field(1e-3, gt=0, description="Peak rate of Adam for the MLP; it falls linearly to a tenth.")
    weight_decay: float = Field(1e-3, ge=0, description="L2 penalty on the MLP's vectors of the batch.")
    pretrain_epochs: int = Field(
        16,
        ge=1,
        description="At most so many epochs of the GMF branch, which is trained first and alone: of many users as few "
        f"as make {GMF_STEPS:,} steps, but {LEAST_EPOCHS} at least.",
    )
    epochs: int = Field(3, ge=0, description="At most so many epochs of the MLP on what the GMF branch leaves over.")
    patience: int = Field(
        1, ge=1, description="Epochs of the MLP without a better validation ndcg@10 after which its training ends."
    )

    def users_a_step(self, n_users: int) -> int:
        """Return the batch size for so many users with interactions."""
        return self.batch_size or min(max(32, n_users // 32), 256)

    def gmf_epochs(self, n_users: int) -> int:
        """Return the epochs of the GMF branch for so many users with interactions."""
        steps_an_epoch = max(1, n_users // self.users_a_step(n_users))
        return min(self.pretrain_epochs, max(LEAST_EPOCHS, GMF_STEPS // steps_an_epoch))

    @model_validator(mode="after")
    def _check_layers(self) -> Self:
        if any(width < 1 for width in self.layers):
            raise ValueError(f"every layer needs at least one unit, found layers={self.layers}")
        return self


class TrainingOptions(BaseModel, frozen=True, extra="forbid"):
    """How a model is trained, as opposed to what is trained: these do not change what is learned, but for the seed."""

    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto takes CUDA where there is one.")
    seed: int = Field(42, ge=0, description="Decides initial weights, order of users, and draws.")
    n_threads: int = Field(0, ge=0, description="CPU threads; 0 leaves torch's own choice.")
    checkpoint_seconds: float = Field(10.0, ge=0, description="Least time between checkpoints; 0 writes every epoch.")

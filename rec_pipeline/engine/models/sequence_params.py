"""Settings of the sequence model, apart from the network so that reading them does not import torch."""

from typing import Self

from pydantic import BaseModel, Field, model_validator

from rec_pipeline.engine.data.batches import RECENT_EVENTS

SMALL_DIM, LARGE_DIM = 64, 128
SMALL_BATCH, LARGE_BATCH = 1024, 2048
SMALL_EVENTS = 200_000


class SequenceParams(BaseModel, frozen=True, extra="forbid"):
    """Hyper-parameters of the sequence model; the defaults come from the measured runs in docs/BENCHMARKS.md."""

    embedding_dim: int | None = Field(
        None,
        ge=1,
        le=2048,
        description="Width of the item vectors and of every layer; by default 64, above 200,000 training events 128.",
    )
    n_layers: int = Field(2, ge=1, le=16, description="Attention layers.")
    n_heads: int = Field(2, ge=1, le=64, description="Heads of a layer; divides embedding_dim.")
    max_length: int = Field(
        100,
        ge=2,
        le=RECENT_EVENTS,
        description="Events that are looked at together; longer histories are learned from in pieces of that length.",
    )
    dropout: float = Field(0.4, ge=0, lt=1, description="Share of the input and of each layer's output set to zero.")
    n_negatives: int = Field(
        2048, ge=1, description="Items drawn once for a batch; all of them if the catalogue is no larger."
    )
    batch_events: int | None = Field(
        None,
        ge=1,
        description="Events predicted in a training step; by default 1,024, above 200,000 training events 2,048.",
    )
    learning_rate: float = Field(4e-3, gt=0, description="Rate of AdamW, reached in the course of the first epoch.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay of AdamW.")
    epochs: int = Field(
        100, ge=1, description="At most so many epochs, each of all training events, or of about a million of them."
    )
    patience: int = Field(2, ge=1, description="Epochs without a better validation ndcg@10 after which training ends.")

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Self:
        width = self.embedding_dim or SMALL_DIM  # which divides the larger default
        if width % self.n_heads:
            raise ValueError(f"n_heads must divide embedding_dim, found {self.n_heads} and {width}")
        return self

    def for_events(self, n_events: int) -> Self:
        """Return the settings with everything decided that depends on the number of training events."""
        if self.embedding_dim is not None:
            return self
        return self.model_copy(update={"embedding_dim": SMALL_DIM if n_events <= SMALL_EVENTS else LARGE_DIM})

    def events_a_step(self, n_events: int) -> int:
        """Return the events of a batch for so many training events."""
        return self.batch_events or (SMALL_BATCH if n_events <= SMALL_EVENTS else LARGE_BATCH)

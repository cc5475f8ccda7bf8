"""The text encoder as Dagster sees it."""

from pathlib import Path

import dagster as dg
from pydantic import Field

from rec_pipeline.engine.embeddings import MAX_TOKENS
from rec_pipeline.engine.embeddings.encoder import SentenceTransformerEncoder, TextEncoder
from rec_pipeline.engine.embeddings.item_embeddings import EmbeddingCache


class Encoder(dg.ConfigurableResource[None]):
    """Turns item text into vectors and remembers them by content."""

    model_id: str = Field(description="all-MiniLM-L6-v2 (packaged), a local folder, or a model name on the hub.")
    max_tokens: int = Field(MAX_TOKENS, description="Word pieces of a text that are read; the rest is cut.")
    cache_dir: str = Field(description="Folder of vectors by the sha256 of model and text.")

    def open(self) -> TextEncoder:
        """Return the encoder; the model is loaded when first used."""
        return SentenceTransformerEncoder(self.model_id, max_tokens=self.max_tokens)

    def cache(self) -> EmbeddingCache:
        """Return the cache of vectors."""
        return EmbeddingCache(Path(self.cache_dir))

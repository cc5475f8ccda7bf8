"""Item vectors: the text encoder, the text of an item, and the vectors with their cache."""

from typing import Final

MAX_TOKENS: Final = 48  # of a text: title, categories and how the description begins (docs/BENCHMARKS.md)

"""Item vectors: the text encoder, the text of an item, and the vectors with their cache."""

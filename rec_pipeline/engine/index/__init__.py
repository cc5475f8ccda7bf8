"""FAISS indexes over item vectors: build, search, recall against exact search."""

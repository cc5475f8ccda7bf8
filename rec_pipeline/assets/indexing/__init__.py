"""FAISS indexes over the embeddings."""

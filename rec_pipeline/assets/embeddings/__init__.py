"""Vectors of items, from their text and from the models."""

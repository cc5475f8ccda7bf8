"""Sealed generations of lists, their publication to Redis or Valkey, and reading them back."""

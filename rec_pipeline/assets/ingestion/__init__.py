"""Interactions and items: read, validated, split."""

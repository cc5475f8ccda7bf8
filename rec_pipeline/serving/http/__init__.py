"""The HTTP service over the hybrid recommender, and its page."""

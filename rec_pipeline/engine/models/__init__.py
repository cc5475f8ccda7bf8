"""Models that score every item for a batch of users: NCF and the baselines that every report shows beside it."""

"""Weights for the merge, found on validation data."""

from collections.abc import Callable, Mapping, Sequence

from rec_pipeline.engine.data.batches import IdxMatrix, Ranking
from rec_pipeline.engine.recommenders.fusion import fuse

GRID = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
MAX_ROUNDS = 5


def tune_weights(
    rankings: Mapping[str, Ranking],
    start: Mapping[str, float],
    quality: Callable[[IdxMatrix], float],
    *,
    rank_constant: int,
    top_k: int,
    grid: Sequence[float] = GRID,
) -> tuple[dict[str, float], float]:
    """
    Climb from ``start`` to weights under which the merged list is best.

    One source after the other is given each share of ``grid``, the others keeping their proportions, until a round over
    all sources brings nothing. Shares stay above 0, so that every source serves the users whom no other knows.

    Parameters
    ----------
    rankings
        What each source recommends to the validation users, computed from what was known before the validation period.
    start
        Weights to begin with, by source; kept where nothing is better.
    quality
        Worth of merged lists, item rows of shape (n_users, top_k); higher is better, e.g. mean ndcg.
    rank_constant, top_k
        As for ``fuse``.
    grid
        Shares to try, each in (0, 1).

    Returns
    -------
    dict
        Weights by source, summing to 1.
    float
        Their quality. On the data they were tuned on, so an optimistic one.
    """

    def worth(weights: Mapping[str, float]) -> float:
        return quality(fuse(rankings, weights, rank_constant=rank_constant, top_k=top_k).ranking.item_idx)

    best = {name: start[name] / sum(start.values()) for name in sorted(rankings)}
    best_worth = worth(best)
    for _ in range(MAX_ROUNDS if len(best) > 1 else 0):
        worth_before = best_worth
        for name in best:
            centre = best
            for share in grid:
                rest = (1 - share) / (1 - centre[name])
                weights = {other: share if other == name else weight * rest for other, weight in centre.items()}
                if (found := worth(weights)) > best_worth:
                    best, best_worth = weights, found
        if best_worth == worth_before:
            break
    return best, best_worth

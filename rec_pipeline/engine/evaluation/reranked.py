"""What re-ranking does to the hybrid: the price of variety, and the worth of context."""

from dataclasses import replace

import numpy as np
import pandas as pd

from rec_pipeline.engine import columns as c
from rec_pipeline.engine.data.batches import Ranking
from rec_pipeline.engine.data.id_map import NO_IDX
from rec_pipeline.engine.data.space import in_blocks
from rec_pipeline.engine.data.split import InteractionSplit
from rec_pipeline.engine.evaluation.metrics import accuracy_metrics, list_diversity
from rec_pipeline.engine.evaluation.params import EvaluationParams
from rec_pipeline.engine.evaluation.protocol import HeldOut
from rec_pipeline.engine.evaluation.significance import bootstrap_intervals
from rec_pipeline.engine.recommenders.bundle import ServingBundle
from rec_pipeline.engine.recommenders.context_gain import user_gains

TRADE_OFFS = (1.0, 0.9, 0.8, 0.7, 0.5, 0.3)
CUTOFF = 10
MAX_USERS = 1000
BATCH_SIZE = 128  # variety holds the vectors of all candidates of a batch: 20 MB


def variety_curve(bundle: ServingBundle, split: InteractionSplit, params: EvaluationParams) -> pd.DataFrame | None:
    """
    Return accuracy and diversity of the hybrid's first ten by the trade-off of maximal marginal relevance.

    Parameters
    ----------
    bundle
        The evaluated parts, in the rows of ``split``.
    split
        History is ``split.fitting``, held out is ``split.test``.
    params
        Seed of the sample where more than ``MAX_USERS`` users have held-out items.

    Returns
    -------
    pd.DataFrame
        One row a trade-off: ``mmr_trade_off`` (1: as merged), ``ndcg@10``, ``diversity@10``, means over users.
        None if no item has a content vector.
    """
    if not bundle.content_embeddings.vectors.any():
        return None
    held_out = HeldOut.of(split, params, MAX_USERS)
    hybrid, vectors = bundle.recommender(), bundle.content_embeddings.vectors
    found: dict[float, list[np.ndarray[tuple[int, ...], np.dtype[np.float64]]]] = {share: [] for share in TRADE_OFFS}
    done = 0
    for users in bundle.batches(held_out.user_idx, BATCH_SIZE):
        relevant = held_out.relevant[done : done + len(users)]
        done += len(users)
        rankings = {name: hybrid.rank_source(name, users, CUTOFF) for name in hybrid.active_sources}
        for share, pieces in found.items():
            varied = replace(hybrid, params=hybrid.params.model_copy(update={"mmr_trade_off": share}))
            lists = varied.merge(rankings, users, CUTOFF).ranking.item_idx
            ndcg = accuracy_metrics(lists, relevant, [CUTOFF])[c.NDCG]
            pieces.append(np.column_stack([ndcg, list_diversity(lists, vectors, [CUTOFF])[c.DIVERSITY]]))
    rows = [(share, *np.nanmean(np.concatenate(pieces), axis=0).tolist()) for share, pieces in found.items()]
    return pd.DataFrame(rows, columns=[c.TRADE_OFF, c.NDCG, c.DIVERSITY])


def context_gain(bundle: ServingBundle, split: InteractionSplit, params: EvaluationParams) -> pd.DataFrame | None:
    """
    Return how much better the hybrid foresees test events when each is ranked in its own context.

    An event is worth ``1 / log2(1 + rank)`` among the first ten; a user is the mean of their events. The lifts were
    learnt from ``split.fitting``, their strength on the validation part.

    Returns
    -------
    pd.DataFrame
        One row: ``n_users``, ``n_events``, ``context_strength``, ``before`` and ``after`` (means over users),
        ``difference`` with the ``low`` and ``high`` end of its paired bootstrap interval. None if the strength is 0,
        so that context re-ranks nothing.
    """
    hybrid = bundle.recommender()
    if not hybrid.params.context_strength:
        return None
    user_idx = HeldOut.of(split, params).user_idx
    n_candidates = hybrid.params.n_candidates
    lists = [hybrid.recommend(users, n_candidates) for users in bundle.batches(user_idx, params.batch_size)]
    merged = Ranking.joined(lists)
    row = np.full(len(split.users), NO_IDX)
    row[user_idx] = np.arange(len(user_idx))
    parts = (split.test.iloc[block] for block in in_blocks(len(split.test)))
    events = pd.concat([part[row[part[c.USER_IDX]] != NO_IDX] for part in parts])
    of_event = row[events[c.USER_IDX]]
    strength = hybrid.params.context_strength
    before, after = user_gains(merged, of_event, events, bundle.lifts, (0.0, strength))
    resampling = params.model_dump(include={"n_resamples", "confidence", "seed"})
    difference = bootstrap_intervals((after - before)[:, None], **resampling)[0]
    return pd.DataFrame(
        {
            c.N_USERS: [len(before)],
            c.N_EVENTS: [len(events)],
            c.STRENGTH: [strength],
            c.BEFORE: [before.mean()],
            c.AFTER: [after.mean()],
            c.DIFFERENCE: [difference.mean],
            c.LOW: [difference.low],
            c.HIGH: [difference.high],
        }
    )

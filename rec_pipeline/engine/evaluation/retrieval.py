"""
Quality of retrieval, apart from ranking: what is lost before anything is ranked, no ranking can bring back.

An index is compared with exact search over the same vectors; the pool of candidates, which the sources of the hybrid
hand to the merge, with what was held out.
"""

from typing import Final

import numpy as np
import pandas as pd

from rec_pipeline.engine import columns as c
from rec_pipeline.engine.data.batches import IdxMatrix, is_member
from rec_pipeline.engine.data.id_map import NO_IDX
from rec_pipeline.engine.data.split import InteractionSplit
from rec_pipeline.engine.embeddings.item_embeddings import collaborative_embeddings, sequence_embeddings
from rec_pipeline.engine.evaluation.params import EvaluationParams
from rec_pipeline.engine.evaluation.protocol import HeldOut
from rec_pipeline.engine.index.queries import index_recall
from rec_pipeline.engine.recommenders.bundle import ServingBundle

EXACT_SEARCH: Final = "exact search"
HELD_OUT_ITEMS: Final = "held-out items"
INDEX_CUTOFF: Final = 100
MAX_USERS: Final = 5000  # whose pools tell a recall to half a percent


def retrieval_quality(
    bundle: ServingBundle, split: InteractionSplit, params: EvaluationParams | None = None
) -> pd.DataFrame:
    """
    Measure what the indexes find of exact search, and what the pools hold of the held-out items.

    The recall of a pool is held-out items in it over all held-out items of the user, averaged over the users with one.
    It is the best recall that any order of the pool can reach. The fallback that fills up short lists is left out.

    Parameters
    ----------
    bundle
        The evaluated parts, in the rows of ``split``.
    split
        History is ``split.fitting``, held out is ``split.test``.
    params
        Whose users, ``MAX_USERS`` at most, and batch size are taken; the defaults if omitted.

    Returns
    -------
    pd.DataFrame
        One row an index or pool: ``retrieved_by``, ``compared_with``, ``cutoff`` (items asked for; of a union, of each
        source) and ``recall`` in [0, 1].
    """
    rows = [
        ("collaborative index", EXACT_SEARCH, INDEX_CUTOFF, index_recall(
            bundle.collaborative_index, collaborative_embeddings(bundle.items, bundle.ncf.item_vectors()), INDEX_CUTOFF
        )),
        ("sequence index", EXACT_SEARCH, INDEX_CUTOFF, index_recall(
            bundle.sequence_index,
            sequence_embeddings(bundle.items, bundle.sequence.item_vectors(), bundle.sequence.is_fitted_item),
            INDEX_CUTOFF,
        )),
        ("content index", EXACT_SEARCH, INDEX_CUTOFF, index_recall(
            bundle.content_index, bundle.content_embeddings, INDEX_CUTOFF
        )),
    ]  # fmt: skip
    params = params or EvaluationParams()
    held_out = HeldOut.of(split, params, MAX_USERS)
    n_relevant = np.diff(held_out.relevant.indptr)
    hybrid = bundle.recommender()
    n_candidates = hybrid.params.n_candidates
    n_found = {name: np.zeros(len(n_relevant)) for name in (*hybrid.sources, "union of the sources")}
    done = 0
    for batch in bundle.batches(held_out.user_idx, params.batch_size):
        place = slice(done, done + len(batch))
        done += len(batch)
        pools = {name: source.recommend(batch, n_candidates).item_idx for name, source in hybrid.sources.items()}
        pools["union of the sources"] = distinct(np.concatenate(list(pools.values()), axis=1))
        for name, pool in pools.items():
            n_found[name][place] = is_member(pool, held_out.relevant[place]).sum(axis=1)
    rows += [
        (f"pool: {name}", HELD_OUT_ITEMS, n_candidates, float((found / n_relevant).mean()))
        for name, found in n_found.items()
    ]
    return pd.DataFrame(rows, columns=[c.RETRIEVED_BY, c.COMPARED_WITH, c.CUTOFF, c.RECALL])


def distinct(item_idx: IdxMatrix) -> IdxMatrix:
    """
    Return each row sorted, ``-1`` in the place of repeats.

    Examples
    --------
    >>> distinct(np.array([[4, 2, 4, -1]]))
    array([[-1,  2,  4, -1]])
    """
    ordered = np.sort(item_idx, axis=1)
    ordered[:, 1:][ordered[:, 1:] == ordered[:, :-1]] = NO_IDX
    return ordered

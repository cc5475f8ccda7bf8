"""Why an item is in a list, in words: the item of the user's own history that is nearest to it."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from rec_pipeline.engine.data.batches import IdxMatrix, IdxVector
from rec_pipeline.engine.data.id_map import NO_IDX
from rec_pipeline.engine.recommenders.fusion import Explained
from rec_pipeline.engine.recommenders.params import EXPLORATION, TRENDING

POPULAR = "Popular right now"
PERSONAL = "Matches your taste"
EXPLORED = "Something different"
HISTORY_LOOKED_AT = 100
# float32 numbers held at once for the histories of a slice of users: 8 MB, which stay in the processor's cache.
GATHERED_NUMBERS = 2_000_000


def because(title: str) -> str:
    """Return the reason that names an item of the history."""
    return f'Because you liked "{title}"'


def reason_texts(titles: npt.NDArray[np.object_]) -> npt.NDArray[np.object_]:
    """Return str objects of shape (n_items + 3,): ``because`` of each title, then the reasons without a title."""
    return np.array([*(because(title) for title in titles), POPULAR, PERSONAL, EXPLORED], dtype=object)


def nearest_in_history(
    explained: Explained, history: sp.csr_matrix, spaces: Mapping[str, npt.NDArray[np.float32]]
) -> IdxMatrix:
    """
    Find the history item that explains each recommended item best.

    Items are compared in the space of the source with the largest share in the recommended item, by cosine. Of a long
    history, the ``HISTORY_LOOKED_AT`` items with the largest weights are considered.

    Parameters
    ----------
    explained
        Lists of a batch of users.
    history : CSR of shape (n_users, n_items)
        What the same users interacted with.
    spaces
        Unit item vectors by source name, float32 of shape (n_items, dim); a zero row is an item without a vector.

    Returns
    -------
    int64 of shape (n_users, top_k)
        Item rows; ``-1`` for fallback items, and where no item of the history is near at all (cosine above 0).
    """
    own_items = heaviest_items(history, HISTORY_LOOKED_AT)  # (n_users, n_own)
    n_own = np.count_nonzero(own_items != NO_IDX, axis=1)
    nearest = np.full(explained.ranking.item_idx.shape, NO_IDX, dtype=np.int64)
    main_source = explained.share.argmax(axis=2)
    for column, source in enumerate(explained.sources):
        if source not in spaces:
            continue
        vectors = spaces[source]
        asked = explained.is_present & ~explained.is_fallback & (main_source == column)
        n_asked = np.where(n_own > 0, asked.sum(axis=1), 0)
        asked_first = np.argsort(~asked, axis=1, kind="stable")
        # Users with histories of like length go together, so that little is spent on padding.
        users = np.flatnonzero(n_asked)[np.argsort(n_own[n_asked > 0], kind="stable")]
        users_at_once = max(1, GATHERED_NUMBERS // max(1, own_items.shape[1] * vectors.shape[1]))
        for start in range(0, len(users), users_at_once):
            rows = users[start : start + users_at_once]
            own = own_items[rows, : n_own[rows[-1]]]
            places = asked_first[rows, : n_asked[rows].max()]  # (users, n_places)
            user = np.arange(len(rows))[:, None]
            recommended = vectors[explained.ranking.item_idx[rows[:, None], places]]  # (users, n_places, dim)
            cosine = recommended @ vectors[own].transpose(0, 2, 1)  # (users, n_places, n_own)
            cosine = np.where((own == NO_IDX)[:, None, :], -np.inf, cosine)
            best = cosine.argmax(axis=2)
            is_near = cosine[user, np.arange(best.shape[1]), best] > 0
            is_near &= asked[rows[:, None], places]
            nearest[rows[:, None], places] = np.where(is_near, own[user, best], nearest[rows[:, None], places])
    return nearest


def heaviest_items(history: sp.csr_matrix, n_kept: int) -> IdxMatrix:
    """
    Return the items of the largest weights of each row, int64 of shape (n_users, at most ``n_kept``), ``-1`` padded.

    Equal weights are ordered by item row.

    Examples
    --------
    >>> heaviest_items(sp.csr_matrix(np.array([[1, 5, 5, 0], [0, 0, 0, 0]])), n_kept=2)
    array([[ 1,  2],
           [-1, -1]])
    """
    n_own = np.diff(history.indptr)
    rows: IdxVector = np.repeat(np.arange(history.shape[0]), n_own)
    order = np.lexsort((history.indices, -history.data, rows))
    place = np.arange(len(rows)) - history.indptr[rows]
    kept = place < n_kept
    items = np.full((history.shape[0], min(n_kept, int(n_own.max(initial=0)))), NO_IDX, dtype=np.int64)
    items[rows[kept], place[kept]] = history.indices[order[kept]]
    return items


def reason_rows(
    explained: Explained, history: sp.csr_matrix, spaces: Mapping[str, npt.NDArray[np.float32]]
) -> IdxMatrix:
    """
    Return the row of ``reason_texts`` for every recommended item, int64 of shape (n_users, top_k).

    The parameters are those of ``nearest_in_history``. What is trending says so where it has the largest share. Where a
    list holds no item the row means nothing.
    """
    n_items = history.shape[1]
    nearest = nearest_in_history(explained, history, spaces)
    main_source = np.array(explained.sources)[explained.share.argmax(axis=2)]
    is_popular = explained.is_fallback | (main_source == TRENDING)
    rows = np.where(is_popular, n_items, np.where(nearest == NO_IDX, n_items + 1, nearest))
    return np.where(main_source == EXPLORATION, n_items + 2, rows)

"""Answers made for one question: its sources asked, merged, filtered, explained."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np
import scipy.sparse as sp

from rec_pipeline.engine.data.batches import RECENT_EVENTS, BoolVector, IdxVector, Ranking, UserBatch
from rec_pipeline.engine.data.id_map import NO_IDX
from rec_pipeline.engine.errors import RecPipelineError
from rec_pipeline.engine.recommenders.fusion import NO_RANK, Explained
from rec_pipeline.engine.recommenders.params import CONTENT
from rec_pipeline.engine.recommenders.reasons import reason_rows
from rec_pipeline.serving.answers import GENERATED, POPULAR, Answer, Recommendation
from rec_pipeline.serving.bundles import LoadedBundle
from rec_pipeline.serving.lanes import Lanes
from rec_pipeline.serving.params import Request

if TYPE_CHECKING:
    from rec_pipeline.engine.embeddings.encoder import TextEncoder, Vectors

WEIGHT_OF_AN_EVENT: Final = np.float32(1.0)

OnSource = Callable[[str, float, str], None]


class LiveRecommender:
    """
    Makes answers with a bundle.

    Parameters
    ----------
    source_budget
        Seconds each source has, see ``Lanes``.
    encoder
        Makes the text encoder for taste in words; called on first use.
    text_budget
        Seconds that reading the words may take, the first time with the loading of the encoder.
    on_source
        Told of each source asked: its name, its seconds, and ``ok``, ``late``, ``busy`` or the name of its error.
    """

    def __init__(
        self,
        source_budget: float,
        encoder: "Callable[[], TextEncoder]",
        text_budget: float,
        on_source: OnSource | None = None,
    ) -> None:
        self._lanes = Lanes(source_budget)
        self._make_encoder = encoder
        self._text_budget = text_budget
        self._readers = ThreadPoolExecutor(1, thread_name_prefix="text")
        self._encoder: TextEncoder | None = None
        self._preparation: Future[tuple[Vectors, str]] | None = None
        self._on_source = on_source or (lambda *_: None)

    async def answer(
        self, loaded: LoadedBundle, request: Request, events: Sequence[str] = (), only: Sequence[str] | None = None
    ) -> Answer:
        """
        Answer ``request``.

        Parameters
        ----------
        loaded
            What to answer with.
        events
            Item ids the user touched lately, oldest first; items outside the catalogue count for nothing.
        only
            Sources to ask; all that have a weight by default.
        """
        started = time.time()
        users = user_batch(loaded, request, events)
        eligible = eligible_items(loaded, request)
        names = [name for name in loaded.hybrid.active_sources if only is None or name in only]
        rank = loaded.hybrid.rank_source
        outcomes = await self._lanes.ask(
            {name: partial(rank, name, users, request.top_k, eligible=eligible) for name in names}
        )
        for name, outcome in outcomes.items():
            self._on_source(name, outcome.seconds, outcome.name)
        left_out = {name: outcome.failure for name, outcome in outcomes.items() if outcome.failure}
        rankings = {name: outcome.result for name, outcome in outcomes.items() if outcome.result is not None}
        if request.text:
            from_text = await self._from_text(loaded, request, users, eligible)
            if isinstance(from_text, str):
                left_out[CONTENT] = from_text
            else:
                # Who says what they like wants that, and not what everybody gets.
                rankings = {name: found for name, found in rankings.items() if name not in loaded.hybrid.impersonal}
                rankings[CONTENT] = from_text
                left_out.pop(CONTENT, None)
        explained = loaded.hybrid.merge(rankings, users, request.top_k, eligible=eligible, context=request.context)
        return self._answer(loaded, request, users, explained, left_out, started)

    def prepare(self) -> "Future[tuple[Vectors, str]]":
        """Load the text encoder behind, so that the first words do not wait for it; done when it is."""
        self._preparation = self._readers.submit(self._encode, "words")
        return self._preparation

    @property
    def is_preparing(self) -> bool:
        """Whether the text encoder is being loaded, which keeps other answers waiting for a fifth of a second."""
        return self._preparation is not None and not self._preparation.done()

    def close(self) -> None:
        """End the threads, without waiting for a source that hangs."""
        self._lanes.close()
        self._readers.shutdown(wait=False, cancel_futures=True)

    def _answer(
        self,
        loaded: LoadedBundle,
        request: Request,
        users: UserBatch,
        explained: Explained,
        left_out: Mapping[str, str],
        started: float,
    ) -> Answer:
        rows = reason_rows(explained, users.history, loaded.bundle.spaces)[0]
        items, shares = items_of(loaded, explained, rows)
        return Answer(
            user_id=request.user_id,
            items=items,
            source=GENERATED if explained.is_personal[0] else POPULAR,
            bundle=loaded.version,
            made_at=started,
            degraded=bool(left_out),
            reason=", ".join(f"{name}: {why}" for name, why in left_out.items()),
            left_out=left_out,
            shares=shares,
        )

    async def _from_text(
        self, loaded: LoadedBundle, request: Request, users: UserBatch, eligible: BoolVector
    ) -> Ranking | str:
        bundle = loaded.bundle
        reading = self._readers.submit(self._encode, request.text)
        try:
            query, encoder = await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(reading)), self._text_budget)
        except TimeoutError:
            return "late: the text encoder is still loading"
        except RecPipelineError as error:
            return f"failed: {error}"
        if _content_of(encoder) != _content_of(bundle.content_embeddings.space):
            return f"failed: words are read by {encoder}, the items' texts were by {bundle.content_embeddings.space}"
        return bundle.content_index.search(
            query,
            max(request.top_k, loaded.hybrid.params.n_candidates),
            eligible=eligible,
            excluded=users.history,
        )

    def _encode(self, text: str) -> "tuple[Vectors, str]":
        if self._encoder is None:
            self._encoder = self._make_encoder()
        return self._encoder.encode([text]), self._encoder.model_id


def _content_of(model_id: str) -> str:
    """Return what tells one encoder from another wherever its folder lies: digest and ``max_tokens``."""
    return model_id.rpartition("@")[2]


def user_batch(loaded: LoadedBundle, request: Request, events: Sequence[str]) -> UserBatch:
    """Return the one user of a request: what the bundle knows, then ``events``, then the session's items."""
    bundle = loaded.bundle
    n_items = len(bundle.items)
    row = NO_IDX if request.user_id is None else bundle.users.row(request.user_id)
    rows = [loaded.rows.get(item_id, NO_IDX) for item_id in (*events, *request.items)]
    latest: IdxVector = np.array([idx for idx in rows if idx != NO_IDX], dtype=np.int64)
    weights = np.zeros(n_items, dtype=np.float32)
    if row != NO_IDX:
        known = slice(bundle.history.indptr[row], bundle.history.indptr[row + 1])
        weights[bundle.history.indices[known]] = bundle.history.data[known]
    weights[latest] = np.maximum(weights[latest], WEIGHT_OF_AN_EVENT)
    items = np.flatnonzero(weights)
    history = sp.csr_matrix((weights[items], items, np.array([0, len(items)])), shape=(1, n_items))
    is_latest = np.zeros(n_items + 1, dtype=np.bool_)
    is_latest[latest] = True
    before = bundle.sequences.recent(np.array([row], dtype=np.int64))[0]
    recent = np.concatenate([before[~is_latest[before]], latest])[-RECENT_EVENTS:]
    return UserBatch(np.array([row], dtype=np.int64), history, recent[None, :])


def eligible_items(loaded: LoadedBundle, request: Request) -> BoolVector:
    """Return the items that may be shown now and that the request leaves, bool of shape (n_items,)."""
    excluded = np.array([loaded.rows.get(item_id, NO_IDX) for item_id in request.exclude], dtype=np.int64)
    return loaded.bundle.facts.eligible(
        time.time(), allowed=request.categories, denied=request.without_categories, excluded=excluded
    )


def items_of(
    loaded: LoadedBundle, explained: Explained, reasons: IdxVector
) -> tuple[list[Recommendation], list[dict[str, float]]]:
    """Return the first user's list in ids, and each item's shares by source, the largest first."""
    items: list[Recommendation] = []
    shares: list[dict[str, float]] = []
    ids, names = loaded.bundle.items.ids, explained.sources
    ranking, share = explained.ranking, explained.share[0].tolist()
    order = np.argsort(-explained.share[0], axis=1, kind="stable")
    has_rank = np.take_along_axis(explained.rank[0] != NO_RANK, order, axis=1).tolist()
    for place, row in enumerate(ranking.item_idx[0].tolist()):
        if row == NO_IDX:
            break
        of_item = {
            names[column]: round(share[place][column], 4)
            for column, is_source in zip(order[place].tolist(), has_rank[place], strict=True)
            if is_source
        }
        items.append(
            {
                "id": ids[row],
                "score": round(float(ranking.score[0, place]), 6),
                "sources": list(of_item),
                "reason": loaded.reasons[reasons[place]],
            }
        )
        shares.append(of_item)
    return items, shares

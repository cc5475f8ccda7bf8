"""
From a question to an answer: kept answers first, then what is published, then what is made for the question.

An answer younger than ``update_interval`` is served as it is; an older one is served too and made anew behind; past
``cache_ttl``, after an event of the user or under a new generation it counts for nothing. While others wait for
theirs, a published list that lacks only what the user did some time ago is served like one that is older, less what
they touched: after a publication or a new bundle all who did something since would need an answer at the same time.
Whatever fails on the way costs quality and not the answer, which says so.
"""

import asyncio
import hashlib
import time
import weakref
import zlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

import orjson

from rec_pipeline.engine.data.experiment import Experiment
from rec_pipeline.engine.errors import ArtifactIntegrityError, RecPipelineError, StoredValueError
from rec_pipeline.engine.store.generation import Generation, list_generations
from rec_pipeline.engine.store.suppression import digest_of, suppressed_on_disk
from rec_pipeline.serving.answers import CACHE, POPULAR, SNAPSHOT, Answer, Recommendation, published_items
from rec_pipeline.serving.bundles import BundleHolder, LoadedBundle
from rec_pipeline.serving.impressions import Impressions
from rec_pipeline.serving.live import LiveRecommender
from rec_pipeline.serving.params import MAX_TOP_K, Request
from rec_pipeline.serving.store import OnlineStore, StoreUnavailableError, UserState

JITTER: Final = 0.1
MADE_AT_ONCE: Final = 2
WAITING: Final = 100
WAITING_SECONDS: Final = 1.0
RECENT_SECONDS: Final = 10.0  # an event younger than this is worth waiting for
HELD: Final = 10_000  # answers of some 3 kB
FORGOTTEN_SECONDS: Final = 30.0
POPULAR_SECONDS: Final = 60.0  # for which the list for everybody is used again
REST: Final = 199.0  # times as long as making an answer ahead took: a two-hundredth of the time goes into them

OnAnswer = Callable[[Answer, float], None]


class NothingToServeError(RecPipelineError):
    """There is neither a published list nor a bundle, and the store cannot be asked."""

    exit_code = 6
    is_transient = True


@dataclass(frozen=True)
class Kind:
    """
    Which recommender answers.

    Attributes
    ----------
    name
        Part of the name of kept answers.
    only
        Sources it asks; None for all.
    takes_published
        Whether the published lists are its own answers.
    experiment, variant
        What the user takes part in; empty for nobody.
    params
        What differs in that variant from the fusion of the bundle.
    """

    name: str
    only: tuple[str, ...] | None = None
    takes_published: bool = True
    experiment: str = ""
    variant: str = ""
    params: Mapping[str, Any] | None = None

    def in_variant(self, experiment: Experiment, variant: str) -> "Kind":
        """Return it as it is for users of a variant; one with other params has answers of its own."""
        kind = replace(self, experiment=experiment.name, variant=variant)
        params = experiment.params.get(variant)
        if not params:
            return kind
        name = f"{self.name}@{hashlib.blake2b(orjson.dumps(params), digest_size=6).hexdigest()}"
        return replace(kind, name=name, takes_published=False, params=params)


@dataclass
class _InLoop:
    """What belongs to one event loop: answers being made, how many at a time, and those to be made behind and ahead."""

    flights: dict[tuple[str, str], "asyncio.Task[Answer]"] = field(default_factory=dict)
    gate: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MADE_AT_ONCE))
    due: dict[tuple[str, str], tuple[Request, Kind]] = field(default_factory=dict)
    behind: "asyncio.Task[None] | None" = None
    ahead: "asyncio.Task[None] | None" = None
    rests_until: float = 0.0


class RecommendationService:
    """
    Answers questions.

    Parameters
    ----------
    store, bundles, live
        What it asks, in this order.
    generations
        Folder of the sealed generations: the popular list of last resort.
    update_interval, cache_ttl
        Seconds, as above; each varies by up to a tenth from user to user, so that not all fall due at once.
    strict
        Raise instead of answering with less.
    experiment
        Says in which variant a user is; those of a variant with ``params`` get live answers made with them.
    impressions
        Where answers are recorded as shown; None for nowhere.
    on_answer
        Told of each answer and the seconds it took.
    """

    def __init__(
        self,
        store: OnlineStore,
        bundles: BundleHolder,
        live: LiveRecommender,
        generations: Path,
        *,
        update_interval: float,
        cache_ttl: float,
        strict: bool = False,
        experiment: Experiment,
        impressions: Impressions | None = None,
        on_answer: OnAnswer | None = None,
    ) -> None:
        self.store, self.bundles, self.live, self.generations = store, bundles, live, generations
        self._update_interval, self._cache_ttl, self._strict = update_interval, cache_ttl, strict
        self._experiment, self._impressions = experiment, impressions
        self._on_answer = on_answer or (lambda *_: None)
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _InLoop] = weakref.WeakKeyDictionary()
        self._kinds: dict[tuple[str, str], Kind] = {}
        self._n_making = 0
        self._held: dict[tuple[str, str], bytes] = {}
        self._for_everybody: tuple[Answer, list[int]] | None = None
        self._sealed: Generation | None = None
        self._sealed_items: list[Recommendation] = []
        self._generation_seen = -1
        self._forgotten: frozenset[str] | None = None
        self._forgotten_until = 0.0

    async def answer(self, request: Request, kind: Kind) -> Answer:
        """
        Answer ``request``.

        Raises
        ------
        NothingToServeError
            If nothing was ever made here, and the store does not answer either.
        StoreUnavailableError, ArtifactIntegrityError
            With ``strict``, instead of a degraded answer.
        """
        started = time.perf_counter()
        self.bundles.refresh_behind()
        if request.user_id is not None:
            kind = self._in_experiment(kind, request.user_id)
        answer = await self._answer(request, kind)
        if answer.user_id is not None:
            answer = replace(answer, experiment=kind.experiment, variant=kind.variant)
        self._on_answer(answer, time.perf_counter() - started)
        if self._impressions is not None:
            self._impressions.add(answer)
        return answer

    def _in_experiment(self, kind: Kind, user_id: str) -> Kind:
        key = kind.name, self._experiment.variant(user_id)
        if key not in self._kinds:
            self._kinds[key] = kind.in_variant(self._experiment, key[1])
        return self._kinds[key]

    async def look(self) -> None:
        """Learn what is live and whether there is a newer bundle."""
        self.bundles.refresh_behind()
        await self.store.look()
        self._follow_generation()

    async def settled(self) -> None:
        """Wait until nothing is being made anew or recorded behind the answers."""
        here = self._here()
        await asyncio.gather(*(task for task in (here.behind, here.ahead) if task is not None), return_exceptions=True)
        if self._impressions is not None:
            await self._impressions.settled()

    async def _answer(self, request: Request, kind: Kind) -> Answer:
        bucket = context_bucket(self.bundles.current, request, kind)
        if self.bundles.current is not None and not bucket:
            request = replace(request, context={})
        if request.user_id is None:
            return await self._made_alone(request, kind)
        field = request.cache_field(kind.name, bucket)
        try:
            if self.store.is_touched(request.user_id):
                # Nor does an answer count that is being made: it may have begun before the event.
                return await self._flight(request, kind, field, anew=True)
            version, value = await self.store.read_answer(request.user_id, field)
            self._follow_generation()
            kept = self._kept(value, version, request.user_id)
            if kept is not None:
                self._hold((request.user_id, field), value or b"")
                jitter = 1 + JITTER * _spread(request.user_id)
                if kept.age_seconds < self._update_interval * jitter:
                    return kept
                if kept.age_seconds < self._cache_ttl:
                    self._make_behind(request, kind, field)
                    return kept
            return await self._flight(request, kind, field)
        except StoreUnavailableError as error:
            if self._strict:
                raise
            return await self._without_store(request, kind, field, str(error))

    def _kept(self, value: bytes | None, version: int | None, user_id: str) -> Answer | None:
        """Return a kept answer if it still counts; ``version`` is None while the user's events are not known."""
        if value is None:
            return None
        try:
            kept = Answer.decode(value, user_id)
        except StoredValueError:
            if self._strict:
                raise
            return None
        loaded = self.bundles.current
        is_current = (
            version in {None, kept.version}
            and kept.generation == self.store.live.generation
            and (not kept.bundle or loaded is None or kept.bundle == loaded.version)
            and (loaded is None or not loaded.anything_expired_since(kept.made_at) or _is_shown_now(loaded, kept.items))
        )
        return kept if is_current else None

    def _make_behind(self, request: Request, kind: Kind, field: str) -> None:
        """Have an answer made anew once there is time, unless it is being made by now."""
        here = self._here()
        name = request.user_id or "", field
        if here.flights.get(name) in {None, asyncio.current_task()} and len(here.due) < WAITING:
            here.due[name] = request, kind
            if here.behind is None or here.behind.done():
                here.behind = asyncio.create_task(self._make_due(here))

    async def _make_due(self, here: _InLoop) -> None:
        """One at a time, so that whoever waits for an answer waits for one of these at most."""
        while here.due:
            name = next(iter(here.due))
            request, kind = here.due.pop(name)
            # What is at hand is served until it is gone; then the error shows.
            with suppress(RecPipelineError):
                await self._flight(request, kind, name[1], anew=True)

    async def _flight(self, request: Request, kind: Kind, field: str, *, anew: bool = False) -> Answer:
        """
        Make an answer once however many ask for it; one who gives up does not take it from the others.

        With ``anew`` it joins none that is being made, and nothing stands in for it.
        """
        here = self._here()
        key = request.user_id or "", field
        task = None if anew else here.flights.get(key)
        if task is None:

            def landed(done: "asyncio.Task[Answer]") -> None:
                if here.flights.get(key) is done:
                    del here.flights[key]
                if not done.cancelled():
                    done.exception()  # looked at, so that nobody having waited is not reported as an error

            task = here.flights[key] = asyncio.create_task(self._make(request, kind, field, anew=anew))
            task.add_done_callback(landed)
        return await asyncio.shield(task)

    def _here(self) -> "_InLoop":
        return self._loops.setdefault(asyncio.get_running_loop(), _InLoop())

    async def _make(self, request: Request, kind: Kind, field: str, *, anew: bool) -> Answer:
        user_id = request.user_id or ""
        state = await self.store.read_user(user_id)
        self._follow_generation()
        if state.is_forgotten:
            self._held.pop((user_id, field), None)
            return await self._made_alone(replace(request, user_id=None), kind)
        listed = self._listed(request, kind, state)
        if listed is not None and not anew and self._may_stand_in(request, state):
            self._make_behind(request, kind, field)
            return listed
        answer = await self._from_state(request, kind, state, listed)
        answer = replace(answer, generation=answer.generation or self.store.live.generation, version=state.version)
        is_personal = answer.source != POPULAR or bool(state.events)  # ids that nobody ever had must not fill the store
        if is_personal and not answer.degraded and answer.generation == self.store.live.generation:
            ttl = self._cache_ttl * (1 - JITTER * _spread(user_id))
            value = answer.encode()
            self._hold((user_id, field), value)
            try:
                await self.store.keep_answer(user_id, field, value, ttl)
            except StoreUnavailableError as error:
                answer = answer.degraded_by(str(error))
        return answer

    def _listed(self, request: Request, kind: Kind, state: UserState) -> Answer | None:
        """Return what the request and what the user touched leave of the published list; None if that is too little."""
        loaded = self.bundles.current
        published = state.published
        if published is None or not kind.takes_published or (loaded is not None and not request.is_plain):
            return None
        items = _narrowed(shown_now(loaded, published_items(published)), request, [item for item, _ in state.events])
        if len(items) < request.top_k and loaded is not None:
            return None
        return Answer(
            request.user_id,
            items[: request.top_k],
            CACHE,
            published.generation,
            made_at=time.time(),
            version=state.version,
        )

    def _may_stand_in(self, request: Request, state: UserState) -> bool:
        """Tell whether the published list will do for once: others wait, and what it lacks did not happen just now."""
        loaded = self.bundles.current
        since = time.time() - RECENT_SECONDS
        return (
            self._n_making >= MADE_AT_ONCE
            and loaded is not None
            and not any(at > since for _, at in state.events)
            and not self._says_it_all(loaded, request, state)
        )

    async def _from_state(self, request: Request, kind: Kind, state: UserState, listed: Answer | None) -> Answer:
        loaded = self.bundles.current
        if loaded is not None:
            if listed is not None and self._says_it_all(loaded, request, state):
                return listed
            answer = await self._made(loaded, request, kind, [item for item, _ in state.events], listed)
            return answer.degraded_by(state.damage) if state.damage else answer
        why = self.bundles.error or "no serving bundle"
        if listed is not None:
            is_enough = self._is_answered_by_list(request, state)
            return listed if is_enough else listed.degraded_by(f"published list only: {why}")
        if self._strict:
            raise ArtifactIntegrityError(why)
        popular = await self.store.popular()
        if popular is None:
            raise NothingToServeError(
                "nothing is published and there is no serving bundle: `rec-pipeline run` makes both"
            )
        items = _narrowed(published_items(popular), request, [item for item, _ in state.events])
        answer = Answer(request.user_id, items[: request.top_k], POPULAR, popular.generation, made_at=time.time())
        return answer.degraded_by(f"popular list only: {why}")

    def _says_it_all(self, loaded: LoadedBundle, request: Request, state: UserState) -> bool:
        """Tell whether the published list was made with everything that is known of the user by now."""
        published_at = self.store.live.published_at
        if not request.is_plain or any(at > published_at for _, at in state.events):
            return False
        row = loaded.bundle.users.row(request.user_id or "")
        if row < 0:
            return not state.events
        touched = {loaded.rows[item] for item, _ in state.events if item in loaded.rows}
        return touched <= _rows_of(loaded, row)

    def _is_answered_by_list(self, request: Request, state: UserState) -> bool:
        return request.is_plain and not any(at > self.store.live.published_at for _, at in state.events)

    async def _made(
        self, loaded: LoadedBundle, request: Request, kind: Kind, events: Sequence[str], listed: Answer | None = None
    ) -> Answer:
        """Make an answer; where there is no place for it, what is ``listed`` or the popular list stands in."""
        async with self._place() as is_free:
            if is_free:
                changed = loaded.with_params(kind.params) if kind.params else loaded
                return await self.live.answer(changed, request, events, only=kind.only)
        return (listed or await self._popular(loaded, request, events)).degraded_by("overload")

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[bool]:
        """Wait for a place among the answers that are made at once; False if too many wait, or one has for too long."""
        if self._n_making >= MADE_AT_ONCE + WAITING:
            yield False
            return
        gate, is_free = self._here().gate, False
        self._n_making += 1
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(WAITING_SECONDS):
                    is_free = await gate.acquire()
            yield is_free
        finally:
            self._n_making -= 1
            if is_free:
                gate.release()

    async def _popular(self, loaded: LoadedBundle, request: Request, events: Sequence[str] = ()) -> Answer:
        """
        Answer at once with what is popular, which takes no words into account: they are read for too long.

        A plain question is answered from the list for everybody, less what the user has.
        """
        if request.is_plain:
            popular, rows = await self._popular_for_everybody(loaded)
            seen = _rows_of(loaded, loaded.bundle.users.row(request.user_id or ""))
            seen |= {loaded.rows[item] for item in events if item in loaded.rows}
            left = list(islice((place for place, row in enumerate(rows) if row not in seen), request.top_k))
            if len(left) == request.top_k:
                items, shares = [popular.items[place] for place in left], [popular.shares[place] for place in left]
                return replace(popular, user_id=request.user_id, items=items, shares=shares)
        return await self.live.answer(loaded, replace(request, text=""), events, only=())

    async def _popular_for_everybody(self, loaded: LoadedBundle) -> tuple[Answer, list[int]]:
        """Return what is popular, all of it shown now, and its rows in the bundle."""
        if self._for_everybody is not None:
            popular, rows = self._for_everybody
            is_current = popular.bundle == loaded.version and popular.age_seconds < POPULAR_SECONDS
            if is_current and not loaded.anything_expired_since(popular.made_at):
                return popular, rows
        popular = await self.live.answer(loaded, Request(None, MAX_TOP_K), only=())
        self._for_everybody = popular, [loaded.rows[item["id"]] for item in popular.items]
        return self._for_everybody

    async def _made_alone(self, request: Request, kind: Kind) -> Answer:
        loaded = self.bundles.current
        if loaded is not None:
            answer = await self._made(loaded, request, kind, ())
            return replace(answer, generation=self.store.live.generation)
        return await self._from_state(request, kind, UserState(None, (), 0), None)

    async def _without_store(self, request: Request, kind: Kind, field: str, why: str) -> Answer:
        """
        Answer at once with what was answered last, else with the popular list: nobody waits for the models.

        They make an answer for the next time ahead, one at a time. None of the answers knows of events since.
        """
        loaded = self.bundles.current
        if self._is_forgotten_on_disk(request.user_id or ""):
            request = replace(request, user_id=None)
        name = request.user_id or "", field
        answer = self._kept(self._held.get(name), None, name[0])
        if answer is None:
            if loaded is None:
                return self._last_resort(request, why)
            here = self._here()
            if (here.ahead is None or here.ahead.done()) and time.monotonic() >= here.rests_until:
                here.ahead = asyncio.create_task(self._make_ahead(loaded, request, kind, name))
            answer = await self._popular(loaded, request)
        live = self.store.live.generation
        return replace(answer, user_id=request.user_id, source=SNAPSHOT, generation=live, degraded=True, reason=why)

    async def _make_ahead(self, loaded: LoadedBundle, request: Request, kind: Kind, name: tuple[str, str]) -> None:
        began = time.monotonic()
        try:
            with suppress(RecPipelineError):
                made = await self._made(loaded, request, kind, ())
                if not made.degraded:
                    self._hold(name, replace(made, generation=self.store.live.generation).encode())
        finally:
            self._here().rests_until = time.monotonic() + REST * (time.monotonic() - began)

    def _hold(self, name: tuple[str, str], value: bytes) -> None:
        """Hold an encoded answer for when the store does not answer."""
        self._held.pop(name, None)
        self._held[name] = value
        if len(self._held) > HELD:
            del self._held[next(iter(self._held))]

    def _is_forgotten_on_disk(self, user_id: str) -> bool:
        """Tell whether a user asked to be forgotten; everybody counts as such while it cannot be told."""
        if self._forgotten is None or time.monotonic() > self._forgotten_until:
            try:
                self._forgotten = suppressed_on_disk(self.generations)
            except (ArtifactIntegrityError, OSError):
                self._forgotten = None
            self._forgotten_until = time.monotonic() + FORGOTTEN_SECONDS
        return self._forgotten is None or digest_of(user_id) in self._forgotten

    def _last_resort(self, request: Request, why: str) -> Answer:
        """Answer with the popular list of the newest generation sealed on this machine."""
        try:
            if self._sealed is None:
                self._sealed = list_generations(self.generations)[-1]
                row = self._sealed.popular().to_pylist()[0]
                self._sealed_items = [
                    {"id": item, "score": score, "sources": [source["name"] for source in sources], "reason": reason}
                    for item, score, sources, reason in zip(
                        row["item_id"], row["score"], row["sources"], row["reason"], strict=True
                    )
                ]
        except (IndexError, OSError, ArtifactIntegrityError) as error:
            self._sealed = None
            raise NothingToServeError(
                f"{why}; and there is neither a serving bundle nor a sealed generation"
            ) from error
        items = _narrowed(self._sealed_items, request, ())
        answer = Answer(request.user_id, items[: request.top_k], SNAPSHOT, self._sealed.number)
        return answer.degraded_by(why)

    def _follow_generation(self) -> None:
        """Answer with the bundle that what is live was made with, also after a rollback."""
        generation = self.store.live.generation
        if generation == self._generation_seen:
            return
        self._generation_seen = generation
        self._sealed = None
        try:
            found = next(g for g in list_generations(self.generations) if g.number == generation)
            self.bundles.prefer(found.metadata.get("bundle"))
        except (StopIteration, OSError, ArtifactIntegrityError):
            self.bundles.prefer(None)  # sealed elsewhere


def context_bucket(loaded: LoadedBundle | None, request: Request, kind: Kind) -> str:
    """Return what the context means to the bundle; empty if it changes nothing."""
    if loaded is None or not request.context:
        return ""
    return (loaded.with_params(kind.params) if kind.params else loaded).hybrid.context_bucket(request.context)


def _rows_of(loaded: LoadedBundle, user_row: int) -> set[int]:
    """Return the rows of the items that the bundle knows a user to have; none for row -1."""
    if user_row < 0:
        return set()
    start, end = loaded.bundle.history.indptr[user_row : user_row + 2]
    return set(loaded.bundle.history.indices[start:end].tolist())


def shown_now(loaded: LoadedBundle | None, items: Sequence[Recommendation]) -> list[Recommendation]:
    """Return the items that may be shown by now, as far as the bundle knows them; all without a bundle."""
    if loaded is None:
        return list(items)
    shown = loaded.bundle.facts.shown_at(time.time())
    return [item for item in items if (row := loaded.rows.get(item["id"])) is None or shown[row]]


def _is_shown_now(loaded: LoadedBundle, items: Sequence[Recommendation]) -> bool:
    return len(shown_now(loaded, items)) == len(items)


def _narrowed(items: Sequence[Recommendation], request: Request, seen: Sequence[str]) -> list[Recommendation]:
    """
    Return what a request leaves of a list that was made without it.

    Raises
    ------
    NothingToServeError
        If it names categories, which only a bundle knows: an item against a filter is worse than no answer.
    """
    if request.categories or request.without_categories:
        raise NothingToServeError("without a serving bundle nothing is known of categories")
    refused = {*request.exclude, *request.items, *seen}
    return [item for item in items if item["id"] not in refused]


def _spread(user_id: str) -> float:
    """Return a number in [0, 1) that differs from user to user."""
    return (zlib.crc32(user_id.encode()) % 1024) / 1024

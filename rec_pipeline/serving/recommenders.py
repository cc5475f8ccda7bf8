"""
The public recommenders: item and user ids outside, one way to ask all of them.

Each answers ``get_recommendations`` with a list of ``{"id", "score", "sources", "reason"}``, best first, whose
``answer`` attribute says where it came from. ``get_recommendations_sync`` is the same for code without an event loop.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import scipy.sparse as sp

from rec_pipeline.engine.data.batches import UserBatch
from rec_pipeline.engine.data.events import Served, make_event
from rec_pipeline.engine.data.id_map import NO_IDX
from rec_pipeline.engine.embeddings.encoder import SentenceTransformerEncoder
from rec_pipeline.engine.errors import ArtifactIntegrityError, ConfigurationError, UnknownUserError
from rec_pipeline.engine.mirrors import use_mirrors
from rec_pipeline.engine.pseudonyms import use_key_file
from rec_pipeline.engine.recommenders.params import COLLABORATIVE, CONTENT
from rec_pipeline.resources.embedded_valkey import recorded_url
from rec_pipeline.serving.answers import GENERATED, Answer, Recommendation, Recommendations
from rec_pipeline.serving.bundles import BundleHolder, LoadedBundle
from rec_pipeline.serving.impressions import Impressions
from rec_pipeline.serving.live import LiveRecommender, OnSource, eligible_items
from rec_pipeline.serving.loop import wait_for
from rec_pipeline.serving.params import RecommenderConfig, Request
from rec_pipeline.serving.service import Kind, OnAnswer, RecommendationService
from rec_pipeline.serving.store import OnlineStore, StoreUnavailableError
from rec_pipeline.settings import settings

if TYPE_CHECKING:
    from rec_pipeline.serving.training import Batch, OwnNetwork

SEQUENCE = "sequence"
ConfigLike = RecommenderConfig | Mapping[str, Any] | None


class Recommender:
    """
    What the public recommenders share.

    Parameters
    ----------
    config
        A ``RecommenderConfig`` or a mapping of its fields: ``cf_config``, ``cb_config``, ``rt_config``, ``bundle``,
        ``source_budget``, ``text_budget``, ``experiment``, ``impressions``, ``strict``. Everything has a default that
        works in a project folder.
    on_answer, on_source
        Told of every answer and every source asked, with the seconds it took.

    Raises
    ------
    ConfigurationError
        If a field is unknown or out of range, or a stated size or a variant's fusion does not fit the bundle.
    ArtifactIntegrityError
        If the stated bundle is damaged or missing. Without a stated one, a recommender that can live on published lists
        begins without.
    """

    kind: ClassVar[Kind]

    def __init__(
        self, config: ConfigLike = None, *, on_answer: OnAnswer | None = None, on_source: OnSource | None = None
    ) -> None:
        self.config = RecommenderConfig.of(config)
        here = settings()
        use_key_file(here.pseudonym_key_file, show_ids=here.show_user_ids)
        use_mirrors(here.mirrors)
        self.experiment = self.config.experiment or here.running_experiment
        self.bundles = BundleHolder(self.config.bundle if self.config.bundle is not None else here.artifacts_location)
        try:
            self._check(self.bundles.load())
        except ArtifactIntegrityError:
            if self.config.bundle is not None or not self.kind.takes_published:
                raise
        realtime = self.config.rt_config
        store = OnlineStore(store_url(self.config))
        self.service = RecommendationService(
            store,
            self.bundles,
            LiveRecommender(
                self.config.source_budget,
                lambda: SentenceTransformerEncoder(
                    self.config.cb_config.feature_extractor or here.text_encoder, max_tokens=here.text_tokens
                ),
                self.config.text_budget,
                on_source,
            ),
            here.generations_dir,
            update_interval=realtime.update_interval,
            cache_ttl=realtime.cache_ttl,
            strict=self.config.strict,
            experiment=self.experiment,
            impressions=Impressions(store, here.event_rules.max_backlog) if self.config.impressions else None,
            on_answer=on_answer,
        )

    @classmethod
    def from_bundle(cls, path_or_url: str | Path, config: ConfigLike = None) -> Self:
        """
        Make a recommender from a serving bundle.

        Parameters
        ----------
        path_or_url
            A sealed bundle, the folder of its versions, of all artefacts or of the project's data; or the URL of one of
            these that fsspec can read (``s3://bucket/artifacts``). Newer versions found there later are taken up.
        config
            Everything else.

        Examples
        --------
        >>> recommender = HybridRecommender.from_bundle("data")  # doctest: +SKIP
        >>> recommender.get_recommendations_sync("u1", top_k=1)  # doctest: +SKIP
        [{'id': 'i7', 'score': 0.98, 'sources': ['collaborative'], 'reason': 'Because you liked "A"'}]
        """
        return cls(RecommenderConfig.of(config).model_copy(update={"bundle": str(path_or_url)}))

    async def get_recommendations(
        self,
        user_id: str | None,
        context: Mapping[str, str] | None = None,
        top_k: int = 10,
        *,
        exclude: Sequence[str] = (),
        categories: Sequence[str] = (),
        without_categories: Sequence[str] = (),
        items: Sequence[str] = (),
        text: str = "",
    ) -> Recommendations:
        """
        Return the ``top_k`` best items for a user.

        Parameters
        ----------
        user_id
            Catalogue id; somebody unknown gets what is popular, or what ``items`` and ``text`` say. None for a session
            without an id.
        context
            ``time`` (ISO 8601), ``location``, ``device``; what the bundle has learnt nothing about changes nothing.
        top_k
            1 to 100.
        exclude
            Item ids to leave out.
        categories, without_categories
            Categories an item must, or must not, belong to.
        items
            Item ids just looked at, oldest first.
        text
            Taste in words, for somebody without history.

        Returns
        -------
        Recommendations
            A list of ``{"id", "score", "sources", "reason"}``; its ``answer`` names source, generation, age, and what
            failed on the way.

        Raises
        ------
        InvalidIdError
            If an id cannot be one; nothing is asked of the store.
        ConfigurationError
            If a number is out of range.
        NothingToServeError
            If nothing has ever been published or bundled here.
        """
        request = Request(
            user_id,
            top_k,
            dict(context or {}),
            tuple(exclude),
            tuple(categories),
            tuple(without_categories),
            tuple(items),
            text,
        )
        return Recommendations(await self.answer(request))

    def get_recommendations_sync(
        self, user_id: str | None, context: Mapping[str, str] | None = None, top_k: int = 10, **narrowing: Any
    ) -> Recommendations:
        """Do what ``get_recommendations`` does, for code without an event loop."""
        return wait_for(self.get_recommendations(user_id, context, top_k, **narrowing))

    async def record_event(
        self,
        user_id: str,
        item_id: str,
        event_type: str,
        timestamp: datetime | str | float | None = None,
        context: Mapping[str, str] | None = None,
        event_id: str | None = None,
        *,
        served: Served | None = None,
    ) -> bool:
        """
        Record what a user did; their next answer knows it.

        Parameters
        ----------
        user_id, item_id, event_type, timestamp, context, event_id, served
            As ``make_event`` has them.

        Returns
        -------
        bool
            False if nothing changed: an event of this id had been recorded, or the user asked to be forgotten.

        Raises
        ------
        InvalidEventError
            If it breaks a rule; nothing is sent.
        EventsNotRecordedError
            If the store did not take it; sending it again is safe.
        """
        rules = settings().event_rules
        event = make_event(
            rules,
            user_id=user_id,
            item_id=item_id,
            event_type=event_type,
            timestamp=timestamp,
            context=context,
            event_id=event_id,
            served=served,
        )
        return (await self.service.store.record([event], rules)).n_new == 1

    def record_event_sync(self, user_id: str, item_id: str, event_type: str, **more: Any) -> bool:
        """Do what ``record_event`` does, for code without an event loop."""
        return wait_for(self.record_event(user_id, item_id, event_type, **more))

    async def answer(self, request: Request) -> Answer:
        """Answer a request that has been put together already."""
        return await self.service.answer(request, self.kind)

    async def aclose(self) -> None:
        """Close the connections of this event loop and end the sources' threads."""
        await self.service.settled()
        await self.service.store.close()
        self.service.live.close()

    def close(self) -> None:
        """Do what ``aclose`` does, for code without an event loop."""
        wait_for(self.aclose())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def _check(self, loaded: LoadedBundle) -> None:
        for params in self.experiment.params.values():
            loaded.with_params(params)
        cf, cb, bundle = self.config.cf_config, self.config.cb_config, loaded.bundle
        stated = {
            "cf_config.num_users": (cf.num_users, len(bundle.users)),
            "cf_config.num_items": (cf.num_items, len(bundle.items)),
            "cf_config.embedding_dim": (cf.embedding_dim, bundle.ncf.params.embedding_dim),
            "cb_config.embedding_dim": (cb.embedding_dim, bundle.content_embeddings.embedding_dim),
        }
        differing = {name: sizes for name, sizes in stated.items() if sizes[0] not in {None, sizes[1]}}
        if differing:
            found = ", ".join(f"{name} is {said} but the bundle has {is_}" for name, (said, is_) in differing.items())
            raise ConfigurationError(f"{found}: leave sizes out to take the bundle's")


class HybridRecommender(Recommender):
    """
    Every source together: what was published for the user, else what is made from all that is known by now.

    Examples
    --------
    >>> recommender = HybridRecommender({"rt_config": {"update_interval": 60}})  # doctest: +SKIP
    >>> recommendations = await recommender.get_recommendations(
    ...     "user123", {"time": "2024-02-10T15:30:00", "location": "New York", "device": "mobile"}, top_k=10
    ... )  # doctest: +SKIP
    """

    kind = Kind("hybrid")


class RealtimeRecommender(Recommender):
    """What the store holds for the user, else what follows the user's last events by the sequence model."""

    kind = Kind("realtime", only=(SEQUENCE,))


class ContentBasedRecommender(Recommender):
    """Items whose texts are near to the user's taste, or to words."""

    kind = Kind("content", only=(CONTENT,), takes_published=False)


class CollaborativeFilter(Recommender):
    """
    What similar users went for: NeuMF.

    With ``num_users`` and ``num_items`` stated and no bundle to be found it starts as a new network, whose users and
    items are called by their rows ("0", "1", ...), to be trained with ``train_epoch``.

    Examples
    --------
    >>> import torch
    >>> cf = CollaborativeFilter({"cf_config": {"num_users": 2, "num_items": 3, "embedding_dim": 4}})  # doctest: +SKIP
    >>> batch = torch.tensor([0, 1]), torch.tensor([2, 0]), torch.tensor([1.0, 0.0])
    >>> loss = cf.train_epoch([batch])  # doctest: +SKIP
    """

    kind = Kind("collaborative", only=(COLLABORATIVE,), takes_published=False)

    def __init__(self, config: ConfigLike = None, **observers: Any) -> None:
        self._own: OwnNetwork | None = None
        self._own_bundle: LoadedBundle | None = None
        checked = RecommenderConfig.of(config)
        try:
            super().__init__(checked, **observers)
        except ArtifactIntegrityError:
            cf = checked.cf_config
            if checked.bundle is not None or cf.num_users is None or cf.num_items is None:
                raise
            from rec_pipeline.serving import training

            self.config = checked
            self._own = training.OwnNetwork.new(cf.num_users, cf.num_items, cf.embedding_dim or 64, cf.learning_rate)

    def train_epoch(self, dataloader: "Iterable[Batch]") -> float:
        """
        Train one epoch and answer by what was learnt from then on.

        Parameters
        ----------
        dataloader
            Batches ``(user_idx, item_idx, label)`` of tensors of shape (batch,): rows of users and items (those of the
            bundle's id maps, where there is one) and 1 for a pair that is liked, 0 for one that is not.

        Returns
        -------
        float
            Mean binary cross-entropy of a pair.

        Raises
        ------
        ValueError
            If there is no batch, or a row lies outside the network.
        TrainingDivergedError
            If the loss is not finite.
        """
        if self._own is None:
            from rec_pipeline.serving import training

            self._own_bundle = self.bundles.load()
            bundle = self._own_bundle.bundle
            self._own = training.OwnNetwork.copy_of(bundle.ncf, bundle.history, self.config.cf_config.learning_rate)
        return self._own.train_epoch(dataloader)

    async def answer(self, request: Request) -> Answer:
        """Answer by the own network where there is one, else by the bundle's."""
        if self._own is None:
            return await super().answer(request)
        loaded = self._own_bundle
        shape = self._own.history.shape
        if loaded is not None:
            row = loaded.bundle.users.row(request.user_id or "")
            rows = loaded.rows
        else:
            rows = {str(item): item for item in range(shape[1])}
            row = int(request.user_id) if request.user_id in {str(user) for user in range(shape[0])} else NO_IDX
        if row == NO_IDX:
            raise UnknownUserError(f"the network was not trained for user {request.user_id!r}")
        if loaded is not None:
            excluded = np.flatnonzero(~eligible_items(loaded, request)).tolist()
        elif request.categories or request.without_categories:
            raise ConfigurationError("a new network knows no categories, so answers cannot be narrowed by them")
        else:
            excluded = [rows[item] for item in request.exclude if item in rows]
        history = sp.csr_matrix(self._own.history[[row]] + _indicator(excluded, shape[1]))
        ranking = self._own.rank(row, UserBatch(np.array([row]), history), request.top_k)
        ids = loaded.bundle.items.ids if loaded is not None else np.array(list(rows), dtype=object)
        items: list[Recommendation] = [
            {"id": ids[item], "score": float(score), "sources": [COLLABORATIVE], "reason": "Matches your taste"}
            for item, score in zip(ranking.item_idx[0].tolist(), ranking.score[0].tolist(), strict=True)
            if item != NO_IDX
        ]
        return Answer(request.user_id, items, GENERATED)


def store_url(config: RecommenderConfig) -> Any:
    """Return the store's URL, or what finds the embedded server's when it is needed."""
    realtime = config.rt_config
    if realtime.redis_url is not None:
        return realtime.redis_url.get_secret_value()
    if realtime.redis_host is not None:
        host = f"[{realtime.redis_host}]" if ":" in realtime.redis_host else realtime.redis_host
        return f"redis://{host}:{realtime.redis_port}"
    here = settings()
    if here.redis_url is not None:
        return here.redis_url.get_secret_value()

    def embedded() -> str:
        url = recorded_url(here.store_dir)
        if url is None:
            raise StoreUnavailableError("no store is configured and the embedded one was never started here")
        return url

    return embedded


def _indicator(items: Sequence[int], n_items: int) -> sp.csr_matrix:
    return sp.csr_matrix((np.ones(len(items)), ([0] * len(items), items)), shape=(1, n_items), dtype=np.float32)

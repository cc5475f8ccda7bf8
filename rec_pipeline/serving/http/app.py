"""The routes. A request is checked by its schema, answered by the recommender, and written without another check."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import orjson
from fastapi import Body, FastAPI, HTTPException, Query, Response
from fastapi import Path as PathParameter
from fastapi import Request as HTTPRequest
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from pydantic import SecretStr
from redis.exceptions import RedisError

from rec_pipeline.engine.artifacts import ArtifactStore, load_sealed
from rec_pipeline.engine.data.events import Event, Served, make_event
from rec_pipeline.engine.errors import ArtifactIntegrityError, InvalidEventError, RecPipelineError
from rec_pipeline.engine.evaluation.report import EvaluationReport
from rec_pipeline.engine.remote import open_store
from rec_pipeline.serving.answers import Answer, published_items
from rec_pipeline.serving.bundles import LoadedBundle
from rec_pipeline.serving.http import problems, schemas
from rec_pipeline.serving.http.guards import Guards
from rec_pipeline.serving.http.rates import Rates
from rec_pipeline.serving.http.telemetry import Telemetry
from rec_pipeline.serving.params import Request
from rec_pipeline.serving.recommenders import HybridRecommender
from rec_pipeline.serving.service import shown_now
from rec_pipeline.serving.store import StoreUnavailableError
from rec_pipeline.settings import settings

PAGE: Final = Path(__file__).parent / "page"
LOOK_SECONDS: Final = 1.0
JSON: Final = "application/json"
HEADLINE: Final = ("ndcg@10", "recall@10", "coverage@10", "diversity@10")

UserId = Annotated[schemas.Id, PathParameter(description="User id.", examples=["u0042"])]
ItemId = Annotated[schemas.Id, PathParameter(description="Item id.", examples=["i0042"])]
TopK = Annotated[schemas.TopK, Query()]


def create_app(
    recommender: HybridRecommender, telemetry: Telemetry, token: SecretStr | None = None, rates: Rates | None = None
) -> FastAPI:
    """
    Return the service.

    Parameters
    ----------
    recommender
        Answers; its connections are closed when the service ends.
    telemetry
        The observer the recommender was made with.
    token
        Bearer token to ask for; None for an open service.
    rates
        What each client may ask; None for no limit.
    """
    service = recommender.service

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        watch = asyncio.create_task(_watch(recommender))
        yield
        watch.cancel()
        with suppress(asyncio.CancelledError):
            await watch
        await recommender.aclose()

    app = FastAPI(
        title="rec_pipeline",
        summary="Recommendations by user, session, item or words; events in, and the next answer knows them.",
        version="1",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        responses=problems.documented(*((401, 422) if token else (422,)), *((429,) if rates else ()), 431),
    )
    problems.install(app)

    @app.get(
        "/recommendations/{user_id:path}",
        response_model=schemas.RecommendationList,
        responses=problems.documented(404, 503),
        tags=["recommendations"],
        openapi_extra={"parameters": schemas.ListQuery.parameters()},
    )
    async def get_recommendations(http: HTTPRequest) -> Response:
        """Recommend to a user; somebody unknown gets what is popular."""
        query = schemas.ListQuery.of(http.path_params["user_id"], http.query_params)
        context = {"time": query.time, "location": query.location, "device": query.device}
        request = Request(
            query.user_id,
            query.top_k,
            {name: value for name, value in context.items() if value},
            tuple(query.exclude),
            tuple(query.categories),
            tuple(query.without_categories),
        )
        return _written(await recommender.answer(request), service.bundles.current, explain=query.explain)

    @app.post(
        "/recommendations",
        response_model=schemas.RecommendationList,
        responses=problems.documented(400, 413, 503),
        tags=["recommendations"],
    )
    async def post_recommendations(query: schemas.RecommendationsQuery) -> Response:
        """Recommend to a user or to a session without id, by items just looked at or by words."""
        request = Request(
            query.user_id,
            query.top_k,
            query.context.model_dump(exclude_none=True),
            tuple(query.exclude),
            tuple(query.categories),
            tuple(query.without_categories),
            tuple(query.items),
            query.text,
        )
        return _written(await recommender.answer(request), service.bundles.current, explain=query.explain)

    @app.get(
        "/items/{item_id:path}/similar",
        response_model=schemas.SimilarItems,
        responses=problems.documented(404, 503),
        tags=["items"],
    )
    async def similar_items(item_id: ItemId, top_k: TopK = 10) -> Response:
        """Return the items whose texts are nearest to this one's."""
        loaded = _bundle(recommender)
        row = loaded.rows.get(item_id)
        if row is None:
            raise HTTPException(404, f"There is no item {item_id!r}.")
        bundle = loaded.bundle
        found = bundle.content_index.search(
            bundle.content_embeddings.vectors[[row]], top_k + 1, eligible=bundle.facts.shown_at(time.time())
        )
        near = [
            {"id": bundle.items.ids[other], "title": bundle.titles[other], "score": round(float(score), 6)}
            for other, score in zip(found.item_idx[0].tolist(), found.score[0].tolist(), strict=True)
            if other not in {-1, row}
        ]
        has_text = bool(bundle.content_embeddings.has_vector[row])
        document = {"item_id": item_id, "title": loaded.title(item_id), "items": near[:top_k] if has_text else []}
        return Response(orjson.dumps(document), media_type=JSON)

    @app.get("/trending", response_model=schemas.RecommendationList, responses=problems.documented(503), tags=["items"])
    async def trending(top_k: TopK = 10) -> Response:
        """Return the popular list that is live: what everybody gets of whom nothing is known."""
        try:
            popular = await service.store.popular()
        except StoreUnavailableError:
            popular = None
        if popular is None:
            return _written(await recommender.answer(Request(None, top_k)), service.bundles.current, explain=False)
        loaded = service.bundles.current
        items = shown_now(loaded, published_items(popular))[:top_k]
        return _written(Answer(None, items, "popular", popular.generation), loaded, explain=False)

    @app.get(
        "/users/{user_id:path}/history",
        response_model=schemas.History,
        responses=problems.documented(404, 503),
        tags=["users"],
    )
    async def history(user_id: UserId) -> Response:
        """Return what a user did last, the newest first: what the models know, and the events since."""
        loaded = service.bundles.current
        items: list[dict[str, Any]] = []
        try:
            state = await service.store.read_user(user_id)
            if state.is_forgotten:
                return Response(orjson.dumps({"user_id": user_id, "is_known": False, "items": []}), media_type=JSON)
            now = time.time()
            items = [
                _titled(item, loaded) | {"is_live": True, "age_s": round(max(0.0, now - at), 1)}
                for item, at in reversed(state.events)
            ]
        except StoreUnavailableError:
            if loaded is None:
                raise
        row = -1 if loaded is None else loaded.bundle.users.row(user_id)
        if loaded is not None and row >= 0:
            before = loaded.bundle.sequences.recent(np.array([row]), 50)[0][::-1]
            touched = {item["id"] for item in items}
            ids = [item for item in loaded.bundle.items.to_ids(before) if item not in touched]
            items += [_titled(item, loaded) | {"is_live": False, "age_s": None} for item in ids]
        document = {"user_id": user_id, "is_known": row >= 0, "items": items[:50]}
        return Response(orjson.dumps(document), media_type=JSON)

    @app.post(
        "/events",
        status_code=202,
        response_model=schemas.Recorded,
        responses=problems.documented(400, 413, 503),
        tags=["events"],
    )
    async def post_events(body: Annotated[schemas.EventBody | schemas.EventBatch, Body()]) -> Response:
        """Record one event or several; the user's next answer knows them. Sending the same again is safe."""
        events = [_event(event) for event in (body.events if isinstance(body, schemas.EventBatch) else [body])]
        recorded = await service.store.record(events, settings().event_rules)
        document = {
            "recorded": recorded.n_new,
            "duplicates": recorded.n_duplicates,
            "forgotten": recorded.n_forgotten,
        }
        for outcome, count in document.items():
            telemetry.events.labels(outcome).inc(count)
        return Response(orjson.dumps(document), status_code=202, media_type=JSON)

    @app.get("/health/live", response_model=schemas.Health, tags=["service"])
    async def live() -> Response:
        """Answer while the process runs."""
        return Response(orjson.dumps(_health(recommender)), media_type=JSON)

    @app.get(
        "/health/ready", response_model=schemas.Health, responses={503: {"model": schemas.Health}}, tags=["service"]
    )
    async def ready() -> Response:
        """
        Answer 200 if requests can be answered without delay: from the store, or with the bundle in memory.

        While the text encoder loads, which takes a few seconds, requests are answered, some of them late.
        """
        health = _health(recommender)
        if health["store"] != "ok" and not health["bundle"]:
            health["status"] = "nothing to answer with"
        elif service.live.is_preparing:
            health["status"] = "loading the text encoder"
        return Response(orjson.dumps(health), status_code=200 if health["status"] == "ok" else 503, media_type=JSON)

    @app.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
        tags=["service"],
    )
    async def metrics() -> Response:
        """Latency by source, cache hits, fallbacks, age of the generation, in the format of Prometheus."""
        return Response(telemetry.exposition(service), media_type="text/plain; version=0.0.4")

    @app.get("/status", response_model=schemas.Status, tags=["service"])
    async def status() -> Response:
        """Return what is live and how good it was in evaluation."""
        loaded, live = service.bundles.current, service.store.live
        document = {
            "generation": live.generation,
            "published_at": live.published_at,
            "age_s": round(time.time() - live.published_at, 1) if live.published_at else 0.0,
            "bundle": "" if loaded is None else loaded.version,
            "n_users": 0 if loaded is None else len(loaded.bundle.users),
            "n_items": 0 if loaded is None else len(loaded.bundle.items),
            "store": _health(recommender)["store"],
            "metrics": await asyncio.to_thread(_evaluation),
            "event_types": list(settings().event_rules.weights),
            "some_users": [] if loaded is None else _some_users(loaded),
        }
        return Response(orjson.dumps(document), media_type=JSON)

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    app.mount("/static", StaticFiles(directory=PAGE), name="static")
    app.add_middleware(Guards, token=token, telemetry=telemetry, rates=rates)
    return app


async def _watch(recommender: HybridRecommender) -> None:
    """Look at the store and for a newer bundle once a second, so that both come back by themselves without traffic."""
    while True:
        with suppress(RecPipelineError, RedisError):
            await recommender.service.look()
        await asyncio.sleep(LOOK_SECONDS)


def _written(answer: Answer, loaded: LoadedBundle | None, *, explain: bool) -> Response:
    items: list[dict[str, Any]] = [{**item, **_titled(item["id"], loaded)} for item in answer.items]
    if explain:
        for item, shares in zip(items, answer.shares, strict=False):
            item["shares"] = shares
    document = {
        "user_id": answer.user_id,
        "items": items,
        "experiment": answer.experiment,
        "variant": answer.variant,
        "source": answer.source,
        "generation": answer.generation,
        "age_s": round(answer.age_seconds, 3),
        "degraded": answer.degraded,
        "reason": answer.reason,
        "left_out": answer.left_out,
    }
    return Response(orjson.dumps(document), media_type=JSON)


def _titled(item_id: str, loaded: LoadedBundle | None) -> dict[str, Any]:
    return {"id": item_id, "title": item_id if loaded is None else loaded.title(item_id)}


def _event(body: schemas.EventBody) -> Event:
    try:
        served = (
            None if body.served is None else Served(**{**body.served, "sources": tuple(body.served.get("sources", ()))})
        )
    except TypeError as error:
        raise InvalidEventError(f"served cannot be read: {error}", "served", body.served) from error
    return make_event(
        settings().event_rules,
        user_id=body.user_id,
        item_id=body.item_id,
        event_type=body.event_type,
        timestamp=body.timestamp,
        context=body.context,
        event_id=body.event_id,
        served=served,
    )


def _bundle(recommender: HybridRecommender) -> LoadedBundle:
    loaded = recommender.bundles.current
    if loaded is None:
        raise ArtifactIntegrityError(recommender.bundles.error or "no serving bundle")
    return loaded


def _health(recommender: HybridRecommender) -> dict[str, str]:
    loaded = recommender.bundles.current
    return {
        "status": "ok",
        "store": "does not answer" if recommender.service.store.is_down else "ok",
        "bundle": "" if loaded is None else loaded.version,
    }


def _some_users(loaded: LoadedBundle) -> list[str]:
    n_users = len(loaded.bundle.users)
    rows = np.linspace(0, n_users - 1, min(12, n_users)).astype(np.int64)
    return [str(user_id) for user_id in loaded.bundle.users.to_ids(rows)]


def _evaluation() -> list[dict[str, Any]]:
    """Return the headline metrics of the last evaluation report; none where there is no report here."""
    store = open_store(settings().artifacts_dir, settings().artifacts_url)
    try:
        return _headline(store, store.manifest("evaluation_report").version)
    except (ArtifactIntegrityError, OSError):
        return []


@lru_cache(maxsize=2)
def _headline(store: ArtifactStore, version: str) -> list[dict[str, Any]]:
    summary = load_sealed(store.path("evaluation_report", version), EvaluationReport.load).summary
    wanted = summary[summary["metric"].isin(HEADLINE) & summary["recommender"].isin(["hybrid", "popularity"])]
    columns = [wanted[name].tolist() for name in ("recommender", "metric", "mean")]
    return [
        {"recommender": recommender, "metric": metric, "mean": round(mean, 4)}
        for recommender, metric, mean in zip(*columns, strict=True)
    ]

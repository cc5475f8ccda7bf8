"""Commands about what is live: read it, publish it, take it back, tidy up."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rec_pipeline.cli.project import AsJson, emit_json, project_folder
from rec_pipeline.engine.errors import ConfigurationError, UnknownUserError
from rec_pipeline.settings import settings

if TYPE_CHECKING:
    import redis

    from rec_pipeline.engine.store.generation import Generation
    from rec_pipeline.engine.store.publication import Publication
    from rec_pipeline.engine.store.publisher import PublishPlan
    from rec_pipeline.resources.redis_store import RedisStore


def recommend(
    user_id: Annotated[str, typer.Argument(metavar="USER", help="User id.")],
    top_k: Annotated[int, typer.Option(min=1, help="Items shown, at most.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Print the list that is live for a user; somebody unknown gets the popular list."""
    project_folder()

    from rec_pipeline.cli.summary import list_table, published_titles, stdout_console
    from rec_pipeline.engine.recommenders.list_schema import PERSONAL, POPULAR
    from rec_pipeline.engine.store.bookkeeping import explained
    from rec_pipeline.engine.store.reader import RecommendationReader, reader_client
    from rec_pipeline.resources.deployment import resources_for

    resources = resources_for(settings())
    with explained():
        reader = RecommendationReader(reader_client(resources["redis_store"].url()))
        own = reader.get(user_id)
        published = own or reader.popular()
        titles = published_titles(resources["artifacts"], resources["redis_store"].live())
    if published is None:
        raise UnknownUserError("nothing is published yet: `rec-pipeline run` makes and publishes the first lists")
    items = [
        {
            "id": item.item_id,
            "title": titles.get(item.item_id, ""),
            "score": item.score,
            "sources": list(item.sources),
            "reason": item.reason,
        }
        for item in published.items[:top_k]
    ]
    document = {
        "user_id": user_id,
        "origin": PERSONAL if own else POPULAR,
        "generation": published.generation,
        "items": items,
    }
    if as_json:
        emit_json(document)
        return
    if own is None:
        typer.echo(f"no list is published for {user_id!r}: this is the popular list", err=True)
    console = stdout_console()
    console.print(list_table(document), f"[dim]generation {published.generation}[/]")


def status(as_json: AsJson = False) -> None:
    """Say what is live, what is under way and what could be rolled back to; exit code 8 if half of it is live."""
    store = _store()

    from rec_pipeline.engine.store.status import status as status_of

    found = status_of(store.publisher(), store.generations)
    if as_json:
        emit_json(found.model_dump())
    else:
        if found.live is None:
            typer.echo("nothing is live yet")
        else:
            typer.echo(f"live      generation {found.live}, {found.n_users:,} users, since {found.published_at}")
            typer.echo(f"by        {found.publisher}")
        if found.half_live:
            typer.echo(f"half live {_numbers(found.half_live)}: `rec-pipeline publish --resume` finishes it")
        if found.pinned is not None:
            typer.echo(f"pinned    {found.pinned}: nothing else is published until `rec-pipeline unpin`")
        if found.lock is not None:
            holder = f"{found.lock['holder']} on {found.lock['host']} (pid {found.lock['pid']})"
            typer.echo(f"lock      {holder}; if it died, for {found.lock['expires_in_seconds']:.0f} s more")
        typer.echo(f"sealed    {_numbers(found.sealed) or 'none'}")
        for entry in found.history:
            typer.echo(
                f"history   {entry['gen']} since {entry['published_at']}: {entry['reason']}, by {entry['publisher']}"
            )
    sys.exit(found.exit_code)


def publish(
    generation: Annotated[int | None, typer.Option(min=1, help="Sealed generation; the newest by default.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Finish the publication that was interrupted, if there is one.")
    ] = False,
    from_artifact: Annotated[
        str | None,
        typer.Option(metavar="last|GEN", help="Publish a sealed generation again, for a store that has lost lists."),
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Say what it would take and write nothing.")] = False,
    shards: Annotated[int, typer.Option(min=1, max=1024, help="Parts that go live one after the other.")] = 1,
    allow_eviction: Annotated[
        bool, typer.Option("--allow-eviction", help="Publish to a server that may evict live lists.")
    ] = False,
    unpin: Annotated[bool, typer.Option("--unpin", help="Publish although a rollback has pinned another one.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a sealed generation live, or finish one that was interrupted; nothing is computed again."""
    store = _store()

    from rec_pipeline.cli.release import publication_announced, stoppable
    from rec_pipeline.engine.store.publication import Intent, PublishParams
    from rec_pipeline.engine.store.publisher import plan as plan_of
    from rec_pipeline.engine.store.publisher import publish as publish_generation

    client = store.publisher()
    chosen = _chosen(client, store, generation, from_artifact, resume=resume)
    if chosen is None:
        emit_json({"resumed": None}) if as_json else typer.echo("nothing was interrupted")
        return
    params = PublishParams(shards=shards, allow_eviction=allow_eviction)
    if plan:
        _print_plan(plan_of(client, chosen, params), as_json=as_json)
        return
    reason = f"restored {chosen.content_number}" if from_artifact else "resumed" if resume else "publish"
    intent = Intent("rec-pipeline publish", reason=reason, unpin=unpin)
    with stoppable() as should_stop:
        publication = publish_generation(client, chosen, params, intent, should_stop=should_stop)
    _report(publication, publication_announced(client, chosen), as_json)


def rollback(
    to: Annotated[
        int | None, typer.Option(min=1, help="Sealed generation; the one before what is live by default.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Publish an older generation again and pin it, so that no schedule replaces it before `unpin`."""
    store = _store()

    from rec_pipeline.cli.release import publication_announced, stoppable
    from rec_pipeline.engine.store.generation import find_generation
    from rec_pipeline.engine.store.publisher import rollback as roll_back

    client = store.publisher()
    with stoppable() as should_stop:
        publication = roll_back(client, store.generations, to, should_stop=should_stop)
    live = find_generation(store.generations, publication.generation)
    _report(publication, publication_announced(client, live), as_json)


def unpin(as_json: AsJson = False) -> None:
    """Let publications through again after a rollback."""
    store = _store()

    from rec_pipeline.engine.store.publisher import unpin as remove_pin

    pinned = remove_pin(store.publisher())
    if as_json:
        emit_json({"unpinned": pinned})
    else:
        typer.echo("nothing was pinned" if pinned is None else f"generation {pinned} is no longer pinned")


def gc(as_json: AsJson = False) -> None:
    """Delete sealed generations nobody needs: not live, not the one before, not pinned, not among the newest."""
    store = _store()

    from rec_pipeline.engine.store.generation import delete_old_generations
    from rec_pipeline.engine.store.status import status as status_of

    found = status_of(store.publisher(), store.generations)
    recent = [int(entry["gen"]) for entry in found.history[:2]]
    protected = {number for number in (found.live, found.pinned) if number is not None}.union(recent, found.half_live)
    deleted = delete_old_generations(store.generations, protected)
    if as_json:
        emit_json({"deleted": deleted})
    else:
        typer.echo(f"deleted generations {_numbers(deleted)}" if deleted else "nothing to delete")


def stop(as_json: AsJson = False) -> None:
    """Stop the embedded store; its lists are on disk and come back with the next command that needs them."""
    store = _store()

    from rec_pipeline.resources.embedded_valkey import stop_server

    stopped = stop_server(Path(store.embedded_dir))
    if as_json:
        emit_json({"stopped": stopped})
    else:
        typer.echo("stopped" if stopped else "the embedded store was not running")


def _store() -> "RedisStore":
    project_folder()

    from rec_pipeline.resources.deployment import resources_for

    store: RedisStore = resources_for(settings())["redis_store"]
    return store


def _chosen(
    client: "redis.Redis", store: "RedisStore", number: int | None, from_artifact: str | None, *, resume: bool
) -> "Generation | None":
    from rec_pipeline.engine.store.generation import find_generation, newest_generation
    from rec_pipeline.engine.store.publisher import interrupted, restorable

    if sum((number is not None, from_artifact is not None, resume)) > 1:
        raise ConfigurationError(
            "--generation, --from-artifact and --resume each choose a generation: give one of them"
        )
    if resume:
        begun = interrupted(client)
        return None if begun is None else find_generation(store.generations, begun)
    if from_artifact is not None:
        if from_artifact != "last" and not from_artifact.isdigit():
            raise ConfigurationError(
                f"--from-artifact {from_artifact!r} is neither `last` nor the number of a generation"
            )
        return restorable(client, store.generations, None if from_artifact == "last" else int(from_artifact))
    return find_generation(store.generations, number) if number else newest_generation(store.generations)


def _print_plan(plan: "PublishPlan", *, as_json: bool) -> None:
    from dataclasses import asdict

    if as_json:
        emit_json(asdict(plan))
    else:
        limit = f" of {plan.max_bytes:,}" if plan.max_bytes else ", no maxmemory"
        typer.echo(
            f"generation {plan.generation}: {plan.n_users:,} users, {plan.bytes_per_user:,} bytes each (sampled)"
        )
        freed = f", {plan.freed_bytes:,} of it left staged and removed first" if plan.freed_bytes else ""
        peak = f"{plan.needed_bytes:,} more at the peak{limit}, {plan.shards} shards"
        typer.echo(f"memory     {plan.used_bytes:,} used{freed}, {peak}")
        phases = ", ".join(f"{phase} {seconds:,.1f} s" for phase, seconds in plan.seconds.items())
        typer.echo(f"time       {phases} (estimated)")
        for warning in plan.warnings:
            typer.echo(f"warning: {warning}", err=True)
        if plan.refusal is not None:
            typer.echo(f"would be refused: {plan.refusal}", err=True)
    sys.exit(plan.exit_code)


def _report(publication: "Publication", notes: list[str], as_json: bool) -> None:
    from dataclasses import asdict

    document: dict[str, Any] = asdict(publication)
    document["warnings"] = [*document["warnings"], *notes]
    if as_json:
        emit_json(document)
        return
    state = "was live already" if publication.already_live else "is live"
    typer.echo(f"generation {publication.generation} {state}: {publication.n_users:,} users")
    for warning in document["warnings"]:
        typer.echo(f"warning: {warning}", err=True)


def _numbers(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))

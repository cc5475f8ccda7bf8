"""Commands about what is live: read it, publish it, take it back, tidy up."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rec_pipeline.cli.project import AsJson, emit_json, project_folder
from rec_pipeline.engine.errors import ConfigurationError, RecPipelineError
from rec_pipeline.settings import settings

if TYPE_CHECKING:
    from rec_pipeline.engine.store.publication import Publication
    from rec_pipeline.resources.redis_store import RedisStore


def recommend(
    user_id: Annotated[str, typer.Argument(metavar="USER", help="User id.")],
    top_k: Annotated[int, typer.Option(min=1, help="Items shown, at most.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Print the list that is live for a user; somebody unknown gets the popular list."""
    project_folder()

    from rec_pipeline.cli.summary import item_titles, list_table, stdout_console
    from rec_pipeline.engine.recommenders.list_schema import PERSONAL, POPULAR
    from rec_pipeline.engine.store.reader import RecommendationReader, reader_client
    from rec_pipeline.resources.deployment import resources_for

    resources = resources_for(settings())
    with _store_errors_explained():
        reader = RecommendationReader(reader_client(resources["redis_store"].url()))
        own = reader.get(user_id)
        published = own or reader.popular()
    if published is None:
        raise RecPipelineError("nothing is published yet: `rec-pipeline run` makes and publishes the first lists")
    titles = item_titles(resources["artifacts"])
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
            typer.echo(f"half live {_numbers(found.half_live)}: `rec-pipeline publish` finishes it")
        if found.pinned is not None:
            typer.echo(f"pinned    {found.pinned}: nothing else is published until `rec-pipeline unpin`")
        if found.lock is not None:
            typer.echo(f"lock      {found.lock['holder']} on {found.lock['host']} (pid {found.lock['pid']})")
        typer.echo(f"sealed    {_numbers(found.sealed) or 'none'}")
    sys.exit(found.exit_code)


def publish(
    generation: Annotated[int | None, typer.Option(min=1, help="Sealed generation; the newest by default.")] = None,
    unpin: Annotated[bool, typer.Option("--unpin", help="Publish although a rollback has pinned another one.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a sealed generation live, or finish one that was interrupted; nothing is computed again."""
    store = _store()

    from rec_pipeline.engine.store.generation import find_generation, list_generations
    from rec_pipeline.engine.store.publication import Intent
    from rec_pipeline.engine.store.publisher import publish as publish_generation

    sealed = list_generations(store.generations)
    if not sealed:
        raise ConfigurationError(f"no generation is sealed under {store.generations}: `rec-pipeline run` makes one")
    chosen = find_generation(store.generations, generation) if generation else sealed[-1]
    _report(publish_generation(store.publisher(), chosen, intent=Intent("rec-pipeline publish", unpin=unpin)), as_json)


def rollback(
    to: Annotated[
        int | None, typer.Option(min=1, help="Sealed generation; the one before what is live by default.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Publish an older generation again and pin it, so that no schedule replaces it before `unpin`."""
    store = _store()

    from rec_pipeline.engine.store.publisher import rollback as roll_back

    publication = roll_back(store.publisher(), store.generations, to)
    _report(publication, as_json)


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


@contextmanager
def _store_errors_explained() -> Iterator[None]:
    from redis.exceptions import RedisError

    from rec_pipeline.engine.store.server import explain

    try:
        yield
    except RedisError as error:
        raise ConfigurationError(f"the store of recommendations cannot be read: {explain(error)}") from error


def _report(publication: "Publication", as_json: bool) -> None:
    from dataclasses import asdict

    document: dict[str, Any] = asdict(publication)
    if as_json:
        emit_json(document)
        return
    state = "was live already" if publication.already_live else "is live"
    typer.echo(f"generation {publication.generation} {state}: {publication.n_users:,} users")
    for warning in publication.warnings:
        typer.echo(f"warning: {warning}", err=True)


def _numbers(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))

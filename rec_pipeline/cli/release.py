"""What goes with a change of what is live when a person makes it: an orderly end on a signal, MLflow, Dagster."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rec_pipeline.cli.project import project_folder
from rec_pipeline.settings import settings

if TYPE_CHECKING:
    import redis

    from rec_pipeline.engine.store.generation import Generation


@contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """Yield what to ask between two batches: SIGTERM and Ctrl-C end a publication in order; a second one at once."""
    asked: list[int] = []

    def stop(number: int, _: object) -> None:
        asked.append(number)
        signal.signal(number, before[signal.Signals(number)])

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, stop)
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def publication_announced(client: "redis.Redis", generation: "Generation") -> list[str]:
    """
    Tell MLflow and Dagster what is live now; returns warnings, for what is live is so whether they hear of it or not.

    In Dagster it is a materialisation of `published_recommendations` outside any run.
    """
    import dagster as dg

    from rec_pipeline.cli.execution import instance_ref
    from rec_pipeline.engine.store import keys
    from rec_pipeline.engine.store.server import text_fields
    from rec_pipeline.resources.deployment import resources_for
    from rec_pipeline.resources.release import align_aliases

    note = align_aliases(client, resources_for(settings())["tracker"])
    current = text_fields(client, keys.CURRENT)
    metadata: dict[str, Any] = {
        "dagster/row_count": int(current["users"]),
        "generation": generation.number,
        "content": generation.content_number,
        "publisher": current["publisher"],
        "reason": current["reason"],
    }
    with dg.DagsterInstance.from_ref(instance_ref(project_folder())) as instance:
        instance.report_runless_asset_event(dg.AssetMaterialization("published_recommendations", metadata=metadata))
    return [] if note is None else [note]

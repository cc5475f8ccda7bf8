"""What is live, told to MLflow: the champion is the model whose lists are live, whoever published or rolled back."""

from typing import TYPE_CHECKING

from rec_pipeline.engine import crash_points
from rec_pipeline.engine.errors import TrackingUnavailableError
from rec_pipeline.engine.store import keys
from rec_pipeline.resources.mlflow_tracker import MLflowTracker

if TYPE_CHECKING:
    import redis


def align_aliases(client: "redis.Redis", tracker: MLflowTracker) -> str | None:
    """
    Move the aliases ``champion`` and ``previous`` to what the store says is live and was before.

    The store decides; the aliases follow. Were they not moved, because the process died between the two or MLflow did
    not answer, the next publication, rollback or ``doctor`` moves them. Doing it again changes nothing.

    Returns
    -------
    A sentence for people if they could not be moved, else None.

    Raises
    ------
    PublishFailedError
        If the store cannot be read.
    """
    from rec_pipeline.engine.store.bookkeeping import explained, published_history
    from rec_pipeline.engine.store.server import text_fields

    with explained():
        live = text_fields(client, keys.CURRENT).get("bundle")
        before = [entry.get("bundle") for entry in published_history(client)]
    if not live:
        return None
    crash_points.reach("alias")
    previous = next((bundle for bundle in before if bundle and bundle != live), None)
    try:
        tracker.registry.align(live, previous)
    except TrackingUnavailableError as error:
        return f"MLflow does not name what is live as {live} yet: {error}; `rec-pipeline doctor` tries again"
    return None

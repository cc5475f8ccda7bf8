"""Where a list that is live came from: generation, runs, data, models, and the sources of each item."""

from pathlib import Path
from typing import Any

import redis

from rec_pipeline.engine.columns import ITEM_ID, ORIGIN, REASON, SCORE, SOURCES
from rec_pipeline.engine.errors import ArtifactIntegrityError, UnknownUserError
from rec_pipeline.engine.pseudonyms import pseudonym
from rec_pipeline.engine.recommenders.list_schema import POPULAR
from rec_pipeline.engine.store import keys
from rec_pipeline.engine.store.bookkeeping import explained
from rec_pipeline.engine.store.generation import find_generation
from rec_pipeline.engine.store.reader import RecommendationReader
from rec_pipeline.engine.store.server import text_fields


def trace(client: "redis.Redis", root: Path, user_id: str, item_id: str | None = None) -> dict[str, Any]:
    """
    Trace what is live for a user back to what made it.

    Parameters
    ----------
    client
        The store.
    root
        Folder of the sealed generations.
    user_id
        Whose list; somebody without one is shown the popular list, and so is it here.
    item_id : str, optional
        Only this item of it.

    Returns
    -------
    dict
        ``user_id``, ``origin``, ``generation`` (number, content, publication), ``lineage`` (as sealed: runs, digests of
        models and indexes, data, weights, code, gate) and ``items`` (rank, score, sources with rank and share, reason).

    Raises
    ------
    UnknownUserError
        If nothing is live, or ``item_id`` is not in the list.
    ArtifactIntegrityError
        If the generation that is live is not sealed under ``root``.
    StoredValueError
        If the live value is not a list.
    """
    with explained():
        reader = RecommendationReader(client)
        own = reader.get(user_id)
        published = own or reader.popular()
        current = text_fields(client, keys.CURRENT)
    if published is None:
        raise UnknownUserError("nothing is live, so there is nothing to trace: publish a generation first")
    if not published.generation:
        raise UnknownUserError(f"the list of {user_id!r} was made online and belongs to no generation")
    generation = find_generation(root, published.generation)
    row = generation.find(user_id) if own else generation.popular().to_pylist()[0]
    if row is None:
        raise ArtifactIntegrityError(
            f"{user_id!r} has a list of generation {generation.number}, which does not hold it"
        )
    items = [
        {"rank": rank, "id": item, "score": score, "sources": sources, "reason": reason}
        for rank, (item, score, sources, reason) in enumerate(
            zip(row[ITEM_ID], row[SCORE], row[SOURCES], row[REASON], strict=True), start=1
        )
        if item_id in {None, item}
    ]
    if not items:
        raise UnknownUserError(
            f"item {item_id!r} is not in the list that is live for {user_id!r}, which holds "
            f"{len(row[ITEM_ID])} others, {row[ITEM_ID][0]!r} first"
        )
    is_current = current.get("gen") == str(generation.number)
    return {
        "user_id": user_id,
        "name_in_messages": pseudonym(user_id),
        "origin": row[ORIGIN] if own else POPULAR,
        "generation": {
            "number": generation.number,
            "content": generation.content_number,
            "manifest_sha256": generation.manifest_sha256,
            "sealed_at": generation.metadata.get("sealed_at"),
            "published_at": current.get("published_at") if is_current else None,
            "publisher": current.get("publisher") if is_current else None,
            "reason": current.get("reason") if is_current else None,
        },
        "lineage": {
            name: generation.metadata[name]
            for name in ("dagster_run_id", "bundle", "lineage", "bundle_files")
            if name in generation.metadata
        },
        "items": items,
    }

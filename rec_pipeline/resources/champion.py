"""Where the champion is found: the evaluated model behind the generation that is live."""

from dataclasses import dataclass

from rec_pipeline.engine.data.split import InteractionSplit
from rec_pipeline.engine.errors import ArtifactIntegrityError
from rec_pipeline.engine.evaluation.champion import champion_ranker, incomparable
from rec_pipeline.engine.recommenders.bundle import ServingBundle
from rec_pipeline.engine.recommenders.ranker import Ranker
from rec_pipeline.engine.store.generation import list_generations
from rec_pipeline.resources.artifacts import Artifacts
from rec_pipeline.resources.redis_store import RedisStore

EVALUATED_BUNDLE = "evaluated_bundle"


@dataclass(frozen=True)
class FoundChampion:
    """
    The champion of an evaluation, or the reason why there is none.

    Attributes
    ----------
    ranker
        Takes part in the evaluation; None if there is no champion that could.
    note
        A sentence for the report.
    """

    ranker: Ranker | None
    note: str


def find_champion(store: RedisStore, artifacts: Artifacts, split: InteractionSplit) -> FoundChampion:
    """
    Look up what is live and load the model that was evaluated for it.

    Raises
    ------
    PublishFailedError
        If the store does not answer.
    """
    live = store.live()
    if live is None:
        return FoundChampion(None, "There is no champion: nothing that was sealed here is live.")
    name = f"The champion, generation {live.number},"
    version = live.metadata.get(EVALUATED_BUNDLE)
    if version is None:
        return FoundChampion(None, f"{name} takes no part: it was published without its evaluated model.")
    try:
        bundle: ServingBundle = artifacts.load(EVALUATED_BUNDLE, ServingBundle, version)
    except ArtifactIntegrityError as error:
        return FoundChampion(None, f"{name} takes no part: {error}.")
    reason = incomparable(bundle, split, artifacts.version("interaction_split"))
    if reason is not None:
        return FoundChampion(None, f"{name} takes no part: {reason}.")
    fitted = f"{name} takes part as it was evaluated, fitted on interactions until {bundle.metadata['fitted_until']}."
    return FoundChampion(champion_ranker(bundle, split), fitted)


def keep_evaluated(store: RedisStore, artifacts: Artifacts, bundle: ServingBundle) -> str:
    """
    Store the evaluated bundle and return its version, which the generation made from it names.

    Bundles that sealed generations name stay, so that whatever goes live again can be compared with.
    """
    named = {str(sealed.metadata.get(EVALUATED_BUNDLE)) for sealed in list_generations(store.generations)}
    manifest = artifacts.store.write(EVALUATED_BUNDLE, bundle.save, kind="ServingBundle", protected=named)
    return manifest.version

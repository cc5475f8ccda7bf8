"""Who takes part in an evaluation: the baselines, each source of the hybrid alone, and the hybrid."""

from rec_pipeline.engine.models.item_knn import ItemKNNModel
from rec_pipeline.engine.recommenders.bundle import COLLABORATIVE, POPULARITY, ServingBundle
from rec_pipeline.engine.recommenders.hybrid import HybridRanker
from rec_pipeline.engine.recommenders.params import HybridParams
from rec_pipeline.engine.recommenders.ranker import Ranker
from rec_pipeline.engine.recommenders.score_ranker import ScoreRanker

NAMES = {COLLABORATIVE: "ncf"}  # sources that reports know by the name of their model


def line_up(bundle: ServingBundle, item_knn: ItemKNNModel) -> list[Ranker]:
    """
    Return ``popularity``, ``item_knn``, each source of the hybrid alone (``content``, ``ncf``) and ``hybrid``.

    All serve every user. A personal recommender fills up from popularity where it knows nothing or too little, as it
    would in use, so that the comparison is between what users would see.

    Parameters
    ----------
    bundle
        The evaluated parts; its recommender is the hybrid.
    item_knn
        Fitted on the same interactions, in the rows of the same items.
    """
    hybrid = bundle.recommender()
    fallback = ScoreRanker(POPULARITY, bundle.popularity, serves_everyone=True)

    def alone(name: str, source: Ranker) -> Ranker:
        return HybridRanker({source.name: source}, fallback, HybridParams(weights={source.name: 1.0}), name=name)

    return [
        fallback,
        alone("item_knn", ScoreRanker("item_knn", item_knn)),
        *(alone(NAMES.get(name, name), source) for name, source in sorted(hybrid.sources.items(), reverse=True)),
        hybrid,
    ]

"""Who takes part in an evaluation: the baselines, each source of the hybrid alone, and the hybrid."""

from rec_pipeline.engine.embeddings.item_embeddings import ItemEmbeddings
from rec_pipeline.engine.index.vector_index import VectorIndex
from rec_pipeline.engine.models.item_knn import ItemKNNModel
from rec_pipeline.engine.models.popularity import PopularityModel
from rec_pipeline.engine.recommenders.bundle import COLLABORATIVE, CONTENT, POPULARITY
from rec_pipeline.engine.recommenders.collaborative import CollaborativeFilter, CollaborativeModel
from rec_pipeline.engine.recommenders.content import ContentBasedRecommender
from rec_pipeline.engine.recommenders.hybrid import HybridRecommender
from rec_pipeline.engine.recommenders.params import HybridParams
from rec_pipeline.engine.recommenders.recommender import Recommender
from rec_pipeline.engine.recommenders.scored import ScoredRecommender


def line_up(
    *,
    popularity: PopularityModel,
    item_knn: ItemKNNModel,
    ncf: CollaborativeModel,
    collaborative_index: VectorIndex,
    content_embeddings: ItemEmbeddings,
    content_index: VectorIndex,
    params: HybridParams,
) -> list[Recommender]:
    """
    Return ``popularity``, ``item_knn``, ``content``, ``ncf`` and ``hybrid``, each serving every user.

    All parts are fitted on the same interactions and in the row order of the same items. A personal recommender fills
    up from popularity where it knows nothing or too little, as it would in use, so that the comparison is between
    what users would see.
    """
    fallback = ScoredRecommender(POPULARITY, popularity, serves_everyone=True)
    collaborative = CollaborativeFilter(ncf, collaborative_index)
    content = ContentBasedRecommender(content_embeddings, content_index)

    def alone(name: str, source: Recommender) -> Recommender:
        return HybridRecommender({source.name: source}, fallback, HybridParams(weights={source.name: 1.0}), name=name)

    sources: dict[str, Recommender] = {COLLABORATIVE: collaborative, CONTENT: content}
    return [
        fallback,
        alone("item_knn", ScoredRecommender("item_knn", item_knn)),
        alone("content", content),
        alone("ncf", collaborative),
        HybridRecommender(sources, fallback, params),
    ]

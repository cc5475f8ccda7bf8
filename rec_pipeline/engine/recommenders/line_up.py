"""Who takes part in an evaluation: the baselines, each source of the hybrid alone, and the hybrid."""

from rec_pipeline.engine.embeddings.item_embeddings import ItemEmbeddings
from rec_pipeline.engine.index.vector_index import VectorIndex
from rec_pipeline.engine.models.item_knn import ItemKNNModel
from rec_pipeline.engine.models.popularity import PopularityModel
from rec_pipeline.engine.recommenders.bundle import COLLABORATIVE, CONTENT, POPULARITY
from rec_pipeline.engine.recommenders.collaborative import CollaborativeModel, CollaborativeRanker
from rec_pipeline.engine.recommenders.content import ContentRanker
from rec_pipeline.engine.recommenders.hybrid import HybridRanker
from rec_pipeline.engine.recommenders.params import HybridParams
from rec_pipeline.engine.recommenders.ranker import Ranker
from rec_pipeline.engine.recommenders.score_ranker import ScoreRanker


def line_up(
    *,
    popularity: PopularityModel,
    item_knn: ItemKNNModel,
    ncf: CollaborativeModel,
    collaborative_index: VectorIndex,
    content_embeddings: ItemEmbeddings,
    content_index: VectorIndex,
    params: HybridParams,
) -> list[Ranker]:
    """
    Return ``popularity``, ``item_knn``, ``content``, ``ncf`` and ``hybrid``, each serving every user.

    All parts are fitted on the same interactions and in the row order of the same items. A personal recommender fills
    up from popularity where it knows nothing or too little, as it would in use, so that the comparison is between
    what users would see.
    """
    fallback = ScoreRanker(POPULARITY, popularity, serves_everyone=True)
    collaborative = CollaborativeRanker(ncf, collaborative_index)
    content = ContentRanker(content_embeddings, content_index)

    def alone(name: str, source: Ranker) -> Ranker:
        return HybridRanker({source.name: source}, fallback, HybridParams(weights={source.name: 1.0}), name=name)

    sources: dict[str, Ranker] = {COLLABORATIVE: collaborative, CONTENT: content}
    return [
        fallback,
        alone("item_knn", ScoreRanker("item_knn", item_knn)),
        alone("content", content),
        alone("ncf", collaborative),
        HybridRanker(sources, fallback, params),
    ]

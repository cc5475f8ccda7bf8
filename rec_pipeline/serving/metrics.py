"""Quality of one list against what the user really went for, by the definitions of the evaluation report."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from rec_pipeline.engine.artifacts import load_sealed, verify_directory
from rec_pipeline.engine.embeddings.item_embeddings import ItemEmbeddings
from rec_pipeline.engine.errors import ArtifactIntegrityError, ConfigurationError
from rec_pipeline.engine.evaluation.metrics import ACCURACY_METRICS, accuracy_metrics, label, list_diversity
from rec_pipeline.serving.bundles import Place
from rec_pipeline.settings import settings


class RecommenderMetrics:
    """
    Measures lists of item ids.

    Parameters
    ----------
    bundle
        Where the vectors are that ``diversity`` compares items by: a place as of ``HybridRecommender.from_bundle``; the
        project's own bundle by default. Without one, diversity is undefined (NaN).

    Examples
    --------
    >>> RecommenderMetrics().evaluate(["a", "b", "c", "d"], ["b", "z"])["precision"]
    0.25
    """

    def __init__(self, bundle: str | Path | None = None) -> None:
        self._embeddings: ItemEmbeddings | None = None
        try:
            place = Place.find(str(bundle if bundle is not None else settings().artifacts_location))
            with place.directory() as directory:
                verify_directory(directory)
                self._embeddings = load_sealed(
                    directory, lambda bundle: ItemEmbeddings.load(bundle / "content_embeddings")
                )
        except ArtifactIntegrityError:
            if bundle is not None:
                raise

    def evaluate(
        self, recommended: Sequence[str], relevant: Sequence[str], *, cutoff: int | None = None
    ) -> dict[str, float]:
        """
        Measure one list.

        Parameters
        ----------
        recommended
            Item ids, best first, without repeats.
        relevant
            Item ids the user went for, in any order.
        cutoff
            Ranks looked at; all of ``recommended`` by default.

        Returns
        -------
        dict
            ``precision``, ``recall``, ``ndcg``, ``hit_rate``, ``mrr``, ``map`` in [0, 1], NaN where nothing is
            relevant; ``diversity``: 1 minus the mean cosine of all pairs, NaN below two items with a vector.

        Raises
        ------
        ConfigurationError
            If the list is empty or repeats an item, or the cutoff is below 1.
        """
        if not recommended or len(set(recommended)) != len(recommended):
            raise ConfigurationError("need a list of recommended items without repeats")
        cutoff = len(recommended) if cutoff is None else cutoff
        if cutoff < 1:
            raise ConfigurationError(f"cutoff is {cutoff}, expected at least 1")
        ids = list(dict.fromkeys([*recommended, *relevant]))
        row = {item_id: place for place, item_id in enumerate(ids)}
        ranking = np.full((1, max(cutoff, len(recommended))), -1, dtype=np.int64)
        ranking[0, : len(recommended)] = np.arange(len(recommended))
        truth = sp.csr_matrix(
            (np.ones(len(set(relevant))), ([0] * len(set(relevant)), [row[item] for item in set(relevant)])),
            shape=(1, len(ids)),
        )
        values = accuracy_metrics(ranking, truth, [cutoff])
        found = {metric: float(values[label(metric, cutoff)][0]) for metric in ACCURACY_METRICS}
        return found | {"diversity": self._diversity(recommended, cutoff)}

    def _diversity(self, recommended: Sequence[str], cutoff: int) -> float:
        if self._embeddings is None:
            return float("nan")
        rows = self._embeddings.item_ids.to_idx(recommended[:cutoff])
        rows = rows[rows >= 0]
        rows = rows[self._embeddings.has_vector[rows]]
        if len(rows) < 2:
            return float("nan")
        (value,) = list_diversity(rows[None, :], self._embeddings.vectors, [len(rows)]).values()
        return float(value[0])

"""
The registered MLflow model: top-K recommendations by user id out of a serving bundle.

MLflow copies this file into the model and executes it on load (models-from-code), so the model holds no pickle: this
text, and the files of the bundle. It needs ``rec_pipeline`` installed where it is loaded.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from rec_pipeline.engine.artifacts import load_sealed, verify_directory
from rec_pipeline.engine.columns import ITEM_ID, RANK, SCORE, USER_ID
from rec_pipeline.engine.data.id_map import NO_IDX
from rec_pipeline.engine.recommenders.bundle import ServingBundle

BATCH_SIZE = 1024


class RecommenderModel(PythonModel):
    """Recommends for the users of a serving bundle; one it does not know gets the list of a user without history."""

    def load_context(self, context: Any) -> None:
        """Load the bundle that was logged with the model."""
        directory = Path(context.artifacts["bundle"])
        verify_directory(directory)
        self.bundle = load_sealed(directory, ServingBundle.load)
        self.recommender = self.bundle.recommender()

    def predict(  # type: ignore[override]  # MLflow looks at the names and passes the context only where it is asked for
        self, model_input: pd.DataFrame, params: dict[str, Any]
    ) -> pd.DataFrame:
        """Return one row a recommendation, ``user_id rank item_id score``: users in the order asked, best first."""
        top_k = int(params["top_k"])
        user_ids = model_input[USER_ID].to_numpy(dtype=object)
        item_idx = np.full((len(user_ids), top_k), NO_IDX, dtype=np.int64)
        score = np.empty((len(user_ids), top_k), dtype=np.float32)
        start, eligible = 0, self.bundle.facts.shown_at(time.time())
        for batch in self.bundle.batches(self.bundle.users.to_idx(user_ids), BATCH_SIZE):
            ranking = self.recommender.recommend(batch, top_k, eligible=eligible)
            item_idx[start : start + len(batch)] = ranking.item_idx
            score[start : start + len(batch)] = ranking.score
            start += len(batch)
        row, column = np.nonzero(item_idx != NO_IDX)
        return pd.DataFrame(
            {
                USER_ID: user_ids[row],
                RANK: column + 1,
                ITEM_ID: self.bundle.items.to_ids(item_idx[row, column]),
                SCORE: score[row, column],
            }
        )


set_model(RecommenderModel())

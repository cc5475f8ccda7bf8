"""
EASE and ALS beside everybody of an evaluation report, on the same split, by the same full ranking and the same tests.

Run with ``python -m rec_pipeline_tests.benchmarks.global_split DATA_DIR``, where ``rec-pipeline run --job
train_and_evaluate`` was done; prints JSON. The settings of the two are chosen by ndcg@10 on the validation part, then
they are fitted on train and validation, as all others were. ALS is implicit's.
"""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import typer

from rec_pipeline.benchmarks.contenders import Contender, baselines
from rec_pipeline.benchmarks.ncf_paper import ALS_CHOICE, EASE_CHOICE
from rec_pipeline.engine.data.batches import Ranking, UserBatch, binary
from rec_pipeline.engine.data.split import InteractionSplit
from rec_pipeline.engine.evaluation.metrics import accuracy_metrics
from rec_pipeline.engine.evaluation.protocol import evaluate_recommenders
from rec_pipeline.engine.evaluation.report import EvaluationReport
from rec_pipeline.engine.models.ease import EASEParams
from rec_pipeline.engine.models.item_knn import ItemKNNModel
from rec_pipeline.engine.recommenders.bundle import ServingBundle
from rec_pipeline.engine.recommenders.line_up import ITEM_KNN, line_up
from rec_pipeline.resources.artifacts import Artifacts
from rec_pipeline.resources.champion import EVALUATED_BUNDLE

CUTOFF = 10
COMPARED = ("ndcg@10", "recall@20")
CHALLENGERS = ("ncf", "hybrid")


def main(data_dir: Path) -> None:
    """Choose, fit, evaluate, and compare every two."""
    artifacts = Artifacts(root=str(data_dir / "artifacts"))
    split = artifacts.load("interaction_split", InteractionSplit)
    noted = artifacts.load("evaluation_report", EvaluationReport).data[EVALUATED_BUNDLE]
    known = split.by_user.fitting.user_item
    models = {ITEM_KNN: artifacts.load("item_knn_model", ItemKNNModel)}
    settings = {}
    for contender in baselines([EASEParams(l2=l2) for l2 in EASE_CHOICE], ALS_CHOICE):
        if contender.alternatives:
            best = max((contender, *contender.alternatives), key=lambda one: _validation_ndcg(one, split))
            models[best.name], settings[best.name] = best.fit(known, 0), best.settings
    bundle = artifacts.load(EVALUATED_BUNDLE, ServingBundle, noted)
    report = evaluate_recommenders(line_up(bundle, models), split)
    metrics = {metric: {name: report.value(name, metric) for name in report.recommenders} for metric in COMPARED}
    comparisons = [
        {"metric": metric, **asdict(report.comparison(challenger, other, metric))}
        for metric in COMPARED
        for challenger in CHALLENGERS
        for other in report.recommenders
        if other != challenger
    ]
    n_users = report.interval("hybrid", COMPARED[0]).n_users
    typer.echo(json.dumps({"n_users": n_users, "settings": settings, **metrics, "comparisons": comparisons}, indent=2))


def _validation_ndcg(contender: Contender, split: InteractionSplit) -> float:
    """Return ndcg@10 of what is new in the validation part, over users who have a history before it."""
    history, later = (binary(part.user_item) for part in (split.by_user.train, split.by_user.validation))
    held_out = sp.csr_matrix(later - later.multiply(history))
    held_out.eliminate_zeros()
    user_idx = np.flatnonzero((np.diff(history.indptr) > 0) & (np.diff(held_out.indptr) > 0))
    users = UserBatch(user_idx, history[user_idx])
    ranking = Ranking.from_scores(contender.fit(history, 0).score(users), CUTOFF, excluded=users.history)
    return float(accuracy_metrics(ranking.item_idx, held_out[user_idx], [CUTOFF])[f"ndcg@{CUTOFF}"].mean())


if __name__ == "__main__":
    typer.run(main)

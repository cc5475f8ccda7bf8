"""The recommender of what comes next."""

from typing import Any

import dagster as dg

from rec_pipeline.engine.compute import Compute
from rec_pipeline.engine.data.split import InteractionSplit
from rec_pipeline.engine.models.ncf_params import TrainingOptions
from rec_pipeline.engine.models.sequence_params import SequenceParams
from rec_pipeline.resources.artifacts import Artifacts
from rec_pipeline.resources.metadata import image
from rec_pipeline.resources.mlflow_tracker import MLflowTracker
from rec_pipeline.resources.training_log import TrainingLog


class SequenceHyperParameters(dg.Config, SequenceParams):
    """Hyper-parameters of the sequence model."""


class SequenceTrainingOptions(dg.Config, TrainingOptions):
    """How the sequence model is trained."""


class SequenceConfig(dg.Config):
    """What is trained, and how."""

    params: SequenceHyperParameters = SequenceHyperParameters()
    training: SequenceTrainingOptions = SequenceTrainingOptions()


@dg.asset(kinds={"pytorch", "mlflow"})
def sequence_model(
    context: dg.AssetExecutionContext,
    config: SequenceConfig,
    interaction_split: InteractionSplit,
    artifacts: dg.ResourceParam[Artifacts],
    tracker: MLflowTracker,
    compute: dg.ResourceParam[Compute],
) -> dg.MaterializeResult[Any]:
    """
    Causal self-attention over a user's last events (after SASRec), trained on interactions before the test part.

    A user is their recent events, so one who came a minute ago is served without retraining. Fitted on the train part
    until ndcg@10 on the validation part no longer grows, then trained on with both; the first fit's lists for the
    validation users are kept, for `fusion_weights`. One MLflow run a materialisation. Consumed by the
    evaluation and the index; its settings by what is served.
    """
    from rec_pipeline.engine.models.sequence_training import continue_sequence, fit_sequence
    from rec_pipeline.engine.recommenders.validation import FittedTwice, sequence_lists

    split = interaction_split
    with tracker.child(context, "sequence") as run:
        run.log_params(config.params.model_dump() | config.training.model_dump() | {"n_trainers": compute.n_trainers})
        run.log_dataset("interaction_split", artifacts.version("interaction_split"), "training", len(split.fitting))
        log = TrainingLog(context, run)
        fitted = fit_sequence(
            split.by_user.train.sequences,
            len(split.items),
            config.params,
            config.training,
            validation=split.by_user.validation.user_item,
            on_epoch=log.on_epoch,
            checkpoint_dir=artifacts.checkpoints(context),
            compute=compute,
        )
        validation = sequence_lists(fitted, split, config.training, compute)
        context.log.info("training on with train and validation")
        continued = continue_sequence(fitted.model, split.by_user.fitting.sequences, config.training, compute=compute)
        curve = log.finish(fitted.best_epoch)
        shown = {"training_curve": image(curve), "mlflow_run": run.link}
        result = artifacts.keep(context, FittedTwice(continued, validation), log.metadata() | shown)
    artifacts.discard_checkpoints(context)
    return result

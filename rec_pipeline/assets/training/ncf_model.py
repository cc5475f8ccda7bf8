"""The collaborative recommender."""

from typing import Any

import dagster as dg

from rec_pipeline.engine.compute import Compute
from rec_pipeline.engine.data.split import InteractionSplit
from rec_pipeline.engine.models.ncf_params import NCFParams, TrainingOptions
from rec_pipeline.resources.artifacts import Artifacts
from rec_pipeline.resources.metadata import image
from rec_pipeline.resources.mlflow_tracker import MLflowTracker
from rec_pipeline.resources.training_log import TrainingLog


class NCFHyperParameters(dg.Config, NCFParams):
    """Hyper-parameters of NCF."""


class NCFTrainingOptions(dg.Config, TrainingOptions):
    """How NCF is trained."""


class NCFConfig(dg.Config):
    """What is trained, and how."""

    params: NCFHyperParameters = NCFHyperParameters()
    training: NCFTrainingOptions = NCFTrainingOptions()


@dg.asset(kinds={"pytorch", "mlflow"})
def ncf_model(
    context: dg.AssetExecutionContext,
    config: NCFConfig,
    interaction_split: InteractionSplit,
    artifacts: dg.ResourceParam[Artifacts],
    tracker: MLflowTracker,
    compute: dg.ResourceParam[Compute],
) -> dg.MaterializeResult[Any]:
    """
    NeuMF (He et al., 2017): GMF and MLP branches under one head, trained on interactions before the test part.

    Fitted on the train part until ndcg@10 on the validation part no longer grows, then again on both for as many
    epochs; the first fit's lists for the validation users are kept, for `fusion_weights`. One MLflow run a
    materialisation. Consumed by the evaluation and the index; its settings by what is served.
    """
    from rec_pipeline.engine.models.ncf_training import fit_ncf
    from rec_pipeline.engine.recommenders.validation import FittedTwice, collaborative_lists

    split = interaction_split
    with tracker.child(context, "ncf") as run:
        run.log_params(
            config.params.model_dump(exclude_none=True)
            | config.training.model_dump()
            | {"n_trainers": compute.n_trainers}
        )
        run.log_dataset("interaction_split", artifacts.version("interaction_split"), "training", len(split.fitting))
        log = TrainingLog(context, run)
        fitted = fit_ncf(
            split.by_user.train.user_item,
            config.params,
            config.training,
            validation=split.by_user.validation.user_item,
            on_epoch=log.on_epoch,
            checkpoint_dir=artifacts.checkpoints(context),
            compute=compute,
        )
        chosen = fitted.refit_params.model_dump(
            include={"linear_item_exponent", "linear_shrinkage", "linear_weight"}, exclude_none=True
        )
        run.log_params(chosen)
        context.log.info(f"the closed form was fitted with {chosen}")
        validation = collaborative_lists(fitted, split, config.training, compute)
        context.log.info(f"fitting again on train and validation, {fitted.best_epoch} epochs")
        refitted = fit_ncf(split.by_user.fitting.user_item, fitted.refit_params, config.training, compute=compute)
        curve = log.finish(fitted.best_epoch)
        shown = {"training_curve": image(curve), "mlflow_run": run.link}
        result = artifacts.keep(context, FittedTwice(refitted.model, validation), log.metadata() | shown)
    artifacts.discard_checkpoints(context)
    return result

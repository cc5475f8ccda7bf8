"""
Guards whose absence the tests of their faults notice.

Each row takes one guard out of this process and runs a test that stands elsewhere, which must fail without it. Guards
of the publishing protocol, which need a process of their own, are in ``guards``.
"""

import hashlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from redis.asyncio.connection import AbstractConnection

from rec_pipeline.engine.errors import RecPipelineError
from rec_pipeline.engine.store import events, scripts
from rec_pipeline_tests.engine.data import test_validation
from rec_pipeline_tests.engine.embeddings import test_encoder, test_item_embeddings
from rec_pipeline_tests.engine.embeddings.test_encoder import silent_hub
from rec_pipeline_tests.engine.embeddings.test_item_embeddings import cache
from rec_pipeline_tests.engine.models import test_ncf, test_training
from rec_pipeline_tests.engine.models.test_ncf import fitted, parity
from rec_pipeline_tests.engine.recommenders import test_lists
from rec_pipeline_tests.engine.recommenders.test_lists import lists
from rec_pipeline_tests.engine.store import test_events
from rec_pipeline_tests.faults import test_killed_runs, test_tracking_faults
from rec_pipeline_tests.faults.test_killed_runs import history
from rec_pipeline_tests.resources.test_mlflow_tracker import migrated_store
from rec_pipeline_tests.serving import test_degradation, test_recommenders
from rec_pipeline_tests.serving.conftest import bundle, config, data_dir, publish_lists, sealed

__all__ = [
    "bundle",
    "cache",
    "config",
    "data_dir",
    "fitted",
    "history",
    "lists",
    "migrated_store",
    "parity",
    "publish_lists",
    "sealed",
    "silent_hub",
]

pytestmark = pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy:DeprecationWarning")  # see test_f23


@dataclass(frozen=True)
class Twin:
    """
    One guard.

    Attributes
    ----------
    fault, guard
        Which fault it guards against, and what it is.
    test
        Fails without it.
    removal
        What takes the place of what, by dotted name.
    arguments
        Of the test, besides its fixtures.
    error
        With which the test may fail, if not by an assertion.
    """

    fault: str
    guard: str
    test: Callable[..., object]
    removal: Mapping[str, object]
    arguments: Mapping[str, object] = field(default_factory=dict)
    error: type[Exception] = AssertionError


def nothing(*_: object, **__: object) -> None:
    """Do not look."""


def recording(text: str, instead: str) -> dict[str, object]:
    """Return the script that records an event with one command changed."""
    script = events._RECORD.replace(text, instead)
    assert script != events._RECORD
    sha = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
    module = "rec_pipeline.engine.store.events"
    return {f"{module}._RECORD": script, f"{module}._RECORD_SHA": sha}


async def kept_open(connection: AbstractConnection, *arguments: Any, **keywords: Any) -> Any:
    """Read a reply; a connection on which one is still to come goes back to the others."""
    return await read_response(connection, *arguments, **{**keywords, "disconnect_on_error": False})


async def nothing_to_read(_: AbstractConnection) -> bool:
    """Take a connection for fresh."""
    return False


read_response = AbstractConnection.read_response

TWINS = (
    Twin(
        "F05",
        "what is live is not published again",
        test_killed_runs.test_f05_a_step_killed_before_its_event_is_run_again_and_nothing_is_doubled,
        {
            "rec_pipeline.engine.store.publication.Work.is_live": lambda _: False,
            "rec_pipeline.engine.store.scripts.ADD_TO_HISTORY": scripts.ADD_TO_HISTORY.replace(
                "if last and", "if false and"
            ),
        },
    ),
    Twin(
        "F15",
        "required columns",
        test_validation.test_missing_column_is_named,
        {"rec_pipeline.engine.data.validation.require_columns": nothing},
        error=KeyError,
    ),
    Twin(
        "F15",
        "comparison with the last accepted table",
        test_validation.test_ratings_on_another_scale_stop_the_run,
        {"rec_pipeline.engine.data.validation.check_drift": nothing},
        {"scale": 20.0},
    ),
    Twin(
        "F16",
        "event ids that were seen",
        test_events.test_replays_in_any_order_end_in_the_same_state,
        recording("if redis.call('ZSCORE', ids, event_id) then return 0 end", ""),
    ),
    Twin("F16", "only forward in time", test_events.test_a_late_event_never_moves_time_back, recording("'GT', ", "")),
    Twin(
        "F17",
        "half the rate",
        test_training.test_f17_training_that_diverges_goes_on_at_half_the_rate,
        {"rec_pipeline.engine.models.training.MAX_HALVINGS": 0},
        {"n_halvings": 1},
        RecPipelineError,
    ),
    Twin(
        "F17",
        "weights are looked at",
        test_ncf.test_f17_a_weight_that_is_not_finite_is_never_saved,
        {"rec_pipeline.engine.models.training._is_finite": lambda _: True},
    ),
    Twin(
        "F18",
        "minimums",
        test_validation.test_each_minimum_holds_at_its_bound_and_stops_below,
        {"rec_pipeline.engine.data.validation._require_enough": nothing},
        {"params": {"min_users": 6}, "message": "5 users"},
    ),
    Twin(
        "F19",
        "lists are filled up with what is popular",
        test_lists.test_users_without_history_get_the_popular_list,
        {"rec_pipeline.engine.recommenders.hybrid.HybridRanker._fill": lambda _, merged, __: merged},
    ),
    Twin(
        "F20",
        "nothing said is no text",
        test_item_embeddings.test_items_without_text_have_no_vector,
        {"rec_pipeline.engine.embeddings.item_text._sentence": lambda entries: f"{entries}."},
    ),
    Twin(
        "F21",
        "ids are looked at first",
        test_recommenders.test_an_id_that_cannot_be_one_is_refused_before_the_store_is_asked,
        {"rec_pipeline.serving.params.check_id": nothing},
        {"user_id": "{u1}"},
        RecPipelineError,
    ),
    Twin(
        "F23",
        "what MLflow was not told is kept",
        test_tracking_faults.test_f23_with_a_closed_port_the_next_run_tells_what_this_one_could_not,
        {"rec_pipeline.resources.mlflow_spool.Spool.append": nothing},
    ),
    Twin(
        "F27",
        "a folder is no name of the hub",
        test_encoder.test_f27_a_folder_is_taken_before_a_model_of_the_hub_with_its_name,
        {"rec_pipeline.engine.embeddings.encoder._folder": nothing},
        error=RecPipelineError,
    ),
    Twin(
        "F29",
        "a connection with a reply to come is closed",
        test_degradation.test_f29_a_read_that_is_given_up_leaves_no_reply_for_the_next,
        {
            "redis.asyncio.connection.AbstractConnection.read_response": kept_open,
            "redis.asyncio.connection.AbstractConnection.can_read": nothing_to_read,
        },
    ),
    Twin(
        "F30",
        "recent items are capped",
        test_events.test_the_memory_of_one_user_is_flat_after_the_cap,
        recording("redis.call('ZREMRANGEBYRANK', recent, 0, -1 - max_recent)", ""),
    ),
)


@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: f"{twin.fault} {twin.guard}")
def test_without_its_guard_it_fails(
    twin: Twin, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    for target, replacement in twin.removal.items():
        monkeypatch.setattr(target, replacement)
    arguments: dict[str, Any] = {
        name: twin.arguments[name] if name in twin.arguments else request.getfixturevalue(name)
        for name in inspect.signature(twin.test).parameters
    }

    with pytest.raises((AssertionError, pytest.fail.Exception, twin.error)):
        twin.test(**arguments)

from collections.abc import Callable

import pyarrow as pa
import pytest

from rec_pipeline.engine.errors import InvalidIdError
from rec_pipeline.engine.store import keys

USERS = ["u1", "meta:current", "a:b", "ユーザー", "*", "stage:x"]


def test_a_staging_key_hashes_to_the_slot_of_the_live_key() -> None:
    for user_id in USERS:
        staged = keys.stage_key(user_id, 17)

        assert staged[staged.index("{") + 1 : staged.index("}")] == keys.live_key(user_id)


def test_no_user_can_take_the_key_of_another_kind() -> None:
    fixed = {keys.CURRENT, keys.LOCK, keys.JOB, keys.HISTORY, keys.PIN, keys.POPULAR, keys.LAST_GENERATION}
    of_users = [
        key
        for user_id in USERS
        for key in (
            keys.live_key(user_id),
            keys.stage_key(user_id, 1),
            keys.events_key(user_id),
            keys.answers_key(user_id),
        )
    ]

    assert len(set(of_users)) == len(of_users)
    assert not fixed & set(of_users)


def test_keys_of_a_batch_are_the_keys_of_each() -> None:
    users = pa.array(USERS)

    assert keys.live_keys(users).to_pylist() == [keys.live_key(user_id) for user_id in USERS]
    assert keys.stage_keys(users, 3).to_pylist() == [keys.stage_key(user_id, 3) for user_id in USERS]


def test_the_answers_of_a_user_hash_to_the_slot_of_the_events() -> None:
    for user_id in USERS:
        answers = keys.answers_key(user_id)

        assert answers[answers.index("{") + 1 : answers.index("}")] == keys.events_key(user_id)


@pytest.mark.parametrize(
    "make_key", [keys.live_key, keys.events_key, keys.answers_key, lambda user_id: keys.stage_key(user_id, 1)]
)
def test_an_invalid_user_id_gets_no_key(make_key: Callable[[str], str]) -> None:
    with pytest.raises(InvalidIdError, match="user_id"):
        make_key("a}b")

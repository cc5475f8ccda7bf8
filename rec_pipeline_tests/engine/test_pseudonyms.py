from pathlib import Path

import pytest

from rec_pipeline.engine import pseudonyms
from rec_pipeline.engine.errors import StoredValueError
from rec_pipeline.engine.pseudonyms import pseudonym, use_key_file
from rec_pipeline.engine.store.codec import decode_list
from rec_pipeline.resources.deployment import resources_for
from rec_pipeline.settings import Settings


@pytest.fixture(autouse=True)
def installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(pseudonyms, "_path", None)
    monkeypatch.setattr(pseudonyms, "_ids_are_shown", False)
    use_key_file(tmp_path / "data" / "key")
    return tmp_path / "data" / "key"


def test_a_user_has_one_name_an_installation_and_another_elsewhere(installation: Path) -> None:
    here = pseudonym("ann")

    pseudonyms._key.cache_clear()  # as in another process
    assert pseudonym("ann") == here != pseudonym("bob")
    use_key_file(installation.with_name("elsewhere"))
    assert pseudonym("ann") != here


def test_the_key_is_its_owners_alone_and_not_made_before_it_is_needed(installation: Path) -> None:
    assert not installation.exists()

    pseudonym("ann")

    assert installation.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in installation.parent.iterdir()] == ["key"]


def test_s15_a_damaged_list_is_told_of_without_its_user() -> None:
    with pytest.raises(StoredValueError, match=pseudonym("ann")) as told:
        decode_list(b"[]", "ann")

    assert "ann" not in str(told.value)


@pytest.mark.parametrize("variable", [{}, {"REC_SHOW_USER_IDS": "true"}])
def test_s15_ids_stand_in_messages_only_where_the_setting_asks_for_them(
    installation: Path, monkeypatch: pytest.MonkeyPatch, variable: dict[str, str]
) -> None:
    monkeypatch.setenv("REC_DATA_DIR", str(installation.parent))
    for name, value in variable.items():
        monkeypatch.setenv(name, value)

    resources_for(Settings())

    with pytest.raises(StoredValueError) as told:
        decode_list(b"[]", "ann")
    assert ("'ann'" in str(told.value)) == bool(variable)
    assert ("user#" in str(told.value)) != bool(variable)

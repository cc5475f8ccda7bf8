"""
Loads every kind of artefact under an audit hook that ends the process when anything is unpickled; run by tests.

Those it makes itself in a folder, or with ``--made`` those that a run has left there.
"""

import importlib
import inspect
import os
import pkgutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp


def watch_for_pickles() -> None:
    """End this process at once when anything is unpickled in it."""

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "pickle.find_class":
            os.write(2, f"unpickled {arguments}\n".encode())
            os._exit(66)

    sys.addaudithook(watch)


def load_made(root: Path) -> None:
    """Load what a run has made: every artefact that has a current version, as the class its manifest names."""
    import rec_pipeline.engine
    from rec_pipeline.engine.artifacts import CURRENT, ArtifactStore, Storable, read_table
    from rec_pipeline.resources.artifacts import TABLE

    kinds: dict[str, Any] = {}
    for found in pkgutil.walk_packages(rec_pipeline.engine.__path__, "rec_pipeline.engine."):
        module = importlib.import_module(found.name)
        kinds |= {
            name.lower(): kind
            for name, kind in inspect.getmembers(module, inspect.isclass)
            if issubclass(kind, Storable)
        }
    store, loaded = ArtifactStore(root), set()
    watch_for_pickles()
    for key in sorted(path.parent.name for path in root.glob(f"*/{CURRENT}")):
        kind, folder = store.manifest(key).kind, store.path(key)
        if kind == "DataFrame":
            read_table(folder / TABLE)
        elif kind == "FittedTwice":  # a model of the class that the key names, and its lists
            for name in (key.replace("_", ""), "validationranking"):
                kinds[name].load(folder)
        else:
            kinds[kind.lower()].load(folder)
        loaded.add(key)
    sys.stdout.write(" ".join(sorted(loaded)))


def main() -> None:
    from rec_pipeline.engine.artifacts import ArtifactStore, read_array, read_table, write_table
    from rec_pipeline.engine.data.id_map import IdMap
    from rec_pipeline.engine.data.validation import ValidatedTable, ValidationParams, validate_items
    from rec_pipeline.engine.embeddings.item_embeddings import EmbeddingCache, ItemEmbeddings
    from rec_pipeline.engine.index.vector_index import IndexParams, VectorIndex, build_index
    from rec_pipeline.engine.models.item_knn import ItemKNNModel, ItemKNNParams
    from rec_pipeline.engine.models.ncf import NCFModel
    from rec_pipeline.engine.models.ncf_params import NCFParams, TrainingOptions
    from rec_pipeline.engine.models.ncf_training import fit_ncf
    from rec_pipeline.engine.models.popularity import PopularityModel

    root = Path(sys.argv[1])
    store = ArtifactStore(root)
    rng = np.random.default_rng(0)
    history = sp.csr_matrix((rng.random((30, 20)) < 0.3).astype(np.float32))
    ids = IdMap(np.array([f"i{row:02d}" for row in range(20)], dtype=object))
    vectors = rng.normal(size=(20, 8)).astype(np.float32)
    embeddings = ItemEmbeddings(ids, vectors, np.ones(20, dtype=bool), "s")
    params = NCFParams(embedding_dim=8, mlp_dim=4, layers=[8], pretrain_epochs=1, epochs=1, batch_size=16)
    items = pd.DataFrame({"item_id": [f"i{row}" for row in range(5)], "title": "t"})
    made: dict[str, Any] = {
        "items": validate_items(items, ValidationParams()),
        "ids": ids,
        "ncf": fit_ncf(history, params, TrainingOptions(device="cpu", n_threads=1)).model,
        "popularity": PopularityModel.fit(history),
        "item_knn": ItemKNNModel.fit(history, ItemKNNParams()),
        "embeddings": embeddings,
        "index": build_index(embeddings, IndexParams()),
    }
    for key, value in made.items():
        store.write(key, value.save, kind=type(value).__name__)
    store.write("table", lambda folder: write_table(folder / "table.parquet", items), kind="DataFrame")
    cache = EmbeddingCache(root / "cache")
    cache.put("m", [b"a" * 64], vectors[:1])

    hostile = root / "hostile.npy"
    canary = root / "canary"
    payload = np.array([{"a": Canary(canary)}], dtype=object)
    np.save(hostile, payload, allow_pickle=True)

    watch_for_pickles()
    kinds = {ValidatedTable, IdMap, NCFModel, PopularityModel, ItemKNNModel, ItemEmbeddings, VectorIndex}
    assert {type(value) for value in made.values()} == kinds
    for key, value in made.items():
        type(value).load(store.path(key))
    read_table(store.path("table") / "table.parquet")
    assert cache.get("m", [b"a" * 64])[0].all()
    try:
        read_array(hostile)
    except ValueError as error:
        assert "allow_pickle" in str(error), error  # noqa: PT017 - not a test function
    else:
        raise AssertionError("an array of objects was read")
    assert not canary.exists()
    sys.stdout.write(f"{len(made) + 2} kinds loaded, nothing unpickled\n")
    if "--teeth" in sys.argv:
        np.load(hostile, allow_pickle=True)


class Canary:
    """Pickles as a call that leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


if __name__ == "__main__":
    if "--made" in sys.argv:
        load_made(Path(sys.argv[1]))
    else:
        main()

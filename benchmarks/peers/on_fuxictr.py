"""FuxiCTR's side: click models on rows; started by `sides.py`."""

import importlib
import sys
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from fuxictr.features import FeatureMap
from fuxictr.pytorch.dataloaders import RankDataLoader
from watch import Watch, settings

given = settings()
sys.path.insert(0, str(Path(sys.prefix, "zoo")))  # as environments.py lays it out
rows = np.load(given["data"])
sequence = given["model"] in ("DIN", "DIEN")
names = ["user_id", "item_id", *(name for name in rows.files if name.startswith("field_"))]
sizes = {name: int(rows[name].max()) + 1 for name in names}
sizes["item_id"] = max(sizes["item_id"], int(rows["history"].max()) + 1)
columns = {name: rows[name] for name in names}

with tempfile.TemporaryDirectory() as folder:
    features = FeatureMap("rows", folder)
    features.labels = ["label"]
    for name in names:
        features.features[name] = {"source": "", "type": "categorical", "vocab_size": sizes[name]}
    features.features["item_id"]["padding_idx"] = 0
    if sequence:
        columns["history"] = rows["history"]
        shape: dict[str, Any] = {"vocab_size": sizes["item_id"], "max_len": rows["history"].shape[1]}
        shared = {"share_embedding": "item_id", "padding_idx": 0, "feature_encoder": None}
        features.features["history"] = {"source": "", "type": "sequence", **shape, **shared}
    features.num_fields = features.get_num_fields()
    features.total_features = sum(sizes.values())
    features.default_emb_dim = given["dim"]
    features.set_column_index()
    path = str(Path(folder, "train.npz"))
    np.savez(path, label=rows["label"], **columns)
    options = {
        "model_root": folder,
        "embedding_dim": given["dim"],
        "optimizer": "adam",
        "loss": "binary_crossentropy",
        "metrics": ["AUC"],
        "verbose": 0,
        **given["options"],
    }
    if sequence:
        prefix = given["model"].lower()
        options |= {f"{prefix}_target_field": ["item_id"], f"{prefix}_sequence_field": ["history"]}
        options |= {"dien_neg_seq_field": []}
    model = getattr(importlib.import_module(given["model"]), given["model"])(features, **options)
    loader, _ = RankDataLoader(
        features, stage="train", train_data=path, batch_size=given["batch"], num_workers=0
    )
    some: Any = list(islice(loader, 20)) if given.get("ready") else loader
    watch = Watch(given)

    def fit() -> None:
        """Epochs without the validation between them."""
        model._max_gradient_norm, model._total_steps, model._eval_steps = 10.0, 0, 10**9
        model._stop_training = False
        while True:
            model.train_epoch(some)

    watch.run(fit)
    positive = int(rows["label"].sum())
    watch.finish(rows=loader.num_samples, batches=len(loader), positive=positive)

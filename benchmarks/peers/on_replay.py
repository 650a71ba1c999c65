"""RePlay's side: SASRec; started by `sides.py`."""

import tempfile
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pandas as pd
import torch
from replay.data import FeatureHint, FeatureSource, FeatureType
from replay.data.nn import TensorFeatureInfo, TensorFeatureSource, TensorSchema
from replay.data.nn.parquet import ParquetModule
from replay.nn.lightning import LightningModule
from replay.nn.sequential import SasRec
from replay.nn.transform.template.sasrec import make_default_sasrec_transforms
from watch import Sequences, Watch, left_padded, settings, timed

given = settings()
data = Sequences(given["data"])
window, n_items = given["window"], data.n_items
schema = TensorSchema(
    TensorFeatureInfo(
        "item_id",
        is_seq=True,
        feature_type=FeatureType.CATEGORICAL,
        embedding_dim=given["options"]["embedding_dim"],
        padding_value=n_items,  # items are numbered from 0
        cardinality=n_items,
        feature_hint=FeatureHint.ITEM_ID,
        feature_sources=[TensorFeatureSource(FeatureSource.INTERACTIONS, "item_id")],
    )
)
model = LightningModule(SasRec.from_params(schema, max_sequence_length=window, **given["options"]))


def ragged(back: int, length: int) -> pd.DataFrame:
    """The last ``length`` items of each user but the very last ``back``."""
    last = data.ends - back
    first = np.maximum(data.starts, last - length)
    items = [data.item[start:end] - 1 for start, end in zip(first, last, strict=True)]
    return pd.DataFrame({"user_id": np.arange(len(last)), "item_id": items})


def score(items: np.ndarray, lengths: np.ndarray) -> torch.Tensor:
    """Scores of all items."""
    padded = torch.from_numpy(left_padded(items, lengths))
    x = {"item_id": torch.where(padded > 0, padded - 1, n_items)}
    model.model.eval()
    scores = model.model(feature_tensors=x, padding_mask=padded > 0)["logits"]
    model.model.train()
    return scores[:, :n_items]


with tempfile.TemporaryDirectory() as folder:
    paths = {part: str(Path(folder, f"{part}.parquet")) for part in ("train", "predict")}
    train = ragged(2, window + 1)
    train.to_parquet(paths["train"])
    ragged(1, window).to_parquet(paths["predict"])
    shape = {"padding": n_items}
    transforms = make_default_sasrec_transforms(schema)
    module = ParquetModule(
        batch_size=given["batch"],
        metadata={
            "train": {"item_id": {"shape": window + 1, **shape}},
            "predict": {"item_id": {"shape": window, **shape}},
        },
        transforms={part: transforms[part] for part in paths},
        train_path=paths["train"],
        predict_path=paths["predict"],
    )
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    options: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "enable_checkpointing": False, **quiet}
    watch = Watch(given, lambda: data.quality(score, window))
    watch.run(
        lambda: lightning.Trainer(max_epochs=10**6, limit_val_batches=0, **options).fit(
            model, datamodule=module
        )
    )
    first_ten: list[torch.Tensor] = []

    class TopItems(lightning.Callback):
        """Keeps the first ten of each row, as RePlay's own callback does into a table."""

        def on_predict_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
            """Called by the trainer."""
            first_ten.append(outputs["logits"].topk(10).indices)

    predict = lightning.Trainer(callbacks=[TopItems()], **options)
    tested = timed(lambda: predict.predict(model, datamodule=module, return_predictions=False))
    targets = sum(len(items) - 1 for items in train["item_id"])
    batches = -(-len(train) // given["batch"])
    watch.finish(rows=len(train), batches=batches, targets=targets, test_s=tested, **data.facts)

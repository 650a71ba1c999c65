"""DeepCTR-Torch's side: click models on rows; started by `sides.py`."""

from typing import Any

import numpy as np
from deepctr_torch import models
from deepctr_torch.inputs import SparseFeat, VarLenSparseFeat
from watch import Watch, settings

given = settings()
rows = np.load(given["data"])
options, dim = dict(given["options"]), given["dim"]
sequence = given["model"] in ("DIN", "DIEN")
names = ["user_id", "item_id", *(name for name in rows.files if name.startswith("field_"))]
sizes = {name: int(rows[name].max()) + 1 for name in names}
sizes["item_id"] = max(sizes["item_id"], int(rows["history"].max()) + 1, int(rows["negatives"].max()) + 1)
columns: list[Any] = [SparseFeat(name, sizes[name], dim) for name in names]
inputs = {name: rows[name] for name in names}


def behaviours(name: str) -> VarLenSparseFeat:
    """A sequence of items."""
    item = SparseFeat(name, sizes["item_id"], dim, embedding_name="item_id")
    return VarLenSparseFeat(item, maxlen=rows["history"].shape[1], length_name="length")


if sequence:
    columns.append(behaviours("hist_item_id"))
    inputs |= {"hist_item_id": rows["history"], "length": rows["length"]}
    if given["model"] == "DIEN":
        columns.append(behaviours("neg_hist_item_id"))
        inputs["neg_hist_item_id"] = rows["negatives"]
    model = getattr(models, given["model"])(columns, ["item_id"], device="cpu", **options)
else:
    model = getattr(models, given["model"])(columns, columns, device="cpu", **options)
model.compile("adam", "binary_crossentropy")
watch = Watch(given)
watch.run(
    lambda: model.fit(
        inputs, rows["label"].astype(np.float32), batch_size=given["batch"], epochs=10**6, verbose=0
    )
)
count = len(rows["label"])
watch.finish(rows=count, batches=-(-count // given["batch"]), positive=int(rows["label"].sum()))

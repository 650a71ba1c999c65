"""RecTools' side: SASRec; started by `sides.py`."""

from typing import Any

import numpy as np
import pandas as pd
import torch
from pytorch_lightning import Trainer
from rectools.dataset import Dataset
from rectools.models import SASRecModel
from watch import Sequences, Watch, left_padded, settings, timed

given = settings()


def trainer() -> Trainer:
    """RecTools' own, but for the number of epochs."""
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(max_epochs=10**6, enable_checkpointing=False, devices=1, accelerator="cpu", **quiet)


data = Sequences(given["data"])
model = SASRecModel(
    batch_size=given["batch"],
    session_max_len=given["window"],
    get_trainer_func=trainer,
    recommend_torch_device="cpu",
    **given["options"],
)


def dataset(back: int) -> Dataset:
    """The interactions of all users but the last so many."""
    some = data.before(back)
    days = pd.Timestamp(0) + pd.to_timedelta(data.place[some], unit="D")
    table = {"user_id": data.user[some], "item_id": data.item[some], "weight": 1, "datetime": days}
    return Dataset.construct(pd.DataFrame(table))


def score(items: np.ndarray, lengths: np.ndarray) -> torch.Tensor:
    """Scores of all items; one that training does not have scores lowest."""
    net = model.torch_model.eval()
    own = model.data_preparator.item_id_map.to_internal
    number = np.zeros(data.n_items + 1, np.int64)  # 0 is padding
    known = own[own.index.isin(np.arange(1, data.n_items + 1))]
    number[known.index.to_numpy(np.int64)] = known.to_numpy()
    vectors = net.item_model.get_all_embeddings()
    state = net.encode_sessions({"x": torch.from_numpy(number[left_padded(items, lengths)])}, vectors)[:, -1]
    scores = (state @ vectors.T)[:, number[1:]]
    net.train()
    return scores.masked_fill(torch.from_numpy(number[1:] == 0), -torch.inf)


watch = Watch(given, lambda: data.quality(score, given["window"]))
train, asked = dataset(2), dataset(1)
watch.run(lambda: model.fit(train))
model.is_fitted = True  # it was interrupted
users = np.unique(data.user)
tested = timed(lambda: model.recommend(users, asked, k=10, filter_viewed=False))
loader = model.data_preparator.get_dataloader_train()
targets = sum(int((batch["y"] != 0).sum()) for batch in loader)
watch.finish(rows=len(loader.dataset), batches=len(loader), targets=targets, test_s=tested, **data.facts)

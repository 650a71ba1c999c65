"""RecBole's side: sequence models on interactions, click models on rows; started by `sides.py`."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.data.interaction import Interaction
from recbole.utils import get_model, get_trainer, init_seed
from watch import Sequences, Watch, settings, timed

CLICKS = ("DIN", "DIEN", "DeepFM", "DCN", "xDeepFM")
COMMON = {
    "dataset": "rows",
    "use_gpu": False,
    "show_progress": False,
    "epochs": 10**6,
    "eval_batch_size": 4096,
    "state": "ERROR",
    "USER_ID_FIELD": "user_id",
    "ITEM_ID_FIELD": "item_id",
}


def prepared(given: dict[str, Any], options: dict[str, Any], folder: str) -> tuple[Any, Any, Any, Any]:
    """The dataset, its training and test batches, and a trainer."""
    options = COMMON | {"data_path": folder, "checkpoint_dir": folder, "seed": given["seed"]} | options
    options |= {"train_batch_size": given["batch"], "train_neg_sample_args": None}
    config = Config(model=given["model"], config_dict=options | given["options"])
    init_seed(given["seed"], True)
    dataset = create_dataset(config)
    train, _, test = data_preparation(config, dataset)
    model = get_model(given["model"])(config, train.dataset)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    return dataset, train, test, trainer


def sequences(given: dict[str, Any], folder: str) -> None:
    """Trains on every prefix of each user's interactions but the last two."""
    data = Sequences(given["data"])
    table = np.stack([data.user, data.item, data.place], 1)
    header = "user_id:token\titem_id:token\ttimestamp:float"
    np.savetxt(
        Path(folder, "rows", "rows.inter"), table, fmt="%d", delimiter="\t", header=header, comments=""
    )
    options = {
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "MAX_ITEM_LIST_LENGTH": given["window"],
        "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"},
        "metrics": ["NDCG"],
        "topk": [10],
        "valid_metric": "NDCG@10",
    }
    dataset, train, test, trainer = prepared(given, options, folder)
    own = torch.tensor(dataset.token2id("item_id", [str(item) for item in range(1, data.n_items + 1)]))
    number = torch.cat([own.new_zeros(1), own])

    def score(items: np.ndarray, lengths: np.ndarray) -> torch.Tensor:
        trainer.model.eval()
        batch = {"item_id_list": number[items], "item_length": torch.from_numpy(lengths)}
        scores = trainer.model.full_sort_predict(Interaction(batch))
        trainer.model.train()
        return scores.view(len(items), -1)[:, own]

    watch = Watch(given, lambda: data.quality(score, given["window"]))
    watch.run(lambda: trainer.fit(train, saved=False, show_progress=False))
    tested = timed(lambda: trainer.evaluate(test, load_best_model=False))
    rows = len(train.dataset)
    watch.finish(rows=rows, batches=len(train), targets=rows, test_s=tested, **data.facts)


def clicks(given: dict[str, Any], folder: str) -> None:
    """Trains on rows that were made before."""
    rows = np.load(given["data"])
    sequence = given["model"] in ("DIN", "DIEN")
    single = ["label", "user_id", "item_id", *(name for name in rows.files if name.startswith("field_"))]
    kinds = {"label": "float"}
    columns = [rows[name].astype(str) for name in single]
    header = [f"{name}:{kinds.get(name, 'token')}" for name in single]
    if sequence:
        for name, source in (("item_id_list", "history"), ("neg_item_id_list", "negatives")):
            real = np.where(rows[source] > 0, rows[source].astype(str), "")
            columns.append(np.array([" ".join(row).rstrip() for row in real]))
            header.append(f"{name}:token_seq")
    lines = "\n".join(map("\t".join, zip(*columns, strict=True)))
    for part, text in (("train", lines), ("valid", lines[: lines.index("\n")]), ("test", "")):
        text = text or lines[: lines.index("\n")]
        Path(folder, "rows", f"rows.{part}.inter").write_text("\t".join(header) + "\n" + text + "\n")
    names = [name.split(":")[0] for name in header]
    options = {
        "load_col": {"inter": names},
        "benchmark_filename": ["train", "valid", "test"],
        "alias_of_item_id": [name for name in names if name.endswith("_list")],
        "LABEL_FIELD": "label",
        "MAX_ITEM_LIST_LENGTH": rows["history"].shape[1],
        "eval_args": {"split": None, "order": "TO", "mode": "labeled"},
        "metrics": ["AUC"],
        "valid_metric": "AUC",
    }
    _, train, _, trainer = prepared(given, options, folder)
    watch = Watch(given)
    watch.run(lambda: trainer.fit(train, saved=False, show_progress=False))
    positive = int(train.dataset.inter_feat["label"].sum())
    watch.finish(rows=len(train.dataset), batches=len(train), positive=positive)


if __name__ == "__main__":
    given = settings()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "rows").mkdir()
        (clicks if given["model"] in CLICKS else sequences)(given, folder)

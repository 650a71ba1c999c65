"""The rows of a command line of ours as arrays in one file, which all sides of a comparison read."""

from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

CONF = Path(__file__).resolve().parents[1] / "conf"


def read(given: list[str]) -> Any:
    """The data of a command line, ready."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        data = instantiate(compose("train", given).dataset, _convert_="all")
    data.prepare()
    return data


def interactions(given: list[str], path: Path) -> str:
    """Writes ``user`` and ``item`` (N,), numbered from 1, by user and time; returns the file."""
    log = read(given).log
    np.savez(path, user=log.users[:], item=log.items[:])
    return str(path)


def clicks(given: list[str], path: Path, seed: int) -> str:
    """Writes the training rows of a protocol of clicks; returns the file.

    They are ``label``, ``user_id``, ``item_id``, ``length`` (N,), ``history`` (N, T) of that many items, then
    0, as many random items, ``negatives``, and a code for each field, ``field_*`` (N,).
    """
    data = read(given)
    batch = data.feed.train(np.arange(data.feed.rows))
    history = batch.items.numpy()
    drawn = np.random.default_rng(seed).integers(1, data.log.n_items + 1, history.shape)
    fields = data.catalog.fields[1:]  # the first is the user
    codes = batch.codes.numpy()
    np.savez(
        path,
        label=batch.labels.numpy(),
        user_id=batch.users.numpy(),
        item_id=batch.candidates.numpy(),
        length=batch.lengths.numpy(),
        history=history,
        negatives=np.where(history > 0, drawn, 0),
        **{f"field_{field.name}": codes[:, column] for column, field in enumerate(fields, 1)},
    )
    return str(path)

import floor
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from rows import CONF
from torch.utils.flop_counter import FlopCounterMode

from hydrec.batch import Catalog, SequenceBatch


def test_the_formula_is_what_torch_counts_in_a_step():
    rows, window, dim, items, inner = 4, 6, 8, 30, 20
    with initialize_config_dir(str(CONF), version_base="1.3"):
        choice = ["protocol=leave_one_out", f"protocol.window={window}", "model=sasrec", "loss=softmax"]
        cfg = compose("train", [*choice, f"model.net.dim={dim}", f"model.net.inner={inner}"])
    none = torch.zeros(1, dtype=torch.int64)
    catalog = Catalog(1, items, none + 1, none + 1, none, none.float(), torch.ones(items + 1).long())
    task = instantiate(cfg.model, _convert_="all")(
        catalog, instantiate(cfg.protocol.metrics, _convert_="all"), 0
    )
    zero = torch.zeros(rows, window, dtype=torch.int64)
    batch = SequenceBatch(
        items=zero + 3, times=zero, values=zero.float(), lengths=torch.full((rows,), window),
        targets=zero + 5, target_times=zero, users=zero[:, 0] + 1, rows=torch.arange(rows) * window + window,
    )  # fmt: skip
    with FlopCounterMode(display=False) as counter:
        task.training_step(batch, 0).backward()
    by_formula = floor.sasrec(
        np.full(rows, window), rows * window, dim=dim, blocks=2, inner=inner, items=items
    )
    assert counter.get_total_flops() == by_formula


def test_pieces_are_the_histories_of_leave_one_out():
    user = np.repeat([1, 2, 3], [13, 5, 3])  # 10, 2 and 0 inputs
    assert floor.pieces(user, targets=6, window=4).tolist() == [4, 2, 0]  # the last four of each
    assert sorted(floor.pieces(user, targets=12, window=4)) == [0, 2, 2, 4, 4]  # all of them


def test_the_rate_is_that_of_products():
    assert 1e8 < floor.rate(1, size=256, seconds=0.2) < 1e13
    with pytest.raises(RuntimeError):
        floor.rate(0, size=8, seconds=0.01)

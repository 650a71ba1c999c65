import json
import math
import time

import numpy as np
import pytest
import torch
from watch import Sequences, Watch, left_padded, ndcg, peak_memory

from hydrec import metrics


@pytest.fixture
def data(tmp_path) -> Sequences:
    # user 1: 1 2 3 4, user 2: 4 4 5
    path = tmp_path / "rows.npz"
    np.savez(path, user=[1, 1, 1, 1, 2, 2, 2], item=[1, 2, 3, 4, 4, 4, 5])
    return Sequences(str(path))


def test_ndcg_is_that_of_the_package_ties_included():
    scores = torch.randint(0, 6, (200, 30), generator=torch.Generator().manual_seed(0)).float()
    targets = torch.arange(200) % 30 + 1
    own = scores.gather(1, targets[:, None] - 1)
    ranks = metrics.Ranks((scores > own).sum(1), (scores == own).sum(1) - 1, torch.full((200,), 30))
    torch.testing.assert_close(ndcg(scores, targets.numpy()), metrics.ndcg(ranks, 10))


def test_histories_end_before_their_target(data):
    items, lengths, targets = data.histories(1, window=2)
    assert items.tolist() == [[2, 3], [4, 4]] and lengths.tolist() == [2, 2] and targets.tolist() == [4, 5]
    items, lengths, targets = data.histories(2, window=3)
    assert items.tolist() == [[1, 2, 0], [4, 0, 0]] and targets.tolist() == [3, 4]


def test_before_leaves_the_last_out(data):
    assert data.before(2).tolist() == [True, True, False, False, True, False, False]


def test_facts_tell_apart_what_is_tested(data, tmp_path):
    assert data.facts == {"users": 2, "interactions": 7, "tested": 1 * 4 + 2 * 5}


def test_padding_moves_to_the_left(data):
    rows = left_padded(np.array([[1, 2, 0], [3, 0, 0], [4, 5, 6]]), np.array([2, 1, 3]))
    assert rows.tolist() == [[0, 1, 2], [0, 0, 3], [4, 5, 6]]


def test_quality_judges_both_parts(data):
    def score(items, lengths):
        """Item 5 first, then 4."""
        return torch.arange(5.0).expand(len(items), 5)

    found = data.quality(score, window=3)
    assert found["test"] == pytest.approx((1 / math.log2(3) + 1) / 2)  # 4 is second, 5 first
    assert found["valid"] == pytest.approx((1 / math.log2(4) + 1 / math.log2(3)) / 2)  # 3 third, 4 second


def test_a_watch_counts_steps_after_the_warmup_and_stops(tmp_path):
    out = tmp_path / "found.jsonl"
    limits = {"warmup": 2, "steps": 5, "seconds": 60, "started": time.time() - 7, "out": str(out)}
    weight = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([weight], lr=0.1)
    watch = Watch(limits)

    def fit():
        while True:
            weight.grad = torch.ones(1)
            optimiser.step()
            time.sleep(0.01)

    watch.run(fit)
    watch.finish(rows=40, batches=10, targets=3)
    found = json.loads(out.read_text())
    assert found["steps"] == 5 and weight.item() == pytest.approx(-0.7)  # seven steps in all
    assert found["wall_s"] >= 0.05 and found["epoch_s"] == pytest.approx(2 * found["wall_s"])
    assert 7 <= found["first_step_s"] < 12 and found["rows"] == 40 and found["targets"] == 3


def test_judgements_cost_no_training_seconds(tmp_path):
    out = tmp_path / "found.jsonl"
    limits = {"warmup": 1, "steps": 6, "seconds": 60, "started": time.time(), "out": str(out), "every": 0.0}
    weight = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([weight], lr=0.1)

    def judge():
        time.sleep(0.2)
        return {"test": 0.5}

    watch = Watch(limits, judge)

    def fit():
        while True:
            weight.grad = torch.ones(1)
            optimiser.step()

    watch.run(fit)
    watch.finish(rows=1, batches=1)
    *points, pace = [json.loads(line) for line in out.read_text().splitlines()]
    assert points and points[0]["test"] == 0.5
    assert points[-1]["trained_s"] < 0.2 and pace["wall_s"] < 0.2


def test_peak_memory_is_of_this_process():
    block = np.ones(2**24)
    assert peak_memory() >= 128 and block[0] == 1

import json
import math
import multiprocessing
import os
import socket

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from hydrec import click_metrics
from hydrec.click_metrics import ClickMetrics, auc, gauc, logloss, probability, ratio, relaimpr, reliability
from hydrec.errors import InputError

NAMES = ["auc", "gauc", "gauc_excluded", "logloss", "base_rate", "base_logloss", "ne"]
NAMES += ["mean_p", "calibration", "ece"]


def judged(n, seed=0, users=7, levels=9):
    """Rows out of order, users, labels, and logits of so many values: the higher, the more often 1."""
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randint(levels, (n,), generator=draw) * (3 / levels) - 1.5
    labels = (torch.rand(n, generator=draw) < logits.sigmoid()).long()
    return (
        torch.randperm(10 * n, generator=draw)[:n],
        torch.randint(users, (n,), generator=draw) + 1,
        labels,
        logits,
    )


def filled(case, batches=(slice(None),), gauc="rows", bins=5):
    metric = ClickMetrics(gauc=gauc, bins=bins)
    for batch in batches:
        metric.update(*(x[batch] for x in case))
    return metric


def same_bits(one, other):
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def slow_auc(labels, logits):
    """Pair by pair."""
    won = [
        1.0 if p > n else 0.5 if p == n else 0.0
        for y, p in zip(labels, logits, strict=True)
        for z, n in zip(labels, logits, strict=True)
        if y == 1 and z == 0
    ]
    return math.fsum(won) / len(won)


def slow_gauc(users, labels, logits, weights):
    total = weight = 0.0
    excluded = 0
    for user in sorted(set(users)):
        of = [i for i, u in enumerate(users) if u == user]
        y, z = [labels[i] for i in of], [logits[i] for i in of]
        if len(set(y)) == 1:
            excluded += len(of)
            continue
        w = {"rows": len(of), "positives": sum(y), "uniform": 1}[weights]
        total, weight = total + w * slow_auc(y, z), weight + w
    return total / weight, excluded / len(users)


# Functions


@pytest.mark.parametrize("levels", [1, 2, 9, 10**6])
def test_auc_is_that_of_scikit_learn_and_of_all_pairs(levels):
    _, _, labels, logits = judged(200, levels=levels)
    found = auc(labels, logits).item()
    assert found == pytest.approx(roc_auc_score(labels, logits), rel=1e-13)
    assert found == slow_auc(labels.tolist(), logits.tolist())
    assert levels > 1 or found == 0.5


def test_auc_of_many_rows_overflows_nothing():
    # 2 * 1e5 * 1e5 pairs are beyond int32
    labels = torch.arange(200_000) % 2
    assert auc(labels, labels.float()).item() == 1
    assert auc(labels, -labels.float()).item() == 0


@pytest.mark.parametrize("weights", click_metrics.WEIGHTS)
@pytest.mark.parametrize("users", [1, 7, 60])
def test_gauc_is_that_of_a_loop_over_users(weights, users):
    _, user, labels, logits = judged(120, users=users, seed=users)
    found, excluded = gauc(user, labels, logits, weights)
    slow, left_out = slow_gauc(user.tolist(), labels.tolist(), logits.tolist(), weights)
    assert found.item() == pytest.approx(slow, rel=1e-13)
    assert excluded.item() == left_out
    if users == 1:
        assert found == auc(labels, logits)


def test_weights_of_users_by_hand():
    # user 1: one of two pairs, 3 rows, 1 positive; user 2: all of two pairs, 3 rows, 2 positives
    users, labels = torch.tensor([1, 1, 1, 2, 2, 2]), torch.tensor([1, 0, 0, 1, 1, 0])
    logits = torch.tensor([0.0, 1.0, -1.0, 5.0, 5.0, 4.0])
    values = {weights: gauc(users, labels, logits, weights)[0].item() for weights in click_metrics.WEIGHTS}
    assert values == pytest.approx({"rows": 3 / 4, "positives": 5 / 6, "uniform": 3 / 4})


def test_no_user_with_both_labels_has_no_gauc():
    users, labels = torch.tensor([1, 1, 2]), torch.tensor([1, 1, 0])
    assert gauc(users, labels, torch.zeros(3), "rows") == (None, 1)
    found = filled((torch.arange(3), users, labels, torch.zeros(3))).compute()
    assert "gauc" not in found and found["gauc_excluded"] == 1 and found["auc"] == 0.5


def test_losses_are_those_of_scikit_learn():
    _, _, labels, logits = judged(200, levels=10**6)
    p = probability(logits)
    assert p.tolist() == pytest.approx(logits.double().sigmoid().tolist(), rel=1e-14)
    assert logloss(labels, logits).mean().item() == pytest.approx(log_loss(labels, p.numpy()), rel=1e-13)


def test_no_digit_of_a_large_logit_is_lost():
    logits = torch.tensor([-80.0, 80.0, -800.0, 800.0])
    assert logloss(torch.tensor([0, 1, 1, 0]), logits).tolist() == pytest.approx(
        [math.exp(-80), math.exp(-80), 800, 800], rel=1e-14
    )


def test_huge_logits_lose_no_digit():
    z = torch.tensor([80.0, -80.0, 80.0, -80.0, 3e38, -3e38])
    losses = logloss(torch.tensor([1, 1, 0, 0, 1, 0]), z)
    assert losses.tolist() == pytest.approx([math.exp(-80), 80, 80, math.exp(-80), 0, 0], rel=1e-15, abs=0)
    assert probability(z).tolist() == pytest.approx(
        [1, math.exp(-80), 1, math.exp(-80), 1, 0], rel=1e-15, abs=0
    )
    case = torch.arange(6), torch.ones(6, dtype=torch.int64), torch.tensor([1, 1, 0, 0, 1, 0]), z
    assert all(value.isfinite() for value in filled(case).compute().values())


def test_reliability_is_that_of_sorted_rows():
    _, _, labels, logits = judged(103, levels=10**9)
    order = logits.argsort()
    curve = reliability(labels, logits, 20)
    p, y = logits.double().sigmoid()[order].numpy(), labels[order].double().numpy()
    assert curve.rows.tolist() == [6] * 3 + [5] * 17
    for found, values in ((curve.mean_p, p), (curve.mean_y, y)):
        assert found.tolist() == pytest.approx(
            [part.mean() for part in np.array_split(values, 20)], rel=1e-13
        )


def test_tied_rows_share_their_labels():
    # a constant of the base rate is calibrated, wherever the cuts fall
    labels = torch.tensor([1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    curve = reliability(labels, torch.full((12,), -math.log(3)), 5)
    assert curve.mean_p.tolist() == pytest.approx([0.25] * 5)
    assert curve.mean_y.tolist() == pytest.approx([0.25] * 5)


def test_fewer_rows_than_bins_make_a_bin_each():
    curve = reliability(torch.tensor([1, 0]), torch.tensor([2.0, 1.0]), 20)
    assert curve.rows.tolist() == [1, 1] and curve.mean_y.tolist() == [0, 1]


def test_two_ways_to_compare_two_aucs():
    # DIN's paper on MovieLens: base .7300, LR .7263, Wide&Deep .7304; MIAN's on Electronics: DIN, MIAN
    assert relaimpr(0.7263, 0.7300) == pytest.approx(-1.61, abs=0.005)
    assert relaimpr(0.7304, 0.7300) == pytest.approx(0.17, abs=0.005)
    assert ratio(0.8209, 0.8159) == pytest.approx(0.61, abs=0.005)
    with pytest.raises(InputError, match=r"AUC of 0\.5.*above 0\.5"):
        relaimpr(0.7, 0.5)


# All metrics


def test_metrics_match_a_slow_loop():
    case = judged(150)
    _, users, labels, logits = (x.tolist() for x in case)
    p = [1 / (1 + math.exp(-z)) for z in logits]
    rate = sum(labels) / 150
    base = -rate * math.log(rate) - (1 - rate) * math.log(1 - rate)
    loss = -math.fsum(math.log(q if y else 1 - q) for q, y in zip(p, labels, strict=True)) / 150
    mean_y = {z: np.mean([y for y, x in zip(labels, logits, strict=True) if x == z]) for z in logits}
    bins = np.array_split(np.array(sorted(logits)), 5)
    gaps = [abs(np.mean([1 / (1 + math.exp(-z)) - mean_y[z] for z in part])) * len(part) for part in bins]
    by_user, excluded = slow_gauc(users, labels, logits, "positives")
    found = filled(case, gauc="positives").compute()
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        {
            "auc": slow_auc(labels, logits),
            "gauc": by_user,
            "gauc_excluded": excluded,
            "logloss": loss,
            "base_rate": rate,
            "base_logloss": base,
            "ne": loss / base,
            "mean_p": math.fsum(p) / 150,
            "calibration": math.fsum(p) / sum(labels),
            "ece": math.fsum(gaps) / 150,
        },
        rel=1e-12,
    )
    assert list(found) == NAMES
    assert all(x.dtype == torch.float64 and x.ndim == 0 for x in found.values())


def test_the_constant_of_the_base_rate_gets_what_it_must():
    labels = torch.tensor([1, 0, 0, 0, 1, 0, 0, 0])
    case = torch.arange(8), torch.arange(8) % 4, labels, torch.full((8,), -math.log(3))
    found = {name: value.item() for name, value in filled(case).compute().items()}
    fair = {"auc": 0.5, "ne": 1.0, "calibration": 1.0, "mean_p": 0.25, "base_rate": 0.25}
    assert {name: found[name] for name in fair} == pytest.approx(fair, rel=1e-7)
    assert found["ece"] == pytest.approx(0, abs=1e-7)
    assert found["base_logloss"] == pytest.approx(math.log(4) - 0.75 * math.log(3))


@given(st.permutations(range(40)), st.integers(1, 40))
@settings(max_examples=25, deadline=None)
def test_batches_and_their_order_change_no_bit(order, size):
    case = judged(40)
    whole, parts = filled(case), filled(case, torch.tensor(order).split(size))
    assert same_bits(parts.compute(), whole.compute())
    assert same_bits(parts.table(), whole.table())


def test_which_row_a_tied_label_belongs_to_changes_no_bit():
    rows, _, labels, logits = judged(90, levels=4)
    case = rows, torch.ones_like(rows), labels, logits
    assert same_bits(filled(case).compute(), filled((rows.flip(0), *case[1:])).compute())


def test_the_number_of_threads_changes_no_bit():
    # torch splits rows among threads from 32,768 on.
    case = judged(70_001, users=9_000, levels=10**7)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(filled(case).compute())
    finally:
        torch.set_num_threads(before)
    assert same_bits(found[0], found[1]) and same_bits(found[0], found[2])


def test_zero_has_no_sign():
    case = torch.arange(2), torch.ones(2, dtype=torch.int64), torch.tensor([1, 0]), torch.tensor([-0.0, 0.0])
    found = filled(case, bins=2).compute()
    assert found["auc"] == found["gauc"] == 0.5
    assert found["ece"] == 0


def test_the_table_gives_the_rows_back():
    case = judged(20, levels=10**6)
    metric = filled(case, [slice(0, 5), slice(5, 20)])
    table, order = metric.table(), case[0].argsort()
    assert tuple(table) == click_metrics.COLUMNS
    for name, column in zip(table, case, strict=True):
        assert torch.equal(table[name], column[order]) and table[name].dtype == column.dtype
    metric.reset()
    assert tuple(metric.table()) == click_metrics.COLUMNS and not len(metric.table()["logit"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_logits_are_kept_in_single_precision(dtype):
    rows, users, labels, logits = judged(50, levels=10**6)
    found = filled((rows, users, labels, logits.to(dtype))).table()["logit"]
    assert torch.equal(found, logits.to(dtype).float()[rows.argsort()])


def test_rows_are_still_added_after_a_look():
    case = judged(40)
    metric = filled(case, [slice(0, 25)])
    metric.compute(), metric.table()
    metric.update(*(x[25:] for x in case))
    assert same_bits(metric.compute(), filled(case).compute())


def test_a_row_counts_once():
    case = judged(20)
    metric = filled(case, [slice(0, 12), slice(11, 20)])
    for look in (metric.compute, metric.table):
        with pytest.raises(InputError, match=f"row {case[0][11]} .*trainer.use_distributed_sampler=false"):
            look()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_logit_that_is_not_finite_stops_and_names_the_row(bad):
    rows, users, labels, logits = judged(20)
    logits[[7, 9]] = bad
    with pytest.raises(InputError, match=rf"logit of row {rows[7]}, .*{users[7]}, is {bad}: .*lr") as error:
        filled((rows, users, labels, logits))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("bad", [-1, 2, 5])
def test_a_label_that_is_no_click_stops_and_names_the_row(bad):
    rows, users, labels, logits = judged(20)
    labels[3] = bad
    with pytest.raises(InputError, match=rf"label of row {rows[3]}, .* is {bad}: clicks are 0 or 1"):
        filled((rows, users, labels, logits))


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
@pytest.mark.parametrize("label", [0, 1])
def test_one_label_or_no_row_is_refused(label):
    rows, users, labels, logits = judged(20)
    with pytest.raises(InputError, match=rf"all 20 rows of the part are {label}, .*protocol\.valid"):
        filled((rows, users, torch.full_like(labels, label), logits)).compute()
    with pytest.raises(InputError, match=r"no row was judged.*protocol\.valid"):
        ClickMetrics(gauc="rows", bins=20).compute()


def test_settings_are_kept_and_told():
    metric = ClickMetrics(gauc="uniform", bins=10)
    assert json.loads(json.dumps(metric.identity())) == {"version": 1, "gauc": "uniform", "bins": 10}
    assert metric.clone().identity() == metric.identity()


def test_what_chooses_an_epoch_and_what_a_table_shows_is_measured():
    metric = filled(judged(50))
    assert {metric.main, *metric.directions, *metric.headline} <= set(metric.compute())
    best = {name: metric.directions[name] for name in (metric.main, "logloss")}
    assert best == {"auc": "max", "logloss": "min"}


def test_a_wrong_setting_is_named():
    with pytest.raises(InputError, match=r"protocol\.metrics\.gauc=positive .*did you mean positives"):
        ClickMetrics(gauc="positive", bins=20)
    with pytest.raises(InputError, match=r"protocol\.metrics\.bins=0"):
        ClickMetrics(gauc="rows", bins=0)


# Several processes

ROWS_OF = {"even": 60, "one batch": 7, "uneven": 53, "none": 0, "twice": 60}


def evaluate(process, processes, name):
    """What one process gets when it takes whole batches of 20 rows, every ``processes``-th."""
    n = ROWS_OF[name]
    case = judged(n, seed=n)
    batches = list(torch.arange(n).split(20))[process::processes]
    if name == "twice" and process == processes - 1:
        batches = [torch.arange(40, 60), torch.arange(0, 1)]
    metric = filled(case, batches)
    try:
        table, values = metric.table(), metric.compute()
        metric.update(torch.tensor([10**6 + process]), *(torch.tensor([x]) for x in (1, 1, 0.5)))
        return table, values, len(metric.table()["row"]), None
    except InputError as error:
        return {}, {}, 0, str(error)


def work(process, folder):
    torch.set_num_threads(1)
    if "lo" in [name for _, name in socket.if_nameindex()]:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    results = {}
    for processes in (2, 3, 4):
        if process < processes:
            store = f"file://{folder}/store{processes}"
            torch.distributed.init_process_group("gloo", store, rank=process, world_size=processes)
            results[processes] = {name: evaluate(process, processes, name) for name in ROWS_OF}
            torch.distributed.destroy_process_group()
    torch.save(results, folder / f"{process}.pt")


@pytest.fixture(scope="module")
def by_process(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    multiprocessing.set_forkserver_preload(["hydrec.click_metrics", "hypothesis"])  # imported once for all
    torch.multiprocessing.start_processes(work, (folder,), nprocs=4, start_method="forkserver")
    return [torch.load(folder / f"{process}.pt") for process in range(4)]


@pytest.mark.parametrize("processes", [2, 3, 4])
@pytest.mark.parametrize("name", ["even", "uneven", "one batch"])
def test_any_number_of_processes_gives_the_same_bits(by_process, name, processes):
    n = ROWS_OF[name]
    alone = filled(judged(n, seed=n))
    for process in range(processes):
        table, values, after, error = by_process[process][processes][name]
        assert error is None
        assert same_bits(table, alone.table())
        assert same_bits(values, alone.compute())
        assert after == n + processes


@pytest.mark.parametrize("processes", [2, 3, 4])
@pytest.mark.parametrize(("name", "message"), [("none", "no row was"), ("twice", "was evaluated twice")])
def test_every_process_sees_the_error(by_process, name, message, processes):
    for process in range(processes):
        assert message in by_process[process][processes][name][3]

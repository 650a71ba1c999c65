import io
import math
import multiprocessing
import os
import socket

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from hydrec.errors import InputError
from hydrec.optim import LazyAdam, RowAdagrad

KINDS = [LazyAdam, RowAdagrad]
ROWS, WIDTH = 30, 4


def make(kind, params, lr=0.01, weight_decay=0.0, eps=1e-8, **others):
    rates = {"table_lr": 0.05} if kind is RowAdagrad else {}
    return kind(params, lr=lr, betas=(0.9, 0.99), eps=eps, weight_decay=weight_decay, **rates, **others)


class Net(nn.Module):
    """Two tables, one of which is looked up twice, and a dense layer."""

    def __init__(self, sparse=True, dtype=torch.float32, rows=ROWS):
        super().__init__()
        torch.manual_seed(0)
        self.item = nn.Embedding(rows, WIDTH, padding_idx=0, sparse=sparse, dtype=dtype)
        self.bag = nn.EmbeddingBag(rows, WIDTH, mode="sum", sparse=sparse, dtype=dtype)
        self.layer = nn.Linear(WIDTH, 1, dtype=dtype)

    def forward(self, ids):
        history, shown = ids[:, :-1], ids[:, -1]
        x = self.item(history).mean(1) * self.item(shown) + self.bag(history)
        return self.layer(x.tanh()).squeeze(1)


def batches(count, rows=ROWS, size=6, seed=0):
    """Few rows of a table each, some of them twice, and labels."""
    draw = torch.Generator().manual_seed(seed)
    return [
        (torch.randint(rows, (size, 4), generator=draw), torch.rand(size, generator=draw).round())
        for _ in range(count)
    ]


def train(net, optimiser, data):
    """The losses, in the order of the steps."""
    losses = []
    for ids, y in data:
        optimiser.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(net(ids), y.to(net.layer.weight.dtype))
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


# Against other optimisers


def test_rows_move_as_by_sparse_adam():
    ours, theirs = Net(dtype=torch.float64), Net(dtype=torch.float64)
    tables = [theirs.item.weight, theirs.bag.weight]
    sparse = torch.optim.SparseAdam(tables, lr=0.01, betas=(0.9, 0.99), eps=1e-25)
    dense = torch.optim.Adam(theirs.layer.parameters(), lr=0.01, betas=(0.9, 0.99), eps=1e-25)
    optimiser = make(LazyAdam, ours.parameters(), eps=1e-25)  # a larger one weighs more at first in theirs
    for batch in batches(20):
        train(ours, optimiser, [batch])
        dense.zero_grad()
        train(theirs, sparse, [batch])
        dense.step()
    assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_rows_that_are_all_in_the_batch_move_as_by_adamw(weight_decay):
    made = []
    for sparse in (True, False):
        torch.manual_seed(0)
        table = nn.Embedding(ROWS, WIDTH, sparse=sparse)
        net = nn.Sequential(table, nn.Linear(WIDTH, 3), nn.Tanh(), nn.Linear(3, 1))
        values = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": weight_decay}
        optimiser = (LazyAdam if sparse else torch.optim.AdamW)(net.parameters(), **values)
        if sparse:
            optimiser.watch(net)
        for step in range(20):
            optimiser.zero_grad()
            net(
                torch.randperm(ROWS, generator=torch.Generator().manual_seed(step))
            ).square().mean().backward()
            optimiser.step()
        made.append(net.state_dict())
    ours, theirs = made
    for name, value in theirs.items():
        assert_close(ours[name], value, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_dense_parameters_are_left_to_adamw(kind):
    draw = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(3, 2, generator=draw)) for _ in range(2)]
    twins = [nn.Parameter(p.detach().clone()) for p in parameters]
    ours = make(kind, parameters, weight_decay=0.1)
    theirs = torch.optim.AdamW(twins, lr=0.01, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1)
    for _ in range(5):
        for p, twin in zip(parameters[:1], twins[:1], strict=True):  # the other has no gradient
            p.grad = torch.randn(3, 2, generator=draw)
            twin.grad = p.grad.clone()
        ours.step()
        theirs.step()
    assert all(torch.equal(p, twin) for p, twin in zip(parameters, twins, strict=True))


# Against the equations


class Slow:
    """One row at a time, in float64; all rows of a table decay at each step."""

    def __init__(self, kind, table, lr, decay):
        self.kind, self.lr, self.decay, self.step = kind, lr, decay, 0
        self.rows = table.tolist()
        self.first = [[0.0] * WIDTH for _ in self.rows]
        self.second = [[0.0] * WIDTH for _ in self.rows]
        self.total = [0.0] * len(self.rows)

    def move(self, grad):
        self.step += 1
        grads = {}
        for r, g in zip(grad._indices()[0].tolist(), grad._values().tolist(), strict=True):
            grads[r] = [a + b for a, b in zip(grads.get(r, [0.0] * WIDTH), g, strict=True)]
        for row in self.rows:
            for d in range(WIDTH):
                row[d] *= 1 - self.lr * self.decay
        for r, g in grads.items():
            self.total[r] += sum(x * x for x in g) / WIDTH
            for d, x in enumerate(g):
                self.first[r][d] = 0.9 * self.first[r][d] + 0.1 * x
                self.second[r][d] = 0.99 * self.second[r][d] + 0.01 * x * x
                if self.kind is RowAdagrad:
                    self.rows[r][d] -= self.lr * x / (math.sqrt(self.total[r]) + 1e-8)
                else:
                    mean = self.first[r][d] / (1 - 0.9**self.step)
                    square = self.second[r][d] / (1 - 0.99**self.step)
                    self.rows[r][d] -= self.lr * mean / (math.sqrt(square) + 1e-8)


@pytest.mark.parametrize("decay", [0.0, 0.7])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_read_and_moved_as_if_all_had_decayed_at_each_step(kind, decay):
    net, shadow = Net(dtype=torch.float64), Net(dtype=torch.float64)
    optimiser = make(kind, net.parameters(), weight_decay=decay)
    optimiser.watch(net)
    rate = optimiser.rate
    slow = {name: Slow(kind, getattr(net, name).weight, 0.0, decay) for name in ("item", "bag")}
    dense = torch.optim.AdamW(
        shadow.layer.parameters(), lr=0.01, betas=(0.9, 0.99), eps=1e-8, weight_decay=decay
    )
    for step, batch in enumerate(batches(40)):
        lr = 0.05 / (1 + step)  # of a schedule
        for group in optimiser.param_groups:
            group[rate] = lr
        dense.param_groups[0]["lr"] = optimiser.param_groups[0]["lr"]
        if step == 25:
            optimiser.settle()
        read = train(net, optimiser, [batch])
        assert read == pytest.approx(
            train(shadow, dense, [batch]), rel=1e-12
        )  # stale rows would read otherwise
        for name, table in slow.items():
            weight = getattr(shadow, name).weight
            table.lr = lr
            table.move(weight.grad)
            weight.grad = None
            with torch.no_grad():
                weight.copy_(torch.tensor(table.rows, dtype=torch.float64))
    before = net.item.weight.clone()
    optimiser.settle()
    assert torch.equal(before, net.item.weight) == (decay == 0)
    assert_close(net.state_dict(), shadow.state_dict(), rtol=1e-12, atol=1e-15)
    optimiser.settle()
    assert_close(net.state_dict(), shadow.state_dict(), rtol=1e-12, atol=1e-15)
    assert not net.item.weight[0].any()  # padding


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_out_of_the_batch_keeps_every_bit(kind):
    net = Net()
    optimiser = make(kind, net.parameters())
    train(net, optimiser, batches(5))
    state = {p: {k: v.clone() for k, v in s.items()} for p, s in optimiser.state.items()}
    table = net.item.weight.clone()
    ids, y = batches(1, seed=9)[0]
    train(net, optimiser, [(ids, y)])
    out = torch.ones(ROWS, dtype=torch.bool)
    out[ids] = False
    assert out.sum() > 5 and net.item.weight.grad.is_sparse
    assert torch.equal(net.item.weight[out], table[out])
    assert (net.item.weight[~out] != table[~out])[1:].any(1).all()  # the first of them is padding
    for name, value in state[net.item.weight].items():
        assert name == "step" or torch.equal(optimiser.state[net.item.weight][name][out], value[out])


def test_the_first_step_of_row_adagrad_has_its_learning_rate_as_root_mean_square():
    table = nn.Parameter(torch.zeros(3, 2, dtype=torch.float64))
    optimiser = make(RowAdagrad, [table])
    grad = torch.tensor([[1.0, 0.0], [2.0, 4.0]], dtype=torch.float64)
    table.grad = torch.sparse_coo_tensor([[1, 1]], grad, (3, 2), check_invariants=True)
    optimiser.step()  # gradient (3, 4): mean square 12.5
    step = [-0.05 * x / math.sqrt(12.5) for x in (3, 4)]
    assert_close(table.detach(), torch.tensor([[0, 0], step, [0, 0]], dtype=torch.float64))
    assert optimiser.state[table]["sum"].tolist() == [0, 12.5, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_groups_have_rates_of_their_own(kind):
    net = Net()
    slow = {"params": [net.item.weight], "lr": 0.0, "table_lr": 0.0}
    optimiser = make(kind, [slow, {"params": [*net.bag.parameters(), *net.layer.parameters()]}])
    before = {name: value.clone() for name, value in net.state_dict().items()}
    train(net, optimiser, batches(2))
    moved = {name: not torch.equal(value, before[name]) for name, value in net.state_dict().items()}
    assert moved == {"item.weight": False, "bag.weight": True, "layer.weight": True, "layer.bias": True}


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_that_is_also_read_whole_is_left_to_adamw(kind):
    def trained(optimiser_of):
        torch.manual_seed(0)
        table = nn.Embedding(ROWS, WIDTH, sparse=True)
        optimiser = optimiser_of(table)
        for step in range(4):
            optimiser.zero_grad()
            (table(torch.tensor([step, 3])) @ table.weight.T).logsumexp(1).sum().backward()
            optimiser.step()
        return table.weight

    def ours(table):
        optimiser = make(kind, table.parameters(), weight_decay=0.3)
        optimiser.watch(table)
        return optimiser

    theirs = torch.optim.AdamW
    found = trained(lambda table: theirs(table.parameters(), lr=0.01, betas=(0.9, 0.99), weight_decay=0.3))
    assert_close(trained(ours), found)


# What must not be


class Whole(TorchDispatchMode):
    """Operations that take a tensor of a table's length, and the largest tensor that any makes."""

    def __init__(self, length):
        super().__init__()
        self.length, self.taking, self.made = length, set(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        dense = [x for x in args if isinstance(x, torch.Tensor) and x.layout == torch.strided]
        if any(len(x) >= self.length for x in dense if x.ndim):
            self.taking.add(func.overloadpacket.__name__)
        known = {x.untyped_storage().data_ptr() for x in dense}
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, torch.Tensor) and x.layout == torch.strided:
                storage = x.untyped_storage()
                self.made = max(self.made, 0 if storage.data_ptr() in known else storage.nbytes())
        return out


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_touches_the_rows_of_the_batch_only(kind):
    net = Net(rows=100_000)
    optimiser = make(kind, net.parameters(), weight_decay=0.1)
    optimiser.watch(net)
    data = batches(5, rows=100_000)
    train(net, optimiser, data[:2])  # the first makes the state
    with Whole(100_000) as seen:
        train(net, optimiser, data[2:])
    by_row = {
        "embedding",
        "_embedding_bag",
        "_embedding_bag_forward_only",
        "index",
        "index_copy_",
        "index_put_",
        "index_select",
    }
    assert {name for name in seen.taking if name not in ("detach", "alias")} <= by_row
    assert 0 < seen.made < 10_000  # bytes
    with Whole(100_000) as seen:
        optimiser.settle()
    assert "mul_" in seen.taking


def test_decay_of_tables_that_are_not_watched_is_refused():
    net = Net()
    with pytest.raises(InputError, match=r"model\.optimiser\.weight_decay: the tables are not watched"):
        train(net, make(LazyAdam, net.parameters(), weight_decay=0.1), batches(1))


@pytest.mark.parametrize("table_lr", [0.0, -1.0, math.nan])
def test_a_wrong_rate_is_named(table_lr):
    with pytest.raises(InputError, match=r"model\.optimiser\.table_lr="):
        RowAdagrad(
            Net().parameters(), lr=0.01, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0, table_lr=table_lr
        )


# Checkpoints, precision, Lightning, several processes


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_was_saved_goes_on_to_the_bit(kind):
    def fresh():
        net = Net()
        optimiser = make(kind, net.parameters(), weight_decay=0.5)
        optimiser.watch(net)
        return net, optimiser

    net, optimiser = fresh()
    train(net, optimiser, batches(7))
    file = io.BytesIO()
    torch.save({"net": net.state_dict(), "optimiser": optimiser.state_dict()}, file)
    exact = net.item.weight.clone()
    optimiser.settle()
    assert torch.equal(exact, net.item.weight)  # nothing was owed
    train(net, optimiser, batches(7, seed=1))
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    assert torch.equal(saved["net"]["item.weight"], exact)  # though it was collected before
    again, resumed = fresh()
    again.load_state_dict(saved["net"])
    resumed.load_state_dict(saved["optimiser"])
    train(again, resumed, batches(7, seed=1))
    optimiser.settle()
    resumed.settle()
    for name, value in net.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_scaler_changes_nothing_and_skips_what_overflows(kind):
    plain, scaled = Net(), Net()
    train(plain, make(kind, plain.parameters()), batches(5))
    optimiser, scaler = make(kind, scaled.parameters()), torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step, (ids, y) in enumerate([*batches(5), *batches(1, seed=1)]):
        optimiser.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(scaled(ids), y)
        scaler.scale(loss * (math.inf if step == 5 else 1)).backward()
        scaler.step(optimiser)
        scaler.update()
    for name, value in plain.state_dict().items():
        assert torch.equal(scaled.state_dict()[name], value)


class Task(pl.LightningModule):
    def __init__(self, kind):
        super().__init__()
        self.net, self.kind = Net(), kind

    def training_step(self, batch, batch_idx):
        return nn.functional.binary_cross_entropy_with_logits(self.net(batch[0]).float(), batch[1])

    def train_dataloader(self):
        return DataLoader(batches(8), batch_size=None)

    def configure_optimizers(self):
        optimiser = make(self.kind, self.net.parameters(), weight_decay=0.5)
        optimiser.watch(self.net)
        return optimiser


def trainer(**values):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(
        accelerator="cpu", max_epochs=1, enable_checkpointing=False, deterministic="warn", **quiet, **values
    )


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("kind", KINDS)
def test_lightning_trains_and_saves_exact_weights(kind, precision, tmp_path):
    task, fit = Task(kind), trainer(precision=precision)
    fit.fit(task)
    fit.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]
    by_hand = Task(kind)
    optimiser = by_hand.configure_optimizers()
    train(by_hand.net, optimiser, batches(8))
    assert precision != "32-true" or not torch.equal(saved["net.item.weight"], by_hand.net.item.weight)
    optimiser.settle()
    tolerance = 0 if precision == "32-true" else 0.05
    assert_close(saved, by_hand.state_dict(), rtol=tolerance, atol=tolerance)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_clipping_is_refused(algorithm):
    fit = trainer(gradient_clip_val=1.0, gradient_clip_algorithm=algorithm)
    with pytest.raises(InputError, match=r"cannot be clipped: set trainer\.gradient_clip_val=null"):
        fit.fit(Task(LazyAdam))


def train_shared(kind, process, file):
    net = Net()
    optimiser = make(kind, net.parameters(), weight_decay=0.5)
    optimiser.watch(net)
    shared = DistributedDataParallel(net)
    for ids, y in batches(20):
        optimiser.zero_grad()
        mine = slice(process, None, 2)  # each looks up, and so makes pay, other rows
        nn.functional.binary_cross_entropy_with_logits(shared(ids[mine]), y[mine]).backward()
        optimiser.step()
    owing = {name: value.clone() for name, value in net.state_dict().items()}
    optimiser.settle()
    torch.save([owing, net.state_dict()], file)


def work(process, folder):
    torch.set_num_threads(1)
    if "lo" in [name for _, name in socket.if_nameindex()]:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=process, world_size=2)
    for kind in KINDS:  # in a function: a DDP module that outlives its group may hang
        train_shared(kind, process, folder / f"{kind.__name__}{process}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def by_process(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    multiprocessing.set_forkserver_preload(["hydrec.optim", "pytorch_lightning"])  # imported once for both
    torch.multiprocessing.start_processes(work, (folder,), nprocs=2, start_method="forkserver")
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_keep_one_table_and_train_as_one(by_process, kind):
    (mine, settled), (other, _) = (torch.load(by_process / f"{kind.__name__}{r}.pt") for r in range(2))
    assert all(torch.equal(value, other[name]) for name, value in mine.items())
    net = Net()
    optimiser = make(kind, net.parameters(), weight_decay=0.5)
    optimiser.watch(net)
    train(net, optimiser, batches(20))
    optimiser.settle()
    assert_close(settled, dict(net.state_dict()), rtol=1e-4, atol=1e-5)

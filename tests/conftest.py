"""Shapes in signatures are checked while the tests run; batches and nets that several tests use."""

import os
from functools import cache
from pathlib import Path

from jaxtyping import install_import_hook

# before the first of these is imported
_units = ("cases", "click_metrics", "layers", "losses", "metrics", "models", "optim", "sampling")
install_import_hook([f"hydrec.{unit}" for unit in _units], "beartype.beartype")

os.environ["HYDREC_OFFLINE"] = "1"  # no test, nor a process that one starts, reaches the network

import pytest  # noqa: E402
import torch  # noqa: E402
import torch.utils._pytree as pytree  # noqa: E402
from hydra import compose, initialize_config_dir  # noqa: E402
from hydra.utils import instantiate  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from hydrec.batch import Catalog, ClickBatch, ClickCatalog, Field, SequenceBatch  # noqa: E402

CONF = Path(__file__).parents[1] / "conf"
N_ITEMS, N_USERS = 25, 8
torch.set_num_threads(1)  # tensors are tiny, and two tests may share two cores


@pytest.fixture
def catalog() -> Catalog:
    """A catalogue of 25 items and 8 users, with 40 training rows and 20 training targets."""
    draw = torch.Generator().manual_seed(1)
    items = torch.randint(1, N_ITEMS + 1, (40,), generator=draw)
    return Catalog(
        n_users=N_USERS,
        n_items=N_ITEMS,
        users=torch.arange(40) // 5 + 1,
        items=items,
        times=torch.arange(40) * 3600,
        values=torch.rand(40, generator=draw),
        targets=torch.bincount(items[::2], minlength=N_ITEMS + 1),
    )


class Memory(TorchDispatchMode):
    """Notes the size of the largest tensor that an operation gives, in backward as well."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        sizes = [x.numel() for x in pytree.tree_leaves(made) if isinstance(x, torch.Tensor)]
        self.largest = max([self.largest, *sizes])
        return made


@pytest.fixture
def memory() -> Memory:
    """Notes, while it is entered, how large tensors get."""
    return Memory()


@pytest.fixture
def random_batch():
    """Makes batches of the catalogue's items: lengths from 1 to the window, gaps from none to months.

    With ``every``, each position of the same histories is supervised: P is T, not 1.
    """

    def make(rows: int = 6, window: int = 12, seed: int = 0, every: bool = False) -> SequenceBatch:
        draw = torch.Generator().manual_seed(seed)

        def below(bound: int, *shape: int) -> torch.Tensor:
            return torch.randint(bound, shape, generator=draw)

        lengths = below(window, rows) + 1
        lengths[0], lengths[-1] = window, 1
        real = torch.arange(window) < lengths[:, None]
        scale = torch.tensor([0, 1, 24, 24**2, 24**3])[below(5, rows, window + 1)]
        gaps = below(3600, rows, window + 1) * scale
        times = gaps.cumsum(1) - gaps[:, :1]
        batch = SequenceBatch(
            items=(below(N_ITEMS, rows, window) + 1) * real,
            times=times[:, :-1] * real,
            values=torch.rand(rows, window, generator=draw) * real,
            lengths=lengths,
            targets=below(N_ITEMS, rows, 1) + 1,
            target_times=times.gather(1, lengths[:, None]),
            users=below(N_USERS, rows) + 1,
            rows=torch.arange(rows) * window + 100,
        )
        if not every:
            return batch
        following = torch.cat([batch.items[:, 1:], torch.zeros(rows, 1, dtype=torch.long)], 1)
        targets = following.scatter(1, lengths[:, None] - 1, batch.targets)
        return batch._replace(targets=targets, target_times=times[:, 1:] * real)

    return make


@pytest.fixture
def click_catalog() -> ClickCatalog:
    """25 items with two fields, one of several values; two fields of users and three of the context."""
    draw = torch.Generator().manual_seed(1)
    several = torch.randint(2, 9, (N_ITEMS + 1, 3), generator=draw)
    several *= torch.arange(3) < torch.randint(1, 4, (N_ITEMS + 1, 1), generator=draw)
    codes = torch.cat([torch.randint(1, 6, (N_ITEMS + 1, 1), generator=draw), several], 1)
    weights = torch.cat([torch.ones(N_ITEMS + 1, 1), (several > 0) / (several > 0).sum(1, keepdim=True)], 1)
    codes[0], weights[0] = 0, 0
    shown = torch.randint(2, 9, (N_ITEMS + 1,), generator=draw)
    shown[0] = 0
    return ClickCatalog(
        n_users=N_USERS,
        n_items=N_ITEMS,
        clicked=shown // 2,
        shown=shown,
        fields=(
            Field("user_id", "user", N_USERS + 2, 1),
            Field("age", "user", 5, 1),
            Field("hour", "context", 4, 1),
            Field("tags", "context", 7, 2),
            Field("price", "context", 3, 1),
        ),
        item_fields=(Field("category", "item", 6, 1), Field("genres", "item", 9, 3)),
        item_codes=codes,
        item_weights=weights,
    )


@pytest.fixture
def random_clicks():
    """Makes batches for ``click_catalog``: histories from none to the window, a number among the fields."""

    def make(rows: int = 6, window: int = 12, seed: int = 0) -> ClickBatch:
        draw = torch.Generator().manual_seed(seed)

        def below(bound: int, *shape: int) -> torch.Tensor:
            return torch.randint(bound, shape, generator=draw)

        lengths = below(window + 1, rows)
        lengths[0], lengths[-1] = window, 0
        real = torch.arange(window) < lengths[:, None]
        times = below(10**6, rows, window + 1).cumsum(1)
        times = (times - times[:, :1]) * (lengths > 0)[:, None]
        tags = (torch.arange(2) < below(2, rows, 1) + 1).float()  # one or two
        single = [below(N_USERS, rows, 1) + 2, below(4, rows, 1) + 1, below(3, rows, 1) + 1]
        number = torch.full((rows, 1), 2)
        shares = tags / tags.sum(1, keepdim=True)
        return ClickBatch(
            items=(below(N_ITEMS, rows, window) + 1) * real,
            times=times[:, :-1] * real,
            values=torch.rand(rows, window, generator=draw) * real,
            lengths=lengths,
            candidates=below(N_ITEMS, rows) + 1,
            labels=torch.arange(rows) % 2,
            target_times=times.gather(1, lengths[:, None])[:, 0],
            users=below(N_USERS, rows) + 1,
            codes=torch.cat([*single, (below(5, rows, 2) + 2) * tags.long(), number], 1),
            weights=torch.cat([torch.ones(rows, 3), shares, torch.randn(rows, 1, generator=draw)], 1),
            rows=torch.arange(rows) + 100,
        )

    return make


@pytest.fixture(scope="session")
def net_config():
    """The ``net`` node that a choice on the command line gives, as a dict."""

    @cache
    def config(*overrides: str) -> dict:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return OmegaConf.to_container(compose("train", list(overrides)).model.net, resolve=True)

    return config


@pytest.fixture
def make_net(catalog, net_config):
    """Builds the net of a choice on the command line, with some of its values changed."""

    def make(*overrides: str, seed: int = 0, **changes) -> torch.nn.Module:
        torch.manual_seed(seed)
        return instantiate(net_config(*overrides) | changes)(catalog)

    return make


@pytest.fixture
def make_click_net(click_catalog, net_config):
    """Builds the click net of a choice on the command line, with some of its values changed."""

    def make(*overrides: str, seed: int = 0, **changes) -> torch.nn.Module:
        torch.manual_seed(seed)
        config = net_config(*overrides, "protocol=click_last")
        net = instantiate(config | {key: value for key, value in changes.items() if key in config})(
            click_catalog
        )
        if hasattr(net, "fit"):
            net.fit(click_catalog)
        return net

    return make

"""Shapes in signatures are checked while the tests run; batches and nets that several tests use."""

import os
from functools import cache
from pathlib import Path

from jaxtyping import install_import_hook

# before the first of these is imported
_units = ("layers", "losses", "metrics", "models", "sampling")
install_import_hook([f"hydrec.{unit}" for unit in _units], "beartype.beartype")

os.environ["HYDREC_OFFLINE"] = "1"  # no test, nor a process that one starts, reaches the network

import pytest  # noqa: E402
import torch  # noqa: E402
from hydra import compose, initialize_config_dir  # noqa: E402
from hydra.utils import instantiate  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402

from hydrec.batch import Catalog, SequenceBatch  # noqa: E402

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
        targets=torch.bincount(items[::2], minlength=N_ITEMS + 1),
    )


@pytest.fixture
def random_batch():
    """Makes batches of the catalogue's items: lengths from 1 to the window, gaps from none to months."""

    def make(rows: int = 6, window: int = 12, seed: int = 0) -> SequenceBatch:
        draw = torch.Generator().manual_seed(seed)

        def below(bound: int, *shape: int) -> torch.Tensor:
            return torch.randint(bound, shape, generator=draw)

        lengths = below(window, rows) + 1
        lengths[0], lengths[-1] = window, 1
        real = torch.arange(window) < lengths[:, None]
        scale = torch.tensor([0, 1, 24, 24**2, 24**3])[below(5, rows, window + 1)]
        gaps = below(3600, rows, window + 1) * scale
        times = gaps.cumsum(1) - gaps[:, :1]
        return SequenceBatch(
            items=(below(N_ITEMS, rows, window) + 1) * real,
            times=times[:, :-1] * real,
            values=torch.rand(rows, window, generator=draw) * real,
            lengths=lengths,
            targets=below(N_ITEMS, rows, 1) + 1,
            target_times=times.gather(1, lengths[:, None]),
            users=below(N_USERS, rows) + 1,
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

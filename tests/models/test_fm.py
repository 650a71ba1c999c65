"""What a factorisation machine is for: users who like different items, where every item is liked as often."""

import math

import pytest
import torch
import torch.nn.functional as F

from hydrec.batch import ClickBatch, ClickCatalog, Field
from hydrec.models.fm import FM
from hydrec.models.lr import LR


@pytest.fixture
def xor():
    """Two users and two items, each shown to each: user 1 clicks item 1, user 2 clicks item 2."""
    nothing = torch.zeros(4, 1, dtype=torch.long)
    users = torch.tensor([1, 1, 2, 2])
    return ClickBatch(
        items=nothing,
        times=nothing,
        values=nothing.float(),
        lengths=nothing[:, 0],
        candidates=torch.tensor([1, 2, 1, 2]),
        labels=torch.tensor([1, 0, 0, 1]),
        target_times=nothing[:, 0],
        users=users,
        codes=users[:, None] + 1,
        weights=torch.ones(4, 1),
        rows=torch.arange(4),
    )


@pytest.fixture
def trained(xor):
    def trained(kind, **settings):
        torch.manual_seed(0)
        counts = torch.tensor([0, 1, 1])
        fields = (Field("user_id", "user", 4, 1),)
        codes = torch.zeros(3, 0, dtype=torch.long)
        catalog = ClickCatalog(2, 2, counts, counts * 2, fields, (), codes, codes.float())
        net = kind(catalog, history=False, std=0.1, l2=0.0, sparse=False, **settings)
        optimiser = torch.optim.Adam(net.parameters(), lr=0.05)
        for _ in range(300):
            loss = F.binary_cross_entropy_with_logits(net(xor)[0], xor.labels.float())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return net(xor)[0], loss.item()

    return trained


def test_a_linear_model_cannot_tell_who_likes_what(trained):
    logits, loss = trained(LR)
    assert loss == pytest.approx(math.log(2), abs=1e-4)
    assert logits.abs().max() < 0.01
    assert (logits[0] + logits[3]).item() == pytest.approx((logits[1] + logits[2]).item(), abs=1e-5)


def test_a_factorisation_machine_can(trained, xor):
    logits, loss = trained(FM, dim=2)
    assert loss < 0.01
    assert torch.equal(logits > 0, xor.labels == 1)

import pytest
import torch

from hydrec.batch import PAD
from hydrec.errors import InputError
from hydrec.models.fpmc import FPMC
from hydrec.tasks import select


def scores_of(net, batch):
    return net.score(select(net.encode(batch)[0], batch.targets != PAD), torch.arange(1, 26))


def test_users_who_are_new_to_training_are_served_by_the_chain_alone(make_net, catalog, random_batch):
    net = make_net("model=fpmc")
    net.fit(catalog._replace(users=catalog.users[5:], items=catalog.items[5:]))  # user 1 is not there
    batch = random_batch()
    unknown, unseen, seen = (
        scores_of(net, batch._replace(users=torch.full_like(batch.users, user))) for user in (0, 1, 2)
    )
    last = batch.items.gather(1, batch.lengths[:, None] - 1)[:, 0]
    chain = net.last.weight[last] @ net.to_last.weight[1:].T
    assert torch.equal(unseen, unknown)
    torch.testing.assert_close(unseen, chain)
    assert not torch.allclose(seen, chain)


def test_fitting_leaves_users_in_training_as_drawn(make_net, catalog):
    net = make_net("model=fpmc")
    drawn = net.user.weight.clone()
    net.fit(catalog)
    assert torch.equal(net.user.weight, drawn)
    assert (drawn[1:] != 0).all()


def test_no_step_moves_a_user_who_is_new_to_training(make_net, catalog, random_batch):
    net = make_net("model=fpmc", l2=0.5)
    net.fit(catalog._replace(users=catalog.users.clamp(max=7)))
    batch = random_batch()._replace(users=torch.tensor([1, 2, 3, 4, 5, 7]))
    optimiser = torch.optim.Adam(net.parameters(), lr=0.1)
    items = torch.arange(1, 26)
    loss = scores_of(net, batch).square().sum() + net.regulariser(batch, items, batch.targets[:, 0] - 1)
    loss.backward()
    optimiser.step()
    assert not net.user.weight[8].any() and net.user.weight[7].any()


@pytest.mark.parametrize(("key", "value"), [("dim", 0), ("l2", -1.0), ("l2", float("nan"))])
def test_options_that_make_no_sense_are_refused(catalog, key, value):
    with pytest.raises(InputError, match=f"model.net.{key}="):
        FPMC(catalog, **({"dim": 4, "l2": 0.0} | {key: value}))

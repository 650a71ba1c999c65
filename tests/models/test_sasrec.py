import pytest
import torch
import torch.nn.functional as F

from hydrec.batch import PAD
from hydrec.errors import InputError
from hydrec.tasks import select

MODELS = ["sasrec", "sasrec_original", "gsasrec"]
ITEMS = torch.arange(1, 26)


def scores_of(net, batch):
    return net.score(select(net.encode(batch)[0], batch.targets != PAD), ITEMS)


def step(net, batch, optimiser):
    loss = F.cross_entropy(scores_of(net, batch), batch.targets[batch.targets != PAD] - 1)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    return loss


@pytest.mark.parametrize("model", MODELS)
def test_padding_stays_zero_and_nothing_is_nan(model, make_net, random_batch):
    net, batch = make_net(f"model={model}"), random_batch(every=True)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(5):
        step(net, batch, optimiser)
        assert all(p.grad.isfinite().all() for p in net.parameters())
    assert (net.item.weight[PAD] == 0).all()
    assert net.encode(batch)[0].vectors.isfinite().all()  # at padding too


@pytest.mark.parametrize("model", MODELS)
def test_the_configured_window_numbers_positions_not_the_batchs_longest_row(model, make_net, random_batch):
    net, batch = make_net(f"model={model}").eval(), random_batch()
    short = batch.lengths < 12
    narrow = type(batch)(*(field[short] for field in batch))
    longest = int(narrow.lengths.max())
    narrow = narrow._replace(**{k: getattr(narrow, k)[:, :longest] for k in ("items", "times", "values")})
    torch.testing.assert_close(scores_of(net, narrow), scores_of(net, batch)[short])


def test_each_position_says_what_the_history_up_to_it_says(make_net, random_batch):
    net, batch = make_net("model=sasrec").eval(), random_batch(every=True)
    whole = net.encode(batch)[0].vectors
    for end in range(1, 13):
        targets, real = batch.targets[:, end - 1 : end], batch.lengths >= end
        prefix = batch._replace(lengths=batch.lengths.clamp(max=end), targets=targets)
        torch.testing.assert_close(net.encode(prefix)[0].vectors[real, 0], whole[real, end - 1])


def test_real_and_slot_positions_differ_for_short_histories_only(make_net, random_batch):
    batch = random_batch(rows=8)
    real, slot = (
        scores_of(make_net("model=sasrec", position=position).eval(), batch) for position in ("real", "slot")
    )
    same = torch.isclose(real, slot, rtol=0, atol=1e-6).all(1)
    assert torch.equal(same, batch.lengths == 12)


def test_the_window_is_the_protocols(make_net):
    assert make_net("model=sasrec", "protocol.window=30").position.window == 30


def test_item_vectors_enter_scaled_and_leave_unscaled(make_net, random_batch):
    plain, scaled = (make_net("model=sasrec", scale=scale, dim=16).eval() for scale in (False, True))
    with torch.no_grad():
        plain.item.weight.mul_(4)
    batch = random_batch()
    torch.testing.assert_close(plain.encode(batch)[0].vectors, scaled.encode(batch)[0].vectors)
    torch.testing.assert_close(scores_of(plain, batch), 4 * scores_of(scaled, batch))


@pytest.mark.parametrize("tied", [True, False])
def test_candidates_have_the_items_vectors_or_their_own(tied, make_net, random_batch):
    net, batch = make_net("model=sasrec", tied=tied).eval(), random_batch()
    state, before = select(net.encode(batch)[0], batch.targets != PAD), scores_of(net, batch)
    with torch.no_grad():
        net.item.weight[7] += 1
    changed = (net.score(state, ITEMS) != before).any(0)
    assert changed.nonzero().flatten().tolist() == ([6] if tied else [])


@pytest.mark.parametrize("model", MODELS)
def test_dropout_falls_in_training_only(model, make_net, random_batch):
    net, batch = make_net(f"model={model}"), random_batch()
    assert not torch.equal(scores_of(net, batch), scores_of(net, batch))
    net.eval()
    assert torch.equal(scores_of(net, batch), scores_of(net, batch))


def test_all_positions_learn_what_follows(make_net, random_batch):
    net, batch = make_net("model=sasrec", hidden_dropout=0.0, attention_dropout=0.0), random_batch(every=True)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.005)
    losses = [step(net, batch, optimiser).item() for _ in range(100)]
    assert losses[-1] < 0.1 < 3 < losses[0]
    expected = batch.targets[batch.targets != PAD]
    assert (scores_of(net.eval(), batch).argmax(1) + 1 == expected).float().mean() > 0.95


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dim", 0),
        ("blocks", 0),
        ("heads", 3),
        ("inner", True),
        ("window", 0),
        ("block", "recbol"),
        ("position", "slots"),
        ("hidden_dropout", 1.5),
        ("attention_dropout", -1.0),
    ],
)
def test_what_cannot_be_built_names_its_key(key, value, make_net):
    with pytest.raises(InputError, match=f"model.net.{key}={value}"):
        make_net("model=sasrec", **{key: value})

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from hydrec.errors import InputError
from hydrec.layers import attention
from hydrec.layers.attention import Attention
from hydrec.layers.dropout import Dropout

B, T, D = 3, 5, 8


@pytest.fixture
def x():
    return torch.randn(B, T, D, generator=torch.Generator().manual_seed(0))


def make(mix=True, heads=2, dropout=0.0):
    torch.manual_seed(1)
    return Attention(D, heads=heads, dropout=dropout, mix=mix)


def fused(layer, queries, keys, seen):
    """The same by torch's own kernel."""
    q, k, v = (
        part(x).unflatten(2, (layer.heads, -1)).transpose(1, 2)
        for part, x in ((layer.query, queries), (layer.key, keys), (layer.value, keys))
    )
    found = F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).flatten(2)
    return layer.mix(found)


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("mix", [True, False])
def test_it_is_scaled_dot_product_attention(mix, heads, x):
    layer, queries = make(mix, heads), x[:, 2:] + 1
    seen = torch.rand(B, heads, 3, T, generator=torch.Generator().manual_seed(2)) < 0.6
    seen[..., 0] = True
    assert_close(layer(queries, x, seen), fused(layer, queries, x, seen))
    for rule in (attention.causal(T, x.device), seen[:, :1, :1]):  # broadcast over rows, heads and queries
        assert_close(layer(x, x, rule), fused(layer, x, x, rule.expand(B, heads, T, T)))


def test_without_a_mix_the_heads_stand_side_by_side(x):
    layer = make(mix=False)
    seen = torch.eye(T, dtype=torch.bool)  # each finds itself
    assert_close(layer(x, x, seen), layer.value(x))


def test_causal_sees_itself_and_what_was_before():
    assert attention.causal(3, torch.device("cpu")).tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]


def test_what_is_not_seen_has_no_weight_and_no_gradient(x):
    layer, keys = make(), x.clone().requires_grad_()
    found = layer(x, keys, attention.causal(T, x.device))
    found[:, 2].square().sum().backward()
    assert (keys.grad[:, 3:] == 0).all() and (keys.grad[:, :3] != 0).any()
    huge = torch.where(torch.arange(T)[:, None] > 2, 1e30, x)
    assert torch.equal(layer(x, huge, attention.causal(T, x.device))[:, :3], found[:, :3])


def test_a_query_that_sees_nothing_is_finite_and_so_are_gradients(x):
    layer, x = make(), x.requires_grad_()
    seen = attention.causal(T, x.device) & (torch.arange(T) > 1)  # the first two see nothing
    found = layer(x, layer(x, x, seen), seen)  # in the layer above, 0 * NaN would be NaN
    found.square().sum().backward()
    assert found.isfinite().all() and x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_softmax_in_every_precision(dtype):
    logits = torch.tensor([[[[1.0, 60000.0, 2.0]]]], dtype=dtype)
    weights = attention.softmax(logits, torch.tensor([True, False, True]))
    e = math.exp(-1) / (1 + math.exp(-1))
    assert_close(weights.double().flatten(), torch.tensor([e, 0, 1 - e]).double(), rtol=0, atol=3e-3)


def test_dropout_falls_on_the_weights(x):
    layer, seen = make(mix=False, dropout=0.5), torch.ones(T, T, dtype=torch.bool)
    torch.manual_seed(5)
    dropped = Dropout(0.5)(torch.ones(B, 2, T, T))
    torch.manual_seed(5)
    found = layer(x, x, seen)
    expected = layer.eval()(x, x, seen, lambda logits, seen: attention.softmax(logits, seen) * dropped)
    assert_close(found, expected)


def test_other_weights(x):
    layer, seen = make(mix=False), attention.causal(T, x.device)
    double = layer(x, x, seen, lambda logits, seen: 2 * attention.softmax(logits, seen))
    assert_close(double, 2 * layer(x, x, seen))


@pytest.mark.parametrize(("heads", "line"), [(3, "does not divide model.net.dim=8"), (0, "whole number")])
def test_heads_that_do_not_fit(heads, line):
    with pytest.raises(InputError, match=f"model.net.heads={heads}.*{line}"):
        Attention(D, heads=heads, dropout=0.0, mix=True)

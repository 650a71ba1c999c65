import pytest
import torch
from torch import nn
from torch.testing import assert_close

from hydrec.errors import InputError
from hydrec.layers import attention
from hydrec.layers.attention import Attention
from hydrec.layers.transformer import BLOCKS, Encoder, Positions, PostNorm, QueryNorm, initialise

B, T, D = 3, 5, 8
SEEN = attention.causal(T, torch.device("cpu"))
OPTIONS = dict(blocks=2, heads=2, inner=12, hidden_dropout=0.3, attention_dropout=0.2, eps=1e-8)


@pytest.fixture
def x():
    return torch.randn(B, T, D, generator=torch.Generator().manual_seed(0))


def shaken(module):
    """The module with all its parameters drawn anew: norms and biases too."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) / 2)
    return module.eval()


# Positions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("position", "numbers"), [("real", [[0, 1, 2, 3], [0, 1, 0, 0]]), ("slot", [[3, 4, 5, 6], [5, 6, 0, 0]])]
)
def test_positions_are_counted_from_the_first_or_to_the_last(position, numbers):
    places = Positions(7, D, position=position)
    found = places(torch.tensor([4, 2]), 4)  # four positions, not the window's seven
    assert torch.equal(found, places.table.weight[torch.tensor(numbers)])


def test_a_full_history_has_the_same_positions_either_way():
    real, slot = Positions(5, D, position="real"), Positions(5, D, position="slot")
    slot.load_state_dict(real.state_dict())
    assert torch.equal(real(torch.tensor([5]), 5), slot(torch.tensor([5]), 5))


@pytest.mark.parametrize("position", ["real", "slot"])
def test_a_history_longer_than_the_window_is_no_position(position):
    places = Positions(4, D, position=position)
    assert places(torch.tensor([4]), 6).shape == (1, 6, D)  # more padding is none
    with pytest.raises(IndexError):
        places(torch.tensor([5]), 6)


# Blocks -----------------------------------------------------------------------------------------------------


def test_recbole_is_torchs_layer_with_norms_after(x):
    block = shaken(PostNorm(Attention(D, heads=2, dropout=0.1, mix=True), D, inner=12, dropout=0.1, eps=1e-5))
    torchs = nn.TransformerEncoderLayer(D, 2, 12, activation="gelu", batch_first=True).eval()
    own, parts = block.attention, ("query", "key", "value")
    with torch.no_grad():
        for kind in ("weight", "bias"):
            joined = torch.cat([getattr(getattr(own, part), kind) for part in parts])
            getattr(torchs.self_attn, f"in_proj_{kind}").copy_(joined)
    for theirs, ours in {
        torchs.self_attn.out_proj: own.mix,
        torchs.linear1: block.feed[0],
        torchs.linear2: block.feed[2],
        torchs.norm1: block.attention_norm,
        torchs.norm2: block.feed_norm,
    }.items():
        theirs.load_state_dict(ours.state_dict())
    assert_close(block(x, SEEN), torchs(x, src_mask=~SEEN))


def test_in_the_original_the_normalised_query_is_the_residual(x):
    layer = Attention(D, heads=2, dropout=0.1, mix=False)
    block = shaken(QueryNorm(layer, D, inner=12, dropout=0.1, eps=1e-8))
    q = block.query_norm(x)
    y = block.feed_norm(q + block.attention(q, x, SEEN))
    expected = y + block.feed[3](block.feed[0](y).clamp(min=0))
    assert_close(block(x, SEEN), expected)


@pytest.mark.parametrize("name", BLOCKS)
def test_the_attention_gets_what_the_block_gets(name, x):
    class Recorder(nn.Module):
        def forward(self, queries, keys, *how):
            self.how = how
            return queries * 0

    recorder = Recorder()
    BLOCKS[name](recorder, D, inner=4, dropout=0.0, eps=1e-5)(x, "this", "that")
    assert recorder.how == ("this", "that")


# Encoder ----------------------------------------------------------------------------------------------------


def test_the_norm_is_before_or_after_the_blocks(x):
    recbole, original = (shaken(Encoder(D, block=block, **OPTIONS)) for block in ("recbole", "original"))
    y, z = recbole.enter[0](x), x
    for block in recbole.blocks:
        y = block(y, SEEN)
    for block in original.blocks:
        z = block(z, SEEN)
    assert_close(recbole(x, SEEN), y)
    assert_close(original(x, SEEN), original.leave(z))
    assert isinstance(recbole.leave, nn.Identity) and isinstance(original.leave, nn.LayerNorm)
    assert {norm.eps for norm in original.modules() if isinstance(norm, nn.LayerNorm)} == {1e-8}


def test_only_recbole_mixes_the_heads():
    mixes = {name: Encoder(D, block=name, **OPTIONS).blocks[0].attention.mix for name in BLOCKS}
    assert isinstance(mixes["recbole"], nn.Linear) and isinstance(mixes["original"], nn.Identity)


@pytest.mark.parametrize("name", BLOCKS)
def test_each_block_has_its_own_weights_of_keys(name, x):
    encoder = shaken(Encoder(D, block=name, **OPTIONS))

    def even(logits, seen):
        return seen / seen.sum(-1, keepdim=True) + 0 * logits

    y = encoder.blocks[1](encoder.blocks[0](encoder.enter(x), SEEN), SEEN, even)
    assert_close(encoder(x, SEEN, [attention.softmax, even]), encoder.leave(y))
    with pytest.raises(ValueError):
        encoder(x, SEEN, [even])


@pytest.mark.parametrize("name", BLOCKS)
def test_dropout_is_where_it_says(name):
    encoder = Encoder(D, block=name, **OPTIONS)
    shares = {path: layer.p for path, layer in encoder.named_modules() if isinstance(layer, nn.Dropout)}
    assert {p for path, p in shares.items() if "attention" in path} == {0.2}
    assert {p for path, p in shares.items() if "attention" not in path} == {0.3}
    assert len(shares) == 1 + 2 * {"recbole": 2, "original": 3}[name]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("block", "original_"),
        ("blocks", 0),
        ("inner", 0),
        ("heads", 3),
        ("hidden_dropout", 1.0),
        ("attention_dropout", -0.1),
    ],
)
def test_what_cannot_be_built_names_its_key(key, value):
    with pytest.raises(InputError, match=f"model.net.{key}={value}"):
        Encoder(D, **({"block": "recbole"} | OPTIONS | {key: value}))


@pytest.mark.parametrize(("key", "value"), [("window", 0), ("position", "reel")])
def test_positions_that_cannot_be_built_name_their_key(key, value):
    with pytest.raises(InputError, match=f"model.net.{key}={value}"):
        Positions(**({"window": 5, "dim": D, "position": "real"} | {key: value}))


@pytest.mark.parametrize("name", BLOCKS)
def test_the_first_weights(name):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(500, 64, padding_idx=3), nn.Linear(64, 256), nn.LayerNorm(64))
    initialise(net, name)
    table, linear, norm = net
    assert (table.weight[3] == 0).all() and (linear.bias == 0).all() and (norm.weight == 1).all()
    rows = torch.cat([table.weight[:3], table.weight[4:]])
    if name == "recbole":
        assert rows.std().item() == pytest.approx(0.02, rel=0.02)
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.02)
    else:
        for weight, limit in ((rows, (6 / 564) ** 0.5), (linear.weight, (6 / 320) ** 0.5)):
            assert 0.98 * limit < weight.abs().max() <= limit
            assert weight.std().item() == pytest.approx(limit / 3**0.5, rel=0.02)

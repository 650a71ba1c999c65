"""Layers of interactions against FuxiCTR's, with its weights copied.

``fixtures/make_fuxictr_interactions.py`` made FuxiCTR's numbers.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from hydrec.layers.interaction import CIN, MatrixCross, VectorCross, pairs


@pytest.fixture
def fuxictr():
    with np.load(Path(__file__).parent / "fixtures" / "fuxictr_interactions.npz") as file:
        return {name: torch.from_numpy(array) for name, array in file.items()}


def layer_of(name, theirs):
    """Our layer with their weights, from fields to what theirs gives."""
    own = {key.removeprefix(f"{name}."): value for key, value in theirs.items() if key.startswith(name)}
    if name == "vector_cross":
        layer = VectorCross(20, 3).double()
        weight = torch.cat([own[f"cross_net.{number}.weight.weight"] for number in range(3)])
        bias = torch.stack([own[f"cross_net.{number}.bias"] for number in range(3)])
        layer.load_state_dict({"weight": weight, "bias": bias})
        return lambda fields: layer(fields.flatten(1))
    if name == "matrix_cross":
        layer = MatrixCross(20, 3).double()
        cross = {key: value for key, value in own.items() if key.startswith("cross_layers")}
        layer.load_state_dict({key.replace("cross_layers", "layers"): v for key, v in cross.items()})
        return lambda fields: layer(fields.flatten(1))
    if name == "pairs":
        return lambda fields: pairs(fields)[:, None]
    layer = CIN(5, [6, 3, 2]).double()
    with torch.no_grad():
        for number, mix in enumerate(layer.mix):  # theirs has the fields of X^0 outside
            weight = own[f"cin_layer.layer_{number + 1}.weight"]
            mix.weight.copy_(weight.unflatten(1, (5, -1)).transpose(1, 2).flatten(1, 2))
    return lambda fields: layer(fields) @ own["fc.weight"].T + own["fc.bias"]


@pytest.mark.parametrize("name", ["vector_cross", "matrix_cross", "cin", "pairs"])
def test_layers_and_their_gradients_are_fuxictrs(name, fuxictr):
    fields = fuxictr["fields"].requires_grad_()
    out = layer_of(name, fuxictr)(fields)
    assert_close(out, fuxictr[f"{name}.out"], rtol=0, atol=1e-10)
    (gradient,) = torch.autograd.grad((out**2).sum(), fields)
    assert_close(gradient, fuxictr[f"{name}.gradient"], rtol=1e-12, atol=1e-10)

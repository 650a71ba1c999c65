"""Dice: an activation that turns where its input is usual, not at 0; and perceptrons that may have it.

"Deep Interest Network for Click-Through Rate Prediction" (https://arxiv.org/abs/1706.06978), eq. 8 and 9.

Shapes: I width of the input, C channels.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hydrec.errors import one_of
from hydrec.layers.mlp import ACTIVATIONS, MLP

EPS = 1e-8  # the paper's
MOMENTUM = 0.1  # share of a batch in the running statistics


class Dice(nn.Module):
    """``f(x) = p x + (1 - p) alpha x`` with ``p = sigmoid((x - E[x]) / sqrt(Var[x] + eps))``.

    Training takes mean and variance from all vectors that it is given, so give it no padding; evaluation
    takes their moving averages. Alpha is learnt and starts at 0.

    Args:
        width: C.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(width))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))

    def forward(self, x: Float[Tensor, "*B C"]) -> Float[Tensor, "*B C"]:
        """Activations; without any vector, the averages stay as they are."""
        if self.training and x.numel():
            # `torch.var_mean` over rows takes ten times as long
            z, mean, scale = torch.native_batch_norm(x.flatten(0, -2), None, None, None, None, True, 0.0, EPS)
            self.mean.lerp_(mean.detach().to(self.mean), MOMENTUM)
            self.variance.lerp_(scale.detach().to(self.variance) ** -2 - EPS, MOMENTUM)
            z = z.view(x.shape)
        else:
            z = (x - self.mean) * (self.variance + EPS).rsqrt()
        return x * torch.addcmul(self.alpha, torch.sigmoid(z), 1 - self.alpha)


def perceptron(
    width: int, hidden: Sequence[int], *, activation: str, dropout: float, key: str = "model.net."
) -> MLP:
    """An ``MLP`` without batch normalisation, whose activation may also be ``dice``.

    Args:
        width: I of the input.
        hidden: widths of the hidden layers.
        activation: ``dice``, or one of ``ACTIVATIONS``.
        dropout: share of each hidden layer's output that training sets to 0.
        key: where a configuration has ``hidden`` and ``dropout``, as errors name it.

    Raises:
        InputError: there is no such activation, or those of ``Hidden``.
    """
    one_of("model.net.activation", activation, (*ACTIVATIONS, "dice"))
    settings = {"dropout": dropout, "batch_norm": False, "key": key}
    if activation != "dice":
        return MLP(width, hidden, activation=activation, **settings)
    mlp = MLP(width, hidden, activation="prelu", **settings)
    layers: Any = mlp[0]
    for place, layer in enumerate(layers):
        if isinstance(layer, nn.PReLU):  # which Dice generalises
            layers[place] = Dice(layer.num_parameters)
    return mlp

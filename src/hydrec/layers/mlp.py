"""Perceptrons, as click nets use them: a logit from what the other layers give.

Weights are drawn from Glorot's normal distribution; biases start at 0.

Shapes: I width of the input, H of the last hidden layer.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from hydrec.errors import at_least, one_of, share_of
from hydrec.layers.dropout import Dropout

# from the width of a layer
ACTIVATIONS: dict[str, Callable[[int], nn.Module]] = {
    "relu": lambda width: nn.ReLU(),
    "prelu": lambda width: nn.PReLU(width),
    "sigmoid": lambda width: nn.Sigmoid(),
    "tanh": lambda width: nn.Tanh(),
}


class Hidden(nn.Sequential):
    """Hidden layers: each a linear map, batch normalisation if asked for, an activation and dropout.

    Args:
        width: I of the input.
        hidden: widths of the layers; without any, the input is left as it is.
        activation: one of ``ACTIVATIONS``.
        dropout: share of each layer's output that training sets to 0.
        batch_norm: whether a layer is normalised before its activation; the input then is (B, I).
        key: where a configuration has these settings, as errors name it.

    Raises:
        InputError: a width is not positive, there is no such activation, or ``dropout`` is not in [0, 1).

    Attributes:
        out_width: H.
    """

    def __init__(
        self,
        width: int,
        hidden: Sequence[int],
        *,
        activation: str,
        dropout: float,
        batch_norm: bool,
        key: str = "model.net.",
    ) -> None:
        activate = ACTIVATIONS[one_of(f"{key}activation", activation, ACTIVATIONS)]
        share_of(f"{key}dropout", dropout)
        widths = [width, *(at_least(f"{key}hidden", size, 1) for size in hidden)]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers.append(linear(before, after))
            if batch_norm:
                layers.append(nn.BatchNorm1d(after))
            layers.append(activate(after))
            if dropout:
                layers.append(Dropout(dropout))
        super().__init__(*layers)
        self.out_width = widths[-1]


class MLP(nn.Sequential):
    """Hidden layers and a linear map to one number, which may have either sign: a logit.

    Args:
        width: I of the input.
        hidden: widths of the hidden layers.
        settings: the others of ``Hidden``.

    Raises:
        InputError: those of ``Hidden``.
    """

    def __init__(self, width: int, hidden: Sequence[int], **settings: Any) -> None:
        layers = Hidden(width, hidden, **settings)
        super().__init__(layers, linear(layers.out_width, 1))

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B"]:
        """One number for each vector."""
        return super().forward(x)[..., 0]

    @property
    def first(self) -> nn.Linear:
        """The map of the input, for nets that make what it gives from less."""
        return self._layers[0]

    def after_first(self, x: Float[Tensor, "*B H"]) -> Float[Tensor, "*B"]:
        """One number for each vector that ``first`` gave."""
        for layer in self._layers[1:]:
            x = layer(x)
        return x[..., 0]

    @property
    def _layers(self) -> list[Any]:
        hidden: Any = self[0]
        return [*hidden, self[1]]


def linear(width: int, out: int) -> nn.Linear:
    """A linear map that starts as all do here."""
    layer = nn.Linear(width, out)
    nn.init.xavier_normal_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer

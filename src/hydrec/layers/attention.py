"""Scaled dot-product attention with several heads, step by step.

There is one path for a model and its variants, and no fused kernel: a variant whose change is null then gives
the same bits as the model, in training as in evaluation.

Shapes: B rows, T positions (keys), Q queries, D width, H heads, E width of a head.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hydrec.errors import InputError, at_least
from hydrec.layers.dropout import Dropout

Weigh = Callable[[Tensor, Tensor], Tensor]  # logits (B, H, Q, T), seen -> weights (B, H, Q, T)


def causal(positions: int, device: torch.device) -> Bool[Tensor, "T T"]:
    """Which positions (last axis) each sees: itself and those before it.

    Rows are padded on the right, so no position of a history sees padding.
    """
    return torch.ones(positions, positions, dtype=torch.bool, device=device).tril()


def softmax(logits: Float[Tensor, "B H Q T"], seen: Bool[Tensor, "*#BHQ T"]) -> Float[Tensor, "B H Q T"]:
    """Weights that are 0 where nothing is seen and sum to 1.

    What is not seen has a finite bias: -inf would give NaN for a query that sees nothing, and 0 * NaN in the
    layer above. Adding it is several times as fast as filling, and its gradient costs nothing.
    """
    bias = torch.zeros_like(seen, dtype=logits.dtype).masked_fill(~seen, torch.finfo(logits.dtype).min)
    return torch.softmax(logits + bias, -1)


class Watched(nn.Identity):
    """Weights (B, H, Q, T) pass through as they are; `hydrec.explain.attention` reads them on the way.

    Attention that drops some of its weights needs none.

    Args:
        queries: what looks: ``positions``; ``all`` for positions that count alike in the end, not the last
            alone; ``nodes`` for those where an item first occurs; ``whole`` for the history, where Q is 1.
    """

    def __init__(self, *, queries: str) -> None:
        super().__init__()
        self.queries = queries


class Attention(nn.Module):
    """``softmax(Q K^T / sqrt(E)) V`` of each head, side by side.

    Args:
        dim: width D of what goes in and comes out.
        heads: their number H, of width E = D / H.
        dropout: share of the weights that training drops.
        mix: whether a linear map mixes what the heads found.

    Raises:
        InputError: there is no head, or ``heads`` does not divide ``dim``.
    """

    def __init__(self, dim: int, *, heads: int, dropout: float, mix: bool) -> None:
        super().__init__()
        if dim % at_least("model.net.heads", heads, 1):
            raise InputError(f"model.net.heads={heads} does not divide model.net.dim={dim}")
        self.heads, self.scale = heads, 1 / math.sqrt(dim / heads)
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))
        self.dropout = Dropout(dropout)
        self.mix = nn.Linear(dim, dim) if mix else nn.Identity()

    def forward(
        self,
        queries: Float[Tensor, "B Q D"],
        keys: Float[Tensor, "B T D"],
        seen: Bool[Tensor, "*#BHQ T"],
        weigh: Weigh = softmax,
    ) -> Float[Tensor, "B Q D"]:
        """What each query finds.

        Args:
            queries: what looks.
            keys: what is looked at; keys and values are made of it.
            seen: which keys a query sees, broadcast to (B, H, Q, T).
            weigh: from logits and ``seen`` to weights, before dropout.
        """
        q, k, v = self._split(self.query(queries)), self._split(self.key(keys)), self._split(self.value(keys))
        weights = self.dropout(weigh((q * self.scale) @ k.mT, seen))
        return self.mix((weights @ v).transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, H, T, E)

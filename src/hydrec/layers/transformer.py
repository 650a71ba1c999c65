"""The two transformers that are called SASRec, and what they share.

``original`` is that of "Self-Attentive Sequential Recommendation" (Kang and McAuley, ICDM 2018;
https://arxiv.org/abs/1808.09781) as its public code has it (kang205/SASRec); ``recbole`` is that of RecBole's
model of the same name, the encoder of BERT.

Shapes: B rows, T positions, P scored positions, D width.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hydrec.errors import at_least, one_of, share_of
from hydrec.layers.attention import Attention, Weigh, softmax
from hydrec.layers.dropout import Dropout
from hydrec.layers.graph import filled


class Positions(nn.Module):
    """A learnt vector for each position of a history.

    Args:
        window: positions at most.
        dim: width D.
        position: ``real`` counts from a history's first event; ``slot`` numbers the last ``window - 1``, as
            where rows are padded on the left: an inner position then knows how many events follow.

    Raises:
        InputError: ``position`` is neither, or ``window`` is not positive.
    """

    def __init__(self, window: int, dim: int, *, position: str) -> None:
        super().__init__()
        self.window = at_least("model.net.window", window, 1)
        self.slots = one_of("model.net.position", position, ("real", "slot")) == "slot"
        self.table = nn.Embedding(window, dim)

    def forward(self, lengths: Int[Tensor, " B"], positions: int) -> Float[Tensor, "B T D"]:
        """Vectors of the first ``positions`` positions of each row.

        Raises:
            IndexError: a history is longer than the window.
        """
        first = (self.window - lengths) * self.slots
        number = first[:, None] + torch.arange(positions, device=lengths.device)
        return self.table(number * filled(lengths, positions))


class PostNorm(nn.Module):
    """Block ``recbole``: ``x1 = LN(x + attention(x))``, then ``LN(x1 + W2 gelu(W1 x1))``.

    Args:
        attention: from queries, keys and what follows to (B, T, D).
        dim: width D.
        inner: width between W1 and W2.
        dropout: share that training drops of what attention and W2 give.
        eps: of the layer norms.
    """

    def __init__(self, attention: nn.Module, dim: int, *, inner: int, dropout: float, eps: float) -> None:
        super().__init__()
        self.attention = attention
        self.attention_norm = nn.LayerNorm(dim, eps)
        self.feed = nn.Sequential(nn.Linear(dim, inner), nn.GELU(), nn.Linear(inner, dim))
        self.feed_norm = nn.LayerNorm(dim, eps)
        self.dropout = Dropout(dropout)

    def forward(self, x: Float[Tensor, "B T D"], *how: Any) -> Float[Tensor, "B T D"]:
        """The next layer's positions; ``how`` goes to the attention."""
        x = self.attention_norm(x + self.dropout(self.attention(x, x, *how)))
        return self.feed_norm(x + self.dropout(self.feed(x)))


class QueryNorm(nn.Module):
    """Block ``original``: only queries are normalised, and they are the residual.

    ``q = LN(x)``, ``y = LN(q + attention(q, x))``, then ``y + W2 relu(W1 y)``.

    Args:
        attention: from queries, keys and what follows to (B, T, D).
        dim: width D.
        inner: width between W1 and W2; the paper's is D.
        dropout: share that training drops of what the rectifier and W2 give.
        eps: of the layer norms.
    """

    def __init__(self, attention: nn.Module, dim: int, *, inner: int, dropout: float, eps: float) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(dim, eps)
        self.attention = attention
        self.feed_norm = nn.LayerNorm(dim, eps)
        self.feed = nn.Sequential(
            nn.Linear(dim, inner), nn.ReLU(), Dropout(dropout), nn.Linear(inner, dim), Dropout(dropout)
        )

    def forward(self, x: Float[Tensor, "B T D"], *how: Any) -> Float[Tensor, "B T D"]:
        """The next layer's positions; ``how`` goes to the attention."""
        q = self.query_norm(x)
        y = self.feed_norm(q + self.attention(q, x, *how))
        return y + self.feed(y)


BLOCKS: dict[str, type[PostNorm] | type[QueryNorm]] = {"recbole": PostNorm, "original": QueryNorm}


class Encoder(nn.Module):
    """Blocks of one kind, and the norm before (``recbole``) or after them (``original``).

    Args:
        dim: width D.
        block: ``recbole`` or ``original``; only the first mixes heads by a linear map.
        blocks: their number.
        heads: of each attention.
        inner: width inside the feed-forward layers.
        hidden_dropout: share that training drops of what enters and of what the layers give.
        attention_dropout: share of the attention's weights that training drops.
        eps: of the layer norms.

    Raises:
        InputError: ``block`` is neither, or a size makes no sense.
    """

    def __init__(
        self,
        dim: int,
        *,
        block: str,
        blocks: int,
        heads: int,
        inner: int,
        hidden_dropout: float,
        attention_dropout: float,
        eps: float,
    ) -> None:
        super().__init__()
        kind = BLOCKS[one_of("model.net.block", block, BLOCKS)]
        for key, size in {"inner": inner, "blocks": blocks}.items():
            at_least(f"model.net.{key}", size, 1)
        for key, share in {"hidden": hidden_dropout, "attention": attention_dropout}.items():
            share_of(f"model.net.{key}_dropout", share)
        norm = nn.LayerNorm(dim, eps)
        self.enter = nn.Sequential(norm if kind is PostNorm else nn.Identity(), Dropout(hidden_dropout))
        self.blocks = nn.ModuleList(
            kind(
                Attention(dim, heads=heads, dropout=attention_dropout, mix=kind is PostNorm),
                dim,
                inner=inner,
                dropout=hidden_dropout,
                eps=eps,
            )
            for _ in range(blocks)
        )
        self.leave = norm if kind is QueryNorm else nn.Identity()

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        seen: Bool[Tensor, "*#BHT T"],
        weigh: list[Weigh] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """What the last block makes of the positions ``x``.

        Args:
            x: vectors of items and positions.
            seen: which positions (last axis) each sees.
            weigh: how each block makes weights of its logits; by default the softmax.
        """
        x = self.enter(x)
        for block, how in zip(self.blocks, weigh or [softmax] * len(self.blocks), strict=True):
            x = block(x, seen, how)
        return self.leave(x)


def initialise(net: nn.Module, block: str) -> None:
    """Draws all linear and embedding weights anew; biases and the rows of ``padding_idx`` are 0.

    ``recbole`` draws from N(0, 0.02^2), ``original`` by Glorot uniformly.
    """
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            if block == "recbole":
                nn.init.normal_(module.weight, std=0.02)
            else:
                nn.init.xavier_uniform_(module.weight)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            with torch.no_grad():
                module.weight[module.padding_idx] = 0

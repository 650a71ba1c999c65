"""BST: a transformer over behaviours and the candidate, each with the time since it happened.

"Behavior Sequence Transformer for E-commerce Recommendation in Alibaba" (Chen et al., DLP-KDD 2019;
https://arxiv.org/abs/1905.06874).

Differs from the paper in that there are no crosses made by hand, and where the paper leaves things open:
times are put into octaves of seconds before they are embedded; the feed-forward layer is four times as wide
as its input, as in the transformer that it follows; hidden layers of the MLP are rectified; eq. 5 is
``LN(E + MH(E))``, as eq. 2 has E go into MH; LeakyReLU is where eq. 6 has it, not in the attention, for which
no equation has one.

Differs from other models of this name: FuxiCTR's numbers places and knows of no time, and in DeepCTR's the
candidate is no part of the sequence.

Shapes: B rows, T behaviours, S = 1 + T, Q queries, V width of an item with its time.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hydrec.batch import ClickBatch, ClickCatalog
from hydrec.errors import InputError, at_least
from hydrec.layers.attention import Attention
from hydrec.layers.dropout import Dropout
from hydrec.layers.mlp import MLP
from hydrec.layers.tabular import Tables, embedding


def octaves(seconds: Int[Tensor, "*B"], count: int) -> Int[Tensor, "*B"]:
    """0 for none, k for at least 2^(k-1) and less than 2^k; the last octave has no end.

    >>> octaves(torch.tensor([0, 1, 2, 3, 4, 3600, 86400, 2**40]), count=32)
    tensor([ 0,  1,  2,  2,  3, 12, 17, 31])
    """
    return torch.bucketize(seconds, 2 ** torch.arange(count - 1, device=seconds.device), right=True)


class Block(nn.Module):
    """``S' = LN(q + MH(q, x))``, then ``LN(S' + W2 LeakyReLU(W1 S'))`` (eq. 5 and 6).

    Args:
        width: V.
        heads: of the attention.
        inner: width between W1 and W2.
        dropout: share that training drops of what attention and W2 give.
    """

    def __init__(self, width: int, *, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads=heads, dropout=0.0, mix=True)
        self.attention_norm = nn.LayerNorm(width)
        self.feed = nn.Sequential(nn.Linear(width, inner), nn.LeakyReLU(), nn.Linear(inner, width))
        self.feed_norm = nn.LayerNorm(width)
        self.dropout = Dropout(dropout)

    def forward(
        self, queries: Float[Tensor, "B Q V"], x: Float[Tensor, "B S V"], seen: Bool[Tensor, "B S"]
    ) -> Float[Tensor, "B Q V"]:
        """What becomes of some items that look at all that are ``seen``."""
        y = self.attention_norm(queries + self.dropout(self.attention(queries, x, seen[:, None, None])))
        return self.feed_norm(y + self.dropout(self.feed(y)))


class BST(nn.Module):
    """Predicts a click from what the candidate finds among the behaviours, and all other features.

    Args:
        catalog: sizes, fields and the codes of items.
        item_dim: width of the id of an item, of each of its fields, and of the time.
        field_dim: width of each field of user and context.
        octaves: number of embeddings of times.
        blocks: their number.
        heads: of each attention.
        inner: width inside each feed-forward layer.
        hidden: widths of the hidden layers of the MLP.
        activation: of the MLP, as `hydrec.layers.mlp.ACTIVATIONS` has them.
        dropout: share that training drops, in blocks and MLP.
        std: of the normal distribution, cut at two of it, that embeddings are drawn from.
        l2: weight of the squared norms of all items and fields that a row looks up.
        sparse: whether gradients are of the rows looked up only.

    Raises:
        InputError: a value makes no sense.
    """

    def __init__(
        self,
        catalog: ClickCatalog,
        *,
        item_dim: int,
        field_dim: int,
        octaves: int,
        blocks: int,
        heads: int,
        inner: int,
        hidden: Sequence[int],
        activation: str,
        dropout: float,
        std: float,
        l2: float,
        sparse: bool,
    ) -> None:
        super().__init__()
        sizes = {"item_dim": item_dim, "field_dim": field_dim, "octaves": octaves, "blocks": blocks}
        for key, size in (sizes | {"heads": heads, "inner": inner}).items():
            at_least(f"model.net.{key}", size, 1)
        if octaves > 64:
            raise InputError(f"model.net.octaves={octaves}: 64 hold all times there are")
        if not std > 0:
            raise InputError(f"model.net.std={std}: must be above 0")
        if not l2 >= 0:
            raise InputError(f"model.net.l2={l2}: must be 0 or more")
        self.tables = Tables(catalog, item_dim=item_dim, field_dim=field_dim, std=std, l2=l2, sparse=sparse)
        others = self.tables.item_width + field_dim * len(catalog.fields)
        width = self.tables.item_width + item_dim
        if width % heads:
            raise InputError(
                f"model.net.heads={heads} does not divide the width of an item and its time,"
                f" {self.tables.parts + 1} times model.net.item_dim={item_dim}"
            )
        self.mlp = MLP(width + others, hidden, activation=activation, dropout=dropout, batch_norm=False)
        self.time = embedding(octaves, item_dim, std=std, sparse=False)
        self.blocks = nn.ModuleList(
            Block(width, heads=heads, inner=inner, dropout=dropout) for _ in range(blocks)
        )
        self.octaves = octaves

    def forward(self, batch: ClickBatch) -> tuple[Float[Tensor, " B"], Float[Tensor, ""]]:
        """Logits, and the L2 term of the loss."""
        inputs = self.tables(batch)
        since = F.pad(batch.target_times[:, None] - batch.times, (1, 0))  # (B, S), the candidate first
        items = torch.cat([inputs.item[:, None], inputs.behaviours], 1)
        x = torch.cat([items, self.time(octaves(since, self.octaves))], 2)  # (B, S, V)
        seen = F.pad(inputs.valid, (1, 0), value=True)
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x, x, seen)
        found = last(x[:, :1], x, seen)[:, 0]  # what the behaviours would find is not read
        others = [inputs.item, inputs.user.flatten(1), inputs.context.flatten(1)]
        return self.mlp(torch.cat([found, *others], 1)), inputs.penalty

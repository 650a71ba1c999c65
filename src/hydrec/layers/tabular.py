"""What a click net sees of a batch: items with their fields, behaviours, and the fields of user and context.

Shapes: B rows, T behaviours, W columns of codes, F fields, D width of one embedding, I width of an item.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from hydrec.batch import PAD, ClickBatch, ClickCatalog, Field
from hydrec.layers.graph import filled

BLOCK = 2**20  # rows drawn at once: to draw takes four times their memory


class Inputs(NamedTuple):
    """A batch, embedded.

    Attributes:
        item: (B, I) the candidate: its id and each of its fields, side by side.
        behaviours: (B, T, I) the history, by the same tables; 0 on padding.
        valid: (B, T) bool, behaviours that are no padding.
        user: (B, J, D) the fields of the user.
        context: (B, K, D) the fields of the context.
        penalty: () L2 term of the loss: the squares of all that was looked up, a row's mean, weighed.
    """

    item: Float[Tensor, "B I"]
    behaviours: Float[Tensor, "B T I"]
    valid: Bool[Tensor, "B T"]
    user: Float[Tensor, "B J D"]
    context: Float[Tensor, "B K D"]
    penalty: Float[Tensor, ""]


class Fields(nn.Module):
    """One table for several fields, read in one gather.

    Args:
        fields: in the order of their columns.
        dim: width of an embedding.
        std: of the normal distribution, cut at two of it, that they are drawn from.
        sparse: whether gradients are of the rows looked up only.
    """

    offset: Tensor
    owner: Tensor

    def __init__(self, fields: Sequence[Field], *, dim: int, std: float, sparse: bool) -> None:
        super().__init__()
        sizes = torch.tensor([field.size for field in fields], dtype=torch.int64)
        widths = torch.tensor([field.width for field in fields], dtype=torch.int64)
        self.table = embedding(int(sizes.sum()), dim, std=std, sparse=sparse) if fields else None
        self.register_buffer("offset", (sizes.cumsum(0) - sizes).repeat_interleave(widths), persistent=False)
        owner = torch.arange(len(fields)).repeat_interleave(widths)
        self.register_buffer("owner", owner, persistent=False)
        self.count, self.dim, self.single = len(fields), dim, len(owner) == len(fields)

    def forward(self, codes: Int[Tensor, "*B W"], weights: Float[Tensor, "*B W"]) -> Float[Tensor, "*B F D"]:
        """The weighted sum of the embeddings of each field's codes."""
        if self.table is None:
            return weights.new_zeros(*codes.shape[:-1], 0, self.dim)
        vectors = self.table(codes + self.offset) * weights[..., None]  # (*B, W, D)
        if self.single:
            return vectors
        summed = vectors.new_zeros(*codes.shape[:-1], self.count, self.dim)
        return summed.index_add(-2, self.owner, vectors)


class Tables(nn.Module):
    """Embeds all that a batch has; candidates and behaviours share their tables.

    Args:
        catalog: sizes, fields and the codes of items.
        item_dim: width of the id of an item, and of each of its fields.
        field_dim: width of each field of user and context.
        std: of the normal distribution, cut at two of it, that embeddings are drawn from.
        l2: weight of the squared norms of all that a row looks up.
        sparse: whether gradients are of the rows looked up only, for optimisers that touch no others.

    Attributes:
        parts: number of ``item_dim`` that make an item: its id and its fields.
        item_width: I.
        user_fields, context_fields: J and K.
    """

    item_codes: Tensor
    item_weights: Tensor

    def __init__(
        self, catalog: ClickCatalog, *, item_dim: int, field_dim: int, std: float, l2: float, sparse: bool
    ) -> None:
        super().__init__()
        self.l2 = l2
        self.item = embedding(catalog.n_items + 1, item_dim, std=std, sparse=sparse)
        self.item_fields = Fields(catalog.item_fields, dim=item_dim, std=std, sparse=sparse)
        self.fields = Fields(catalog.fields, dim=field_dim, std=std, sparse=sparse)
        # the catalogue's, so not of the checkpoint
        self.register_buffer("item_codes", catalog.item_codes, persistent=False)
        self.register_buffer("item_weights", catalog.item_weights, persistent=False)
        self.parts = 1 + len(catalog.item_fields)
        self.item_width = self.parts * item_dim
        self.user_fields = sum(field.group == "user" for field in catalog.fields)
        self.context_fields = len(catalog.fields) - self.user_fields

    def forward(self, batch: ClickBatch) -> Inputs:
        """Looks everything up: candidates and behaviours in one gather, user and context in another."""
        valid = filled(batch.lengths, batch.items.shape[1])
        behaviours = torch.where(valid, batch.items, PAD)
        items = torch.cat([batch.candidates[:, None], behaviours], 1)  # (B, 1 + T)
        vectors = self.items(items)
        fields = self.fields(batch.codes, batch.weights)  # (B, F, D)
        penalty = fields.new_zeros(())
        if self.l2:
            penalty = self.l2 * (vectors.square().sum() + fields.square().sum()) / len(items)
        user, context = fields.split([self.user_fields, self.context_fields], 1)
        item, behaviours = vectors.split([1, valid.shape[1]], 1)
        return Inputs(item[:, 0], behaviours, valid, user, context, penalty)

    def items(self, ids: Int[Tensor, "*B"]) -> Float[Tensor, "*B I"]:
        """Items, id beside fields; ``PAD`` is 0."""
        vectors = self.item(ids) * (ids != PAD)[..., None]
        if self.parts == 1:
            return vectors
        parts = self.item_fields(rows(self.item_codes, ids), rows(self.item_weights, ids))
        return torch.cat([vectors, parts.flatten(-2)], -1)


def pooled(vectors: Float[Tensor, "B T I"], valid: Bool[Tensor, "B T"]) -> Float[Tensor, "B I"]:
    """Mean of the valid vectors of each row, 0 where there are none; the others must be 0."""
    return vectors.sum(1) / valid.sum(1, keepdim=True).clamp(min=1)


class Table(nn.Embedding):
    """An embedding with a dense gradient, which a CPU adds up several times as fast as `nn.Embedding`'s."""

    def forward(self, ids: Int[Tensor, "*B"]) -> Float[Tensor, "*B D"]:
        """The rows of some ids."""
        return rows(self.weight, ids)


def rows(table: Shaped[Tensor, "V D"], ids: Int[Tensor, "*B"]) -> Shaped[Tensor, "*B D"]:
    """What a table has for some ids: as indexing by them, but faster."""
    return table.index_select(0, ids.flatten()).view(*ids.shape, table.shape[1])


def embedding(size: int, dim: int, *, std: float, sparse: bool) -> nn.Embedding:
    """A table drawn from a normal distribution that is cut at two standard deviations."""
    table = nn.Embedding(size, dim, sparse=True) if sparse else Table(size, dim)
    for part in table.weight.detach().split(BLOCK):
        nn.init.trunc_normal_(part, std=std, a=-2 * std, b=2 * std)
    return table

"""SASRec that knows in which of a few bins of intensity each event is: successors of IA-SASRec.

Not of a paper, but after the negative result of "Architectural Limitations in Intensity-Aware Sequential
Recommendation" (Shyrallyiev and Pyshnograiev, 2026); see `hydrec.models.ia_sasrec` for its own forms.

- `use: bias` adds to the logits a learnt number for each block, head and bin of the key; the paper's ``add``
  with binned intensities is a case of it.
- `use: experts`: the last heads of each block turn, by a learnt share, from all keys to those of a bin of
  their own and the query itself. `use: hard_experts`: they see no others from the start.
- `use: tokens` puts a token of its bin after each event, at the event's position, and predicts the next item
  from there. `use: constant_tokens` is the control: sequences as long, one bin for all.

``bias`` and ``experts`` start with the bits of SASRec. ``hard_experts`` cannot; nor can ``tokens``, since no
sequence of another length is SASRec's: it starts with those of ``constant_tokens``.

Bins are cut at percentiles of the training part's normalised intensities. Ratings have few values: where two
percentiles are one, a bin stays empty, but the highest intensity always has a bin to itself.

Shapes: B rows, T history positions, P scored positions, D width, H heads, K bins, R training rows, M scored
rows, C candidate items.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hydrec.batch import PAD, Catalog, SequenceBatch
from hydrec.errors import InputError, at_least, one_of
from hydrec.layers import attention, intensity, scoring, transformer
from hydrec.layers.graph import filled
from hydrec.layers.history import at_targets


class Hidden(NamedTuple):
    """What a history says of the next item.

    Attributes:
        vectors: (B, P, D) float.
    """

    vectors: Tensor


class Sequences(NamedTuple):
    """What goes into the transformer.

    Attributes:
        x: (B, S, D) float; S is T, or 2T with a token after each event.
        seen: (S, S) bool, which positions (last axis) each sees.
        weigh: how each block makes weights of its logits.
    """

    x: Tensor
    seen: Tensor
    weigh: list[attention.Weigh]


class Bias(nn.Module):
    """Adds a number for each head and bin of the key to the logits of a block; at first 0.

    Args:
        dim: not read.
        blocks, heads, bins: their numbers.
    """

    predicts = slice(None)  # the positions that predict

    def __init__(self, dim: int, *, blocks: int, heads: int, bins: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(bins, heads) for _ in range(blocks))
        for weight in self.tables.parameters():
            nn.init.zeros_(weight)

    def forward(
        self, x: Float[Tensor, "B T D"], places: Float[Tensor, "B T D"], bins: Int[Tensor, "B T T"]
    ) -> Sequences:
        """Takes vectors of items and positions, and the keys' bins as each query sees them."""
        biases = [table(bins).movedim(3, 1) for table in self.tables]  # (B, H, T, T)
        weigh: list[attention.Weigh] = [partial(_biased, bias) for bias in biases]
        return Sequences(x + places, attention.causal(x.shape[1], x.device), weigh)


class Experts(nn.Module):
    """Turns the last heads of each block, one for each bin, from all keys to those of its bin.

    Args:
        dim: not read.
        blocks, heads, bins: their numbers; ``heads`` is the greater.
        hard: whether they start turned, and stay so; else they start unturned, and learn how far to turn.

    Raises:
        InputError: there are more bins than heads.
    """

    predicts = slice(None)
    share: Tensor

    def __init__(self, dim: int, *, blocks: int, heads: int, bins: int, hard: bool) -> None:
        super().__init__()
        if heads < bins:
            raise InputError(
                f"model.net.heads={heads}: each of the {bins} bins (model.net.bins) needs a head"
            )
        self.register_buffer("bin", torch.arange(bins)[:, None, None], persistent=False)
        if hard:
            self.register_buffer("share", torch.ones(blocks, bins, 1, 1))
        else:
            self.share = nn.Parameter(torch.zeros(blocks, bins, 1, 1))

    def forward(
        self, x: Float[Tensor, "B T D"], places: Float[Tensor, "B T D"], bins: Int[Tensor, "B T T"]
    ) -> Sequences:
        """Takes vectors of items and positions, and the keys' bins as each query sees them."""
        itself = torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
        own = (bins[:, None] == self.bin) | itself  # (B, K, T, T)
        weigh: list[attention.Weigh] = [partial(_turned, own, share) for share in self.share]
        return Sequences(x + places, attention.causal(x.shape[1], x.device), weigh)


class Tokens(nn.Module):
    """Puts a token of its bin after each event, at the same position; at first all bins look the same.

    Args:
        dim: width D.
        blocks, heads: not read.
        bins: their number.
        constant: whether all events are of the first bin.
    """

    predicts = slice(1, None, 2)

    def __init__(self, dim: int, *, blocks: int, heads: int, bins: int, constant: bool) -> None:
        super().__init__()
        self.table, self.kind = nn.Embedding(bins, dim), nn.Parameter(0.02 * torch.randn(dim))
        nn.init.zeros_(self.table.weight)
        self.blocks, self.told = blocks, int(not constant)

    def forward(
        self, x: Float[Tensor, "B T D"], places: Float[Tensor, "B T D"], bins: Int[Tensor, "B T T"]
    ) -> Sequences:
        """Takes vectors of items and positions, and the keys' bins as each query sees them."""
        own = bins.diagonal(dim1=1, dim2=2) * self.told  # (B, T) an event's bin as the event itself sees it
        tokens = self.table(own) + self.kind
        both = torch.stack([x + places, tokens + places], 2).flatten(1, 2)  # (B, 2T, D)
        return Sequences(both, attention.causal(both.shape[1], x.device), [attention.softmax] * self.blocks)


USES: dict[str, Callable[..., Bias | Experts | Tokens]] = {
    "bias": Bias,
    "experts": partial(Experts, hard=False),
    "hard_experts": partial(Experts, hard=True),
    "tokens": partial(Tokens, constant=False),
    "constant_tokens": partial(Tokens, constant=True),
}


class BinnedSASRec(nn.Module):
    """SASRec with bins of intensity.

    Args:
        catalog: sizes of the data set; ``fit`` reads the intensities of the training part.
        dim, block, blocks, heads, inner, window, position, scale, tied, hidden_dropout, attention_dropout,
            eps: as `hydrec.models.sasrec.SASRec` has them.
        use: what bins are for, as above.
        bins: their number.
        intensity_norm: how intensities are made comparable, a mode of `hydrec.layers.intensity`: those of the
            keys over the positions up to each query.

    Raises:
        InputError: an option is none of those above, or a number makes no sense.
    """

    causal = True
    edges: Tensor  # (K - 1,) upper ends of all bins but the last

    def __init__(
        self,
        catalog: Catalog,
        *,
        dim: int,
        block: str,
        blocks: int,
        heads: int,
        inner: int,
        window: int,
        position: str,
        scale: bool,
        tied: bool,
        hidden_dropout: float,
        attention_dropout: float,
        eps: float,
        use: str,
        bins: int,
        intensity_norm: str,
    ) -> None:
        super().__init__()
        self.item = nn.Embedding(catalog.n_items + 1, at_least("model.net.dim", dim, 1), padding_idx=PAD)
        self.scale = math.sqrt(dim) if scale else 1.0
        self.position = transformer.Positions(window, dim, position=position)
        self.encoder = transformer.Encoder(
            dim,
            block=block,
            blocks=blocks,
            heads=heads,
            inner=inner,
            hidden_dropout=hidden_dropout,
            attention_dropout=attention_dropout,
            eps=eps,
        )
        self.candidate = self.item if tied else nn.Embedding(catalog.n_items + 1, dim, padding_idx=PAD)
        transformer.initialise(self, block)
        self.normalise = intensity.MODES[one_of("model.net.intensity_norm", intensity_norm, intensity.MODES)]
        self.register_buffer("edges", torch.zeros(at_least("model.net.bins", bins, 2) - 1))
        make = USES[one_of("model.net.use", use, USES)]  # last: SASRec's random numbers must stay the same
        self.use = make(dim, blocks=blocks, heads=heads, bins=bins)

    def fit(self, catalog: Catalog) -> None:
        """Cuts the bins: each user's training rows, in pieces of the window's length, are histories."""
        width, bins = self.position.window, len(self.edges) + 1
        place = torch.arange(len(catalog.users)) - torch.searchsorted(catalog.users, catalog.users)
        starts = (place % width == 0).cumsum(0) - 1  # (R,) number of the piece
        values = catalog.values.new_zeros(int(starts[-1]) + 1, width)
        real = torch.zeros_like(values, dtype=torch.bool)
        values[starts, place % width], real[starts, place % width] = catalog.values, True
        found = self.normalise(values, real)[real].sort().values
        second = found[(found < found[-1]).sum().clamp(min=1) - 1]  # so that the highest have a bin apart
        self.edges.copy_(found[len(found) * torch.arange(1, bins) // bins].clamp(max=second))

    def encode(self, batch: SequenceBatch) -> tuple[Hidden, Float[Tensor, ""]]:
        """The transformer's output where something is supervised, and no term of a loss."""
        positions = batch.items.shape[1]
        seen = intensity.causal(filled(batch.lengths, positions))
        bins = torch.bucketize(self.normalise(batch.values[:, None], seen), self.edges)  # (B, T, T)
        x = self.scale * self.item(batch.items)
        hidden = self.encoder(*self.use(x, self.position(batch.lengths, positions), bins))
        vectors = at_targets(hidden[:, self.use.predicts], batch)
        return Hidden(vectors), vectors.new_zeros(())

    def score(self, state: Hidden, items: Int[Tensor, "*M C"]) -> Float[Tensor, "M C"]:
        """Scores of candidates for M selected rows, fields (M, D), of the state."""
        return scoring.dot(state.vectors[:, None], self.candidate(items))[:, 0]

    def products(self, state: Hidden, items: Int[Tensor, " C"]) -> tuple[Tensor, Tensor, None]:
        """What `score` multiplies: vectors (M, D), of items (C, D), and what it adds (C,)."""
        return state.vectors, self.candidate(items), None


def _biased(bias: Tensor, logits: Tensor, seen: Tensor) -> Tensor:
    return attention.softmax(logits + bias, seen)


def _turned(own: Bool[Tensor, "B K T T"], share: Tensor, logits: Tensor, seen: Tensor) -> Tensor:
    weights, experts = attention.softmax(logits, seen), own.shape[1]
    others, all_keys = weights.tensor_split([weights.shape[1] - experts], 1)
    own_keys = attention.softmax(logits[:, -experts:], seen & own)
    return torch.cat([others, torch.lerp(all_keys, own_keys, share)], 1)

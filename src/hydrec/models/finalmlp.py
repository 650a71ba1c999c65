"""FinalMLP: two MLPs that look at the fields through gates of their own, fused by a bilinear form.

"FinalMLP: An Enhanced Two-Stream MLP Model for CTR Prediction" (Mao et al., AAAI 2023;
https://arxiv.org/abs/2304.00902); public code: reczoo/FuxiCTR, model_zoo/FinalMLP.

Differs from the public code in that gates read the embeddings that the streams read, where the code gives
them tables of their own; and in that the vector of a gate that reads no field does not start at 0, where its
rectifier would keep it.

Shapes: B rows, F fields, D width of a field, I = F * D, N heads.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hydrec.batch import ClickBatch, ClickCatalog
from hydrec.errors import InputError, at_least, one_of
from hydrec.layers.interaction import FieldMatrix
from hydrec.layers.mlp import Hidden, linear


class FinalMLP(nn.Module):
    """Lets two MLPs see the fields differently, and learns how what they find goes together.

    Args:
        catalog: sizes, fields and the codes of items.
        dim: width of a field.
        history: false to leave the history out.
        first, second: of each stream, ``reads``, the fields that its gate reads: those of ``item``,
            ``history``, ``user`` or ``context``, or ``none`` for a learnt vector, which also serves where the
            data have no such field; and ``hidden``, ``activation``, ``dropout``, ``batch_norm`` of its MLP.
        gate_hidden: widths of the hidden layers of each gate.
        heads: parts of both streams' outputs that meet in the bilinear form; divides their widths.
        std: of the normal distribution that embeddings are drawn from.
        l2: weight of the squared norms of all that a row looks up.
        sparse: whether gradients are of the rows looked up only.

    Raises:
        InputError: a value makes no sense.
    """

    def __init__(
        self,
        catalog: ClickCatalog,
        *,
        dim: int,
        history: bool,
        first: Mapping[str, Any],
        second: Mapping[str, Any],
        gate_hidden: Sequence[int],
        heads: int,
        std: float,
        l2: float,
        sparse: bool,
    ) -> None:
        super().__init__()
        self.fields = FieldMatrix(catalog, dim=dim, history=history, std=std, l2=l2, sparse=sparse)
        self.first = Stream(self.fields, gate_hidden=gate_hidden, std=std, key="model.net.first.", **first)
        self.second = Stream(self.fields, gate_hidden=gate_hidden, std=std, key="model.net.second.", **second)
        self.fuse = Fusion(self.first.out_width, self.second.out_width, heads=heads)

    def forward(self, batch: ClickBatch) -> tuple[Float[Tensor, " B"], Float[Tensor, ""]]:
        """Logits, and the L2 term of the loss."""
        fields, penalty = self.fields(batch)  # (B, F, D)
        return self.fuse(self.first(fields), self.second(fields)), penalty


class Stream(nn.Module):
    """An MLP over gated fields, ``e * 2 sigmoid(gate(x))``.

    Args:
        matrix: what makes the fields e.
        gate_hidden: widths of the hidden layers of the gate.
        std: of the normal distribution that a learnt x is drawn from.
        key: where a configuration has the stream, as errors name it.
        reads: the fields that are x, of one of the matrix' ``places``; or ``none``.
        mlp: settings of `hydrec.layers.mlp.Hidden`.

    Raises:
        InputError: ``reads`` is neither, or a setting makes no sense.

    Attributes:
        out_width: of the last hidden layer.
    """

    def __init__(
        self,
        matrix: FieldMatrix,
        *,
        gate_hidden: Sequence[int],
        std: float,
        key: str,
        reads: str,
        **mlp: Any,
    ) -> None:
        super().__init__()
        places = matrix.places | {"none": slice(0, 0)}
        place = places[one_of(f"{key}reads", reads, places)]
        count, width = place.stop - place.start, matrix.fields * matrix.dim
        hidden = Hidden(
            max(count, 1) * matrix.dim,
            gate_hidden,
            activation="relu",
            dropout=0.0,
            batch_norm=False,
            key="model.net.gate_",
        )
        read = Part(place) if count else Learnt(matrix.dim, std)
        self.gate = nn.Sequential(read, hidden, linear(hidden.out_width, width), nn.Sigmoid())
        self.mlp = Hidden(width, **mlp, key=key)
        self.out_width = self.mlp.out_width

    def forward(self, fields: Float[Tensor, "B F D"]) -> Float[Tensor, "B H"]:
        """The last hidden layer of each row."""
        return self.mlp(fields.flatten(1) * 2 * self.gate(fields))


class Part(nn.Module):
    """Some of the fields, side by side.

    Args:
        place: which.
    """

    def __init__(self, place: slice) -> None:
        super().__init__()
        self.place = place

    def forward(self, fields: Float[Tensor, "B F D"]) -> Float[Tensor, "B P"]:
        """The fields of the place."""
        return fields[:, self.place].flatten(1)


class Learnt(nn.Module):
    """A vector for all rows, whatever their fields: with it, a gate weighs fields the same everywhere.

    Args:
        dim: D.
        std: of the normal distribution that it is drawn from.
    """

    def __init__(self, dim: int, std: float) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.randn(1, dim) * std)

    def forward(self, fields: Float[Tensor, "B F D"]) -> Float[Tensor, "1 D"]:
        """The vector."""
        return self.vector


class Fusion(nn.Module):
    """``b + w_1 . o_1 + w_2 . o_2 + sum_n o_1n W_n o_2n``, with both outputs cut into N heads.

    Args:
        first, second: widths of the outputs o_1 and o_2.
        heads: N.

    Raises:
        InputError: ``heads`` does not divide both widths.
    """

    def __init__(self, first: int, second: int, *, heads: int) -> None:
        super().__init__()
        at_least("model.net.heads", heads, 1)
        if first % heads or second % heads:
            raise InputError(
                f"model.net.heads={heads}: does not divide the last hidden widths of both streams,"
                f" {first} and {second}"
            )
        self.weigh = linear(first + second, 1)
        self.forms = nn.Parameter(torch.empty(heads, first // heads, second // heads))
        for form in self.forms:
            nn.init.xavier_normal_(form)

    def forward(self, first: Float[Tensor, "B H1"], second: Float[Tensor, "B H2"]) -> Float[Tensor, " B"]:
        """Logits."""
        one, two = (x.unflatten(1, (len(self.forms), -1)) for x in (first, second))  # (B, N, H/N)
        met = torch.einsum("bni,nij->bnj", one, self.forms) * two
        return self.weigh(torch.cat([first, second], 1))[:, 0] + met.sum((1, 2))

"""DCN-V2: crosses of growing degree by whole matrices, beside an MLP or below it.

"DCN V2: Improved Deep & Cross Network and Practical Lessons for Web-scale Learning to Rank Systems" (Wang et
al., WWW 2021; https://arxiv.org/abs/2008.13535).

Differs from the paper in that all fields have one width, and in that matrices are of full rank: neither the
low-rank form nor the mixture of experts is here.

Shapes: B rows, F fields, D width of a field.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hydrec.batch import ClickBatch, ClickCatalog
from hydrec.errors import one_of
from hydrec.layers.interaction import FieldMatrix, MatrixCross
from hydrec.layers.mlp import Hidden, linear


def _parallel(x: Tensor, cross: nn.Module, deep: nn.Module) -> Tensor:
    return torch.cat([cross(x), deep(x)], 1)


def _stacked(x: Tensor, cross: nn.Module, deep: nn.Module) -> Tensor:
    return deep(cross(x))


STRUCTURES = {"parallel": _parallel, "stacked": _stacked}


class DCNV2(nn.Module):
    """Weighs what the cross layers and an MLP give.

    Args:
        catalog: sizes, fields and the codes of items.
        dim: width of a field.
        history: false to leave the history out.
        structure: ``parallel`` for an MLP over the fields, weighed side by side with the crosses; ``stacked``
            for an MLP over the crosses.
        cross: number of cross layers.
        hidden: widths of the hidden layers of the MLP.
        activation: of the MLP, as `hydrec.layers.mlp.ACTIVATIONS` has them.
        dropout: share of each hidden layer's output that training sets to 0.
        batch_norm: whether the MLP normalises each hidden layer.
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
        structure: str,
        cross: int,
        hidden: Sequence[int],
        activation: str,
        dropout: float,
        batch_norm: bool,
        std: float,
        l2: float,
        sparse: bool,
    ) -> None:
        super().__init__()
        self.fields = FieldMatrix(catalog, dim=dim, history=history, std=std, l2=l2, sparse=sparse)
        width = self.fields.fields * dim
        self.cross = MatrixCross(width, cross)
        self.deep = Hidden(width, hidden, activation=activation, dropout=dropout, batch_norm=batch_norm)
        self.join = STRUCTURES[one_of("model.net.structure", structure, STRUCTURES)]
        self.weigh = linear(self.deep.out_width + width * (structure == "parallel"), 1)

    def forward(self, batch: ClickBatch) -> tuple[Float[Tensor, " B"], Float[Tensor, ""]]:
        """Logits, and the L2 term of the loss."""
        fields, penalty = self.fields(batch)  # (B, F, D)
        return self.weigh(self.join(fields.flatten(1), self.cross, self.deep))[:, 0], penalty

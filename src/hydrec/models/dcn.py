"""DCN: crosses of growing degree beside an MLP.

"Deep & Cross Network for Ad Click Predictions" (Wang et al., ADKDD 2017; https://arxiv.org/abs/1708.05123).

Differs from the paper in that all fields have one width, where the paper's grows with the number of codes;
that numbers are embedded like codes; and that the last layer has a bias. Like the paper's, and unlike
DeepCTR-Torch's model of the name, it has no logistic regression beside it.

Shapes: B rows, F fields, D width of a field.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hydrec.batch import ClickBatch, ClickCatalog
from hydrec.layers.interaction import FieldMatrix, VectorCross
from hydrec.layers.mlp import Hidden, linear


class DCN(nn.Module):
    """Weighs what the cross layers and an MLP give, side by side.

    Args:
        catalog: sizes, fields and the codes of items.
        dim: width of a field.
        history: false to leave the history out.
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
        self.cross = VectorCross(width, cross)
        self.deep = Hidden(width, hidden, activation=activation, dropout=dropout, batch_norm=batch_norm)
        self.weigh = linear(width + self.deep.out_width, 1)

    def forward(self, batch: ClickBatch) -> tuple[Float[Tensor, " B"], Float[Tensor, ""]]:
        """Logits, and the L2 term of the loss."""
        fields, penalty = self.fields(batch)  # (B, F, D)
        x = fields.flatten(1)
        both = torch.cat([self.cross(x), self.deep(x)], 1)
        return self.weigh(both)[:, 0], penalty  # eq. 5

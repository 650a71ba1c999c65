"""DeepFM: a factorisation machine beside an MLP over the same embeddings.

"DeepFM: A Factorization-Machine based Neural Network for CTR Prediction" (Guo et al., IJCAI 2017;
https://arxiv.org/abs/1703.04247).

Differs from the paper in that a field of several values, as a history, is the weighted mean of their vectors.

Shapes: B rows, F fields, D width of a field.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from hydrec.batch import ClickBatch, ClickCatalog
from hydrec.layers.interaction import FieldMatrix, Linear, pairs
from hydrec.layers.mlp import MLP


class DeepFM(nn.Module):
    """Adds up a logistic regression, the products of all pairs of fields, and an MLP.

    Args:
        catalog: sizes, fields and the codes of items.
        dim: width of a field.
        history: false to leave the history out.
        hidden: widths of the hidden layers of the MLP.
        activation: of the MLP, as `hydrec.layers.mlp.ACTIVATIONS` has them.
        dropout: share of each hidden layer's output that training sets to 0.
        batch_norm: whether the MLP normalises each hidden layer.
        std: of the normal distribution that embeddings and weights are drawn from.
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
        hidden: Sequence[int],
        activation: str,
        dropout: float,
        batch_norm: bool,
        std: float,
        l2: float,
        sparse: bool,
    ) -> None:
        super().__init__()
        self.linear = Linear(catalog, history=history, std=std, l2=l2, sparse=sparse)
        self.fields = FieldMatrix(catalog, dim=dim, history=history, std=std, l2=l2, sparse=sparse)
        self.deep = MLP(
            self.fields.fields * dim, hidden, activation=activation, dropout=dropout, batch_norm=batch_norm
        )

    def forward(self, batch: ClickBatch) -> tuple[Float[Tensor, " B"], Float[Tensor, ""]]:
        """Logits, and the L2 term of the loss."""
        logits, penalty = self.linear(batch)
        fields, more = self.fields(batch)  # (B, F, D)
        return logits + pairs(fields) + self.deep(fields.flatten(1)), penalty + more  # eq. 1

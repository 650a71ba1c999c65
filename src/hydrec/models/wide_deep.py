"""Wide & Deep: a logistic regression beside an MLP.

"Wide & Deep Learning for Recommender Systems" (Cheng et al., DLRS 2016; https://arxiv.org/abs/1606.07792).

Differs from the paper in that the wide part has no crosses of fields made by hand, and in that one optimiser
trains both parts, where the paper has FTRL for the wide and AdaGrad for the deep one.

Shapes: B rows, F fields, D width of a field.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from hydrec.batch import ClickBatch, ClickCatalog
from hydrec.layers.interaction import FieldMatrix, Linear
from hydrec.layers.mlp import MLP


class WideDeep(nn.Module):
    """Adds an MLP over the embeddings of all fields to a logistic regression.

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
        return logits + self.deep(fields.flatten(1)), penalty + more  # eq. 3

"""xDeepFM: products of fields of growing degree, compressed to maps, beside an MLP.

"xDeepFM: Combining Explicit and Implicit Feature Interactions for Recommender Systems" (Lian et al., KDD
2018; https://arxiv.org/abs/1803.05170).

Differs from the paper in that a field of several values, as a history, is the weighted mean of their vectors.
As in the paper's best model no activation follows the maps and all of them go on to the next layer, unlike
DeepCTR-Torch's model of the name, which has a rectifier and passes on half of them.

Shapes: B rows, F fields, D width of a field.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from hydrec.batch import ClickBatch, ClickCatalog
from hydrec.layers.interaction import CIN, FieldMatrix, Linear
from hydrec.layers.mlp import MLP, linear


class XDeepFM(nn.Module):
    """Adds up a logistic regression, the weighed maps of a compressed interaction network, and an MLP.

    Args:
        catalog: sizes, fields and the codes of items.
        dim: width of a field.
        history: false to leave the history out.
        maps: feature maps of each layer of the interaction network.
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
        maps: Sequence[int],
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
        self.interact = CIN(self.fields.fields, maps)
        self.weigh = linear(self.interact.out_width, 1)
        self.deep = MLP(
            self.fields.fields * dim, hidden, activation=activation, dropout=dropout, batch_norm=batch_norm
        )

    def forward(self, batch: ClickBatch) -> tuple[Float[Tensor, " B"], Float[Tensor, ""]]:
        """Logits, and the L2 term of the loss."""
        logits, penalty = self.linear(batch)
        fields, more = self.fields(batch)  # (B, F, D)
        explicit = self.weigh(self.interact(fields))[:, 0]
        return logits + explicit + self.deep(fields.flatten(1)), penalty + more

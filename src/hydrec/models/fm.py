"""FM: a factorisation machine, which learns how any two fields go together.

"Factorization Machines" (Rendle, ICDM 2010; https://doi.org/10.1109/ICDM.2010.127).

Differs from the paper in that a field of several values, as a history, is the weighted mean of their vectors:
it is crossed with the other fields, but not within itself.

Shapes: B rows, F fields, D width of a field.
"""

from jaxtyping import Float
from torch import Tensor, nn

from hydrec.batch import ClickBatch, ClickCatalog
from hydrec.layers.interaction import FieldMatrix, Linear, pairs


class FM(nn.Module):
    """Adds the products of all pairs of fields to a logistic regression.

    Args:
        catalog: sizes, fields and the codes of items.
        dim: width of a field.
        history: false to leave the history out.
        std: of the normal distribution that embeddings and weights are drawn from.
        l2: weight of the squared norms of all that a row looks up.
        sparse: whether gradients are of the rows looked up only.

    Raises:
        InputError: a value makes no sense.
    """

    def __init__(
        self, catalog: ClickCatalog, *, dim: int, history: bool, std: float, l2: float, sparse: bool
    ) -> None:
        super().__init__()
        self.linear = Linear(catalog, history=history, std=std, l2=l2, sparse=sparse)
        self.fields = FieldMatrix(catalog, dim=dim, history=history, std=std, l2=l2, sparse=sparse)

    def forward(self, batch: ClickBatch) -> tuple[Float[Tensor, " B"], Float[Tensor, ""]]:
        """Logits, and the L2 term of the loss."""
        logits, penalty = self.linear(batch)
        fields, more = self.fields(batch)  # (B, F, D)
        return logits + pairs(fields), penalty + more  # eq. 1, computed as in its lemma

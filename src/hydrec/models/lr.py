"""LR: logistic regression over all fields, which every other model has to beat.

"Predicting Clicks: Estimating the Click-Through Rate for New Ads" (Richardson, Dominowska and Ragno, WWW
2007; https://doi.org/10.1145/1242572.1242643).

Differs from the paper in that fields are codes, each with a weight of its own, where the paper has numbers
made by hand; and in that a history counts as the mean of the weights of its items.

Where a negative copies user, history and context of its positive, their weights have no signal to learn, and
what is left is the popularity of items.

Shapes: B rows.
"""

from jaxtyping import Float
from torch import Tensor, nn

from hydrec.batch import ClickBatch, ClickCatalog
from hydrec.layers.interaction import Linear


class LR(nn.Module):
    """Adds up a weight for each field.

    Args:
        catalog: sizes, fields and the codes of items.
        history: false to leave the history out.
        std: of the normal distribution that weights are drawn from.
        l2: weight of the squares of all weights that a row looks up.
        sparse: whether gradients are of the rows looked up only.

    Raises:
        InputError: a value makes no sense.
    """

    def __init__(self, catalog: ClickCatalog, *, history: bool, std: float, l2: float, sparse: bool) -> None:
        super().__init__()
        self.linear = Linear(catalog, history=history, std=std, l2=l2, sparse=sparse)

    def forward(self, batch: ClickBatch) -> tuple[Float[Tensor, " B"], Float[Tensor, ""]]:
        """Logits, and the L2 term of the loss."""
        return self.linear(batch)

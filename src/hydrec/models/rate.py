"""Rate: the share of showings that were clicked, of all or of each item.

What every click model has to beat: the share of all gives the logloss of a constant, and that of each item
tells how far popularity alone goes, which is far where negatives are drawn uniformly.

Shapes: B rows, V items.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hydrec.batch import ClickBatch, ClickCatalog
from hydrec.errors import InputError, one_of


class Rate(nn.Module):
    """Predicts the rate of training, whoever asks.

    Args:
        catalog: sizes of the data set; only ``n_items`` is read.
        by: ``none`` for the rate of all showings, ``item`` for that of the candidate's.
        prior: showings at the rate of all that each item is given beside its own: 0 would leave an item that
            was always clicked with a logit without end.

    Raises:
        InputError: ``by`` is neither, or ``prior`` is not above 0.
    """

    logits: Tensor  # (V + 1,) float32; a checkpoint carries them

    def __init__(self, catalog: ClickCatalog, *, by: str, prior: float) -> None:
        super().__init__()
        if not prior > 0:
            raise InputError(f"model.net.prior={prior}: must be above 0")
        self.by, self.prior = one_of("model.net.by", by, ("none", "item")), prior
        self.register_buffer("logits", torch.zeros(catalog.n_items + 1))

    def fit(self, catalog: ClickCatalog) -> None:
        """Counts the showings of the training part."""
        clicked, shown = catalog.clicked.double(), catalog.shown.double()
        rate = (clicked.sum() + 0.5) / (shown.sum() + 1)  # finite where all labels are the same
        if self.by == "none":
            self.logits.fill_(float(torch.logit(rate)))
        else:
            self.logits.copy_(torch.logit((clicked + self.prior * rate) / (shown + self.prior)))

    def forward(self, batch: ClickBatch) -> tuple[Float[Tensor, " B"], Float[Tensor, ""]]:
        """The logit of each candidate, and no term of a loss."""
        return self.logits[batch.candidates], self.logits.new_zeros(())

"""What is known of an event beside its item, as a vector for attention.

Shapes: B rows, T positions, D width.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hydrec.errors import at_least, one_of
from hydrec.layers import intensity
from hydrec.layers.graph import filled


class Intensity(nn.Module):
    """A learnt vector for each bin of an event's intensity, and one for events that have none.

    An event is compared with those up to it and no later one, so that all positions of a history can be
    trained at once, and an event looks the same in all longer histories.

    Args:
        dim: width D.
        bins: their number; all are of equal width, from 0 to 1.
        norm: how intensities become numbers from 0 to 1: ``log1p_minmax`` or ``minmax``.

    Raises:
        InputError: ``norm`` is neither, or there is no bin.
    """

    def __init__(self, dim: int, *, bins: int, norm: str) -> None:
        super().__init__()
        self.bins = at_least("model.net.intensity_bins", bins, 1)
        self.norm = intensity.MODES[one_of("model.net.intensity_norm", norm, ("log1p_minmax", "minmax"))]
        self.table = nn.Embedding(bins + 1, dim)  # the last is of no intensity

    def forward(self, values: Float[Tensor, "B T"], lengths: Int[Tensor, " B"]) -> Float[Tensor, "B T D"]:
        """Vectors of the events with these intensities; NaN is none."""
        seen = intensity.causal(filled(lengths, values.shape[1]))
        share = self.norm(values[:, None], seen).diagonal(dim1=1, dim2=2)  # (B, T)
        number = (share * self.bins).long().clamp(max=self.bins - 1)
        return self.table(torch.where(values.isnan(), self.bins, number))

"""What a causal net says at the positions that are scored.

Shapes: B rows, T positions, P scored positions: 1, or T.
"""

import torch
from jaxtyping import Shaped
from torch import Tensor

from hydrec.batch import SequenceBatch


def at_targets(x: Shaped[Tensor, "B T *D"], batch: SequenceBatch) -> Shaped[Tensor, "B P *D"]:
    """The entries of ``x`` (B, T, ...) that targets follow: all, or where P is 1 those of the last events."""
    if batch.targets.shape[1] > 1:
        return x
    return x[torch.arange(len(x), device=x.device), batch.lengths - 1][:, None]

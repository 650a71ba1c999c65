"""Means over test cases, with intervals over users: a user's cases are drawn together.

Shapes: N cases, S columns, U users, D draws.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hydrec.sampling import below, hash64

DRAWS = 1000  # of as many users, with replacement
BLOCK = 2**22  # users drawn at once: bounds memory, never changes a figure


class Means(NamedTuple):
    """The mean of each column, (S,) each.

    Attributes:
        mean: float64, NaN where there is no case.
        low, high: float64, bounds of 95 % of the means of draws; NaN with fewer than two users, or where all
            values are the same: how sure the mean is, draws of them cannot tell.
        cases, users: int64, how many the mean is of.
    """

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    cases: np.ndarray
    users: np.ndarray


def means(values: Float[Tensor, "N S"], users: Int[Tensor, " N"]) -> Means:
    """Means of the values that are not NaN, with bootstrap intervals; a function of its arguments alone.

    Args:
        values: of the cases, at least one.
        users: whose case each is.
    """
    _, user = users.unique(return_inverse=True)
    counted = ~values.isnan()
    sums, counts = (
        torch.zeros(int(user.max()) + 1, values.shape[1], dtype=torch.float64).index_add_(0, user, x.double())
        for x in (values.where(counted, 0), counted)
    )  # (U, S)
    highest, lowest = (values.where(counted, -torch.inf).amax(0), values.where(counted, torch.inf).amin(0))
    several = ((counts > 0).sum(0) > 1) & (highest > lowest)
    drawn = torch.cat([(copies @ sums) / (copies @ counts) for copies in _draws(len(sums))])
    # a draw may have no case of a column; where that goes for all draws, there would be no quantile
    bounds = np.nanquantile(drawn.where(several, 0), (0.025, 0.975), axis=0)
    low, high = np.where(several, bounds, np.nan)
    return Means(
        mean=(sums.sum(0) / counts.sum(0)).numpy(),
        low=low,
        high=high,
        cases=counts.sum(0).long().numpy(),
        users=(counts > 0).sum(0).numpy(),
    )


def _draws(n: int) -> Iterator[Float[Tensor, "D U"]]:
    """How often each of n users is drawn, some draws at a time."""
    step = max(BLOCK // n, 1)
    for start in range(0, DRAWS, step):
        draw = torch.arange(start, min(start + step, DRAWS))[:, None]
        picked = below(hash64(0, "users of a mean", draw, torch.arange(n)), n)
        copies = torch.bincount((picked + n * (draw - start)).flatten(), minlength=n * len(draw))
        yield copies.view(-1, n).double()

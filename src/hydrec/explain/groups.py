"""Divisions of test cases, by how long the history is and how long ago its last event.

Shapes: N test cases.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from hydrec.data.page import TICKS

QUANTILES = (0.2, 0.4, 0.6, 0.8)  # between groups of sizes


class Groups(NamedTuple):
    """A division of the cases.

    Attributes:
        number: (N,) int64, 0 and up in the order of ``labels``; -1 for cases of none.
        labels: what each group is called.
    """

    number: Int[Tensor, " N"]
    labels: list[str]


def by_size(sizes: Int[Tensor, " N"]) -> Groups:
    """Cases in up to five groups of about as many cases, by a size such as the length of the history.

    >>> by_size(torch.tensor([1, 2, 2, 3, 4, 4, 9, 30, 30, 30])).labels
    ['1 to 2', '3', '4', '9 to 30']
    """
    numbers = sizes.numpy()
    edges = np.unique(np.quantile(numbers, QUANTILES, method="inverted_cdf"))
    _, number = np.unique(np.searchsorted(edges, numbers), return_inverse=True)
    ends = [
        (numbers[number == group].min(), numbers[number == group].max()) for group in range(number.max() + 1)
    ]
    labels = [f"{low}" if low == high else f"{low} to {high}" for low, high in ends]
    return Groups(torch.from_numpy(number), labels)


def by_recency(gap: Int[Tensor, " N"]) -> Groups:
    """Cases by the time since the last behaviour, in everyday units; those where it is below 0 are left out.

    >>> by_recency(torch.tensor([0, 61, 7200, -1]))
    Groups(number=tensor([ 0,  1,  2, -1]), labels=['0 s', '1 min to 1 h', '1 h to 1 d'])
    """
    units = [*TICKS]
    spans = [f"{low} to {high}" for low, high in pairwise(units)]
    labels = np.array(["0 s", *spans, f"from {units[-1]}"])
    known = gap >= 0
    span = torch.bucketize(gap[known], torch.tensor([*TICKS.values()]), right=True)
    present, place = span.unique(return_inverse=True)
    return Groups(torch.full_like(gap, -1).masked_scatter(known, place), labels[present].tolist())

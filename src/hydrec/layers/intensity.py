"""How strongly a user met an item (rating, hours), made comparable between histories.

"Architectural Limitations in Intensity-Aware Sequential Recommendation: A Negative Result and Mechanism
Analysis" (Shyrallyiev and Pyshnograiev, 2026): each history by itself, over the positions that are fed.

A mode takes the intensities and which of them count, along the last axis: ``(B, T)`` and the positions that
are no padding, or ``(B, 1, T)`` and `causal`. The first lets an early position know of a later maximum, so a
net that learns from every position needs the second. At the last position both agree.

Differs from the paper in that a missing or negative intensity is 0, and in the cases on which it is silent:
what does not count becomes 0, and a history without differences is all 0 (``log1p_minmax`` only if all its
intensities are 0) or, by ``minmax``, all 1. Nothing is ever NaN or infinite. ``rank`` is not the paper's.

Shapes: B rows, T positions.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

FLOOR = 0.1  # what `minmax` makes of the smallest: no event weighs nothing
TINY = 1e-12  # divides what is 0 anyway


def causal(valid: Bool[Tensor, "B T"]) -> Bool[Tensor, "B T T"]:
    """Which positions (last axis) count for each (second axis): itself and those before it."""
    return valid[:, None, :].expand(-1, valid.shape[1], -1).tril()


def log1p_minmax(values: Float[Tensor, "*#R T"], seen: Bool[Tensor, "*#R T"]) -> Float[Tensor, "*#R T"]:
    """``log(1 + w) / max log(1 + w)``, in [0, 1]; no minimum is subtracted, in spite of the name.

    >>> log1p_minmax(torch.tensor([[0.0, 1.0, 3.0, 9.0]]), torch.tensor([[True, True, True, False]]))
    tensor([[0.0000, 0.5000, 1.0000, 0.0000]])
    """
    logs = _known(values).log1p()
    return _where(seen, logs / _highest(logs, seen).clamp(min=TINY))


def minmax(values: Float[Tensor, "*#R T"], seen: Bool[Tensor, "*#R T"]) -> Float[Tensor, "*#R T"]:
    """``f + (1 - f) (w - min) / (max - min)`` with f = 0.1, in [0.1, 1].

    >>> minmax(torch.tensor([[1.0, 2.0, 3.0]]), torch.ones(1, 3, dtype=torch.bool))
    tensor([[0.1000, 0.5500, 1.0000]])
    """
    return _where(seen, 1 - (1 - FLOOR) * _below(values, seen))


def zscore(values: Float[Tensor, "*#R T"], seen: Bool[Tensor, "*#R T"]) -> Float[Tensor, "*#R T"]:
    """``(w - mean) / std``, with the standard deviation of the whole; at most sqrt(T - 1) from 0.

    >>> zscore(torch.tensor([[1.0, 3.0], [0.1, 0.1]]), torch.ones(2, 2, dtype=torch.bool))
    tensor([[-1.,  1.],
            [ 0.,  0.]])
    """
    below = _below(values, seen)  # neither scale nor origin matters
    n = seen.sum(-1, keepdim=True).clamp(min=1)
    above_mean = _where(seen, below).sum(-1, keepdim=True) / n - below
    variance = _where(seen, above_mean.square()).sum(-1, keepdim=True) / n
    return _where(seen, above_mean / variance.sqrt().clamp(min=TINY))


def none(values: Float[Tensor, "*#R T"], seen: Bool[Tensor, "*#R T"]) -> Float[Tensor, "*#R T"]:
    """The intensities as they are."""
    return _where(seen, _known(values))


def rank(values: Float[Tensor, "*#R T"], seen: Bool[Tensor, "*#R T"]) -> Float[Tensor, "*#R T"]:
    """Rank from the lowest, equal ones at their mean, over the number: in (0, 1] whatever the tail.

    >>> rank(torch.tensor([[1.0, 7.0, 7.0, 900.0]]), torch.ones(1, 4, dtype=torch.bool))
    tensor([[0.2500, 0.6250, 0.6250, 1.0000]])
    """
    w, n = _known(values), seen.sum(-1, keepdim=True).clamp(min=1)
    other, own = w[..., :, None], w[..., None, :]
    below = ((other < own).double() + (other <= own).double()) / 2  # (*R, T, T); half precision cannot count
    return _where(seen, ((torch.einsum("...j,...jk->...k", seen.double(), below) + 0.5) / n).to(w.dtype))


MODES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "log1p_minmax": log1p_minmax,
    "minmax": minmax,
    "zscore": zscore,
    "none": none,
    "rank": rank,
}


def _known(values: Tensor) -> Tensor:
    return values.nan_to_num(nan=0.0).clamp(min=0)


def _below(values: Tensor, seen: Tensor) -> Tensor:
    """How far each intensity is below the highest, as a share of the range; 0 where there is no range."""
    w = _known(values)
    high, low = _highest(w, seen), -_highest(-w, seen)
    return (high - w) / (high - low).clamp(min=TINY)


def _highest(x: Tensor, seen: Tensor) -> Tensor:
    return torch.where(seen, x, -torch.inf).amax(-1, keepdim=True)


def _where(seen: Tensor, x: Tensor) -> Tensor:
    return torch.where(seen, x, 0)

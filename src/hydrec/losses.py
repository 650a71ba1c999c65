"""Training losses: the scores of M rows for C candidates and the column of the positive, to a scalar.

Every loss is a mean over rows, each row by itself, so that it can be computed some rows at a time.

Letters: M rows, C candidates, k negatives of a row, V items; s_i score of the positive, s_j of a negative.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hydrec.batch import Catalog
from hydrec.errors import InputError, one_of


class BPR(nn.Module):
    """Bayesian personalised ranking: each negative is to score below the positive.

    The mean over all (row, negative) pairs of ``-ln sigmoid(s_i - s_j)``: Rendle et al., "BPR: Bayesian
    personalized ranking from implicit feedback", UAI 2009, where the pairs are drawn one at a time.

    Args:
        compare: ``score``, or ``probability``, the sigmoid of the score: HGNN's eq. 11 read with eq. 10. The
            latter cannot fall below ln(1 + 1/e) = 0.313; at scores of 0 its gradient is a quarter as large.

    Raises:
        InputError: ``compare`` is neither.

    >>> BPR(compare="score")(torch.tensor([[0.0, 0.0, 100.0]]), torch.tensor([0]))  # (ln 2 + 100) / 2
    tensor(50.3466)
    """

    def __init__(self, *, compare: str) -> None:
        super().__init__()
        one_of("loss.objective.compare", compare, ("score", "probability"))
        self.link = nn.Sigmoid() if compare == "probability" else nn.Identity()

    def forward(self, scores: Float[Tensor, "M C"], target: Int[Tensor, " M"]) -> Float[Tensor, ""]:
        """Mean over the pairs.

        Args:
            scores: unbounded scores, higher is better.
            target: column of each row's positive; all others are negatives.

        Raises:
            InputError: the positive is the only candidate.
        """
        pairs = scores.shape[0] * _negatives(scores)
        values = self.link(scores)
        positive = target[:, None]
        losses = F.softplus(values - values.gather(1, positive))
        return losses.scatter(1, positive, 0.0).sum() / pairs


class BPRMax(nn.Module):
    """BPR where negatives count by their softmax weights: many easy ones do not drown the few hard ones.

    The mean over rows of ``-ln sum_j w_j sigmoid(s_i - s_j) + reg sum_j w_j s_j^2``, ``w`` the softmax of the
    negatives' scores: Hidasi and Karatzoglou, "Recurrent Neural Networks with Top-k Gains for Session-based
    Recommendations", CIKM 2018.

    Args:
        reg: weight of the second term, which keeps the scores of negatives near 0.

    Raises:
        InputError: ``reg`` is negative.

    >>> BPRMax(reg=1.0)(torch.tensor([[2.0, 2.0, 2.0]]), torch.tensor([0]))  # ln 2 + 2^2
    tensor(4.6931)
    """

    def __init__(self, *, reg: float) -> None:
        super().__init__()
        if not reg >= 0:
            raise InputError(f"loss.objective.reg={reg}: must be 0 or more")
        self.reg = reg

    def forward(self, scores: Float[Tensor, "M C"], target: Int[Tensor, " M"]) -> Float[Tensor, ""]:
        """Mean over the rows; arguments and error as of `BPR.forward`."""
        _negatives(scores)
        positive = target[:, None]
        weights = scores.scatter(1, positive, -torch.inf).log_softmax(1)
        gaps = F.logsigmoid(scores.gather(1, positive) - scores)
        norms = (weights.exp() * scores.square()).sum(1)
        return (self.reg * norms - torch.logsumexp(weights + gaps, 1)).mean()


class BCE(nn.Module):
    """Binary cross-entropy: whether a candidate is the positive, each by itself.

    The mean over rows and their 1 + k candidates of ``-ln sigmoid(s_i)`` and ``-ln(1 - sigmoid(s_j))``. Of
    one negative a row it is half of what SASRec's authors add up (Kang and McAuley, "Self-Attentive
    Sequential Recommendation", ICDM 2018, section III-E).

    >>> BCE()(torch.tensor([[0.0, 0.0]]), torch.tensor([0]))  # ln 2
    tensor(0.6931)
    """

    def __init__(self) -> None:
        super().__init__()

    def forward(self, scores: Float[Tensor, "M C"], target: Int[Tensor, " M"]) -> Float[Tensor, ""]:
        """Mean over rows and candidates; arguments and error as of `BPR.forward`."""
        return _binary(scores, target, beta=1.0)


class GBCE(nn.Module):
    """Binary cross-entropy without the overconfidence that comes of training on few negatives.

    The positive's probability is taken to the power ``beta = a (t (1 - 1/a) + 1/a)``, ``a = k / (V - 1)`` the
    share of the negatives that is drawn: Petrov and Macdonald, "gSASRec: Reducing Overconfidence in
    Sequential Recommendation Trained with Negative Sampling", RecSys 2023. So its logarithm counts ``beta``
    times; the authors' code transforms the logit, in float64, to the same effect.

    Args:
        catalog: ``n_items`` is read.
        t: calibration, from 0, which is plain `BCE`, to 1, where probabilities are those of all negatives.

    Raises:
        InputError: ``t`` is not a number from 0 to 1.
    """

    def __init__(self, catalog: Catalog, *, t: float) -> None:
        super().__init__()
        if not 0 <= t <= 1:
            raise InputError(f"loss.objective.t={t}: must be from 0 (plain BCE) to 1 (calibrated)")
        self.t, self.others = t, catalog.n_items - 1

    def forward(self, scores: Float[Tensor, "M C"], target: Int[Tensor, " M"]) -> Float[Tensor, ""]:
        """Mean over rows and candidates; arguments and error as of `BPR.forward`."""
        share = min(1.0, _negatives(scores) / self.others)  # drawn with replacement, k may exceed V - 1
        return _binary(scores, target, beta=1 - self.t * (1 - share))


class Softmax(nn.Module):
    """Cross-entropy of the softmax over the candidates: the whole catalogue, or what was drawn.

    >>> Softmax()(torch.tensor([[0.0, 0.0]]), torch.tensor([0]))  # ln 2
    tensor(0.6931)
    """

    def __init__(self) -> None:
        super().__init__()

    def forward(self, scores: Float[Tensor, "M C"], target: Int[Tensor, " M"]) -> Float[Tensor, ""]:
        """Mean over the rows; arguments and error as of `BPR.forward`."""
        _negatives(scores)
        return F.cross_entropy(scores, target)

    def of_products(
        self,
        vectors: Float[Tensor, "M D"],
        table: Float[Tensor, "C D"],
        bias: Float[Tensor, " C"] | None,
        target: Int[Tensor, " M"],
        *,
        limit: int,
    ) -> Float[Tensor, ""]:
        """The same of the scores ``vectors @ table.T + bias``, which are never there all at once.

        The gradients are computed together with the loss, block by block: three matrix products where every
        row of scores fits into ``limit`` some dozens of times, four otherwise.

        Args:
            vectors: of the rows.
            table: of the candidates, shared by all rows.
            bias: of the candidates.
            target: column of each row's positive.
            limit: scores held at once, about.
        """
        _negatives(table[None, :, 0])
        return _ProductSoftmax.apply(vectors, table, bias, target, limit)


class _ProductSoftmax(torch.autograd.Function):
    """Loss and gradients of `Softmax.of_products`, in one sweep over blocks of scores."""

    ROWS = 64  # of a block of whole rows, at least: smaller matrix products are slow

    @staticmethod
    def forward(
        ctx: Any, vectors: Tensor, table: Tensor, bias: Tensor | None, target: Tensor, limit: int
    ) -> Tensor:
        rows, items = len(vectors), len(table)
        block = max(limit // items, 1)
        whole = block >= min(_ProductSoftmax.ROWS, rows)
        by_vectors, by_table = torch.empty_like(vectors), torch.zeros_like(table)
        by_bias = None if bias is None else torch.zeros_like(bias)
        total = vectors.new_zeros(
            (), dtype=torch.float64 if vectors.dtype == torch.float64 else torch.float32
        )
        step = block if whole else 4 * _ProductSoftmax.ROWS
        for first in range(0, rows, step):
            part = slice(first, first + step)
            x, column = vectors[part], target[part, None]
            width = items if whole else max(limit // len(x), 1)
            blocks = [slice(start, start + width) for start in range(0, items, width)]
            normaliser = None
            if not whole:  # a first sweep, for the sum over all items
                sums = [_scores(x, table, bias, b, total.dtype).logsumexp(1, keepdim=True) for b in blocks]
                normaliser = torch.cat(sums, 1).logsumexp(1, keepdim=True)
                total += normaliser.sum()
            by_x = torch.zeros_like(x)
            for b in blocks:
                scores = _scores(x, table, bias, b, total.dtype)
                here = (column >= b.start) & (column < b.stop)
                total -= scores.gather(1, (column - b.start).where(here, 0)).where(here, 0).sum()
                if normaliser is None:
                    top = scores.amax(1, keepdim=True)
                    shares = torch.softmax(scores, 1, out=scores)
                    total += (top - shares.amax(1, keepdim=True).log()).sum()
                else:
                    shares = scores.sub_(normaliser).exp_()
                shares.scatter_add_(1, (column - b.start).where(here, 0), -here.to(shares.dtype))
                shares = shares.to(x.dtype)
                by_x += shares @ table[b]
                by_table[b] += shares.T @ x
                if by_bias is not None:
                    by_bias[b] += shares.sum(0)
            by_vectors[part] = by_x
        ctx.save_for_backward(by_vectors.div_(rows), by_table.div_(rows))
        ctx.by_bias = None if by_bias is None else by_bias.div_(rows)
        return total / rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        by_vectors, by_table = ctx.saved_tensors
        outer = gradients[0]
        by_bias = None if ctx.by_bias is None else outer * ctx.by_bias
        return outer * by_vectors, outer * by_table, by_bias, None, None


def _scores(x: Tensor, table: Tensor, bias: Tensor | None, block: slice, dtype: torch.dtype) -> Tensor:
    scores = (x @ table[block].T).to(dtype)
    return scores if bias is None else scores.add_(bias[block])


def _negatives(scores: Tensor) -> int:
    """Number k of each row's."""
    if scores.shape[1] < 2:
        raise InputError("loss.candidates gives a positive and no negative; raise loss.candidates.count")
    return scores.shape[1] - 1


def _binary(scores: Tensor, target: Tensor, *, beta: float) -> Tensor:
    _negatives(scores)
    positive = target[:, None]
    own = beta * F.softplus(-scores.gather(1, positive))
    return F.softplus(scores).scatter(1, positive, own).mean()

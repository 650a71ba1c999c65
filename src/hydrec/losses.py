"""Training losses: the scores of M rows for C candidates and the column of the positive, to a scalar."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hydrec.errors import InputError, one_of


class BPR(nn.Module):
    """Bayesian personalised ranking: each negative is to score below the positive.

    The mean over all (row, negative) pairs of ``-ln sigmoid(positive - negative)``: Rendle et al., "BPR:
    Bayesian personalized ranking from implicit feedback", UAI 2009, where the pairs are drawn one at a time.

    Args:
        compare: ``score``, or ``probability``, the sigmoid of the score: HGNN's eq. 11 read with eq. 10. The
            latter cannot fall below ln(1 + 1/e) = 0.313; at scores of 0 its gradient is a quarter as large.

    Raises:
        InputError: ``compare`` is neither.

    >>> import torch
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
        pairs = scores.shape[0] * (scores.shape[1] - 1)
        if scores.shape[1] < 2:
            raise InputError("loss.candidates gives a positive and no negative; raise loss.candidates.count")
        values = self.link(scores)
        positive = target[:, None]
        losses = F.softplus(values - values.gather(1, positive))
        return losses.scatter(1, positive, 0.0).sum() / pairs

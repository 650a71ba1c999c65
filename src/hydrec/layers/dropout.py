"""Dropout whose draws cost a quarter of PyTorch's on a CPU, where they were a fifth of SASRec's step."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 2**16  # shares are rounded to so many


class Dropout(nn.Dropout):
    """Like ``nn.Dropout``; on a CPU the share is rounded to 1/65,536, and what is kept grows by as much.

    "Dropout: A Simple Way to Prevent Neural Networks from Overfitting" (Srivastava et al., JMLR 2014).
    """

    def forward(self, x: Tensor) -> Tensor:
        """``x`` of any shape, some of it 0 in training."""
        if not self.training or self.p in (0, 1) or x.device.type != "cpu":
            return F.dropout(x, self.p, self.training)
        dropped = min(round(self.p * LEVELS), LEVELS - 1)
        words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        draws = words.view(torch.int16)[: x.numel()].view(x.shape)  # four of a word
        kept = torch.ge(draws, dropped - LEVELS // 2, out=torch.empty_like(x, requires_grad=False))
        return x * kept.mul_(LEVELS / (LEVELS - dropped))

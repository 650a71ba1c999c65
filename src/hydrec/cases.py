"""Judged rows of the log, each once, over all processes: what metrics are reduced from.

Shapes: N rows of all processes together, W columns.
"""

import functools
import math
from typing import Any

import torch
from jaxtyping import Float64, Shaped
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat
from torchmetrics.utilities.distributed import gather_all_tensors

from hydrec.errors import InputError


class Cases(Metric):
    """A metric whose state is a table of integers, one line for each judged row of the log.

    The tables of all processes are gathered and sorted by row before anything is computed: neither the order
    of batches nor the number of processes changes a bit. A metric adds (n, W) int64 tensors to ``cases``.

    Args:
        columns: names of the W columns, of which the first is ``row``.
    """

    full_state_update = False
    cases: list[Tensor] | Tensor

    def __init__(self, columns: tuple[str, ...]) -> None:
        super().__init__(dist_sync_fn=functools.partial(_gather, width=len(columns)))
        self.columns = columns
        self.add_state("cases", default=[], dist_reduce_fx="cat")  # one state: one gather

    def table(self) -> dict[str, Shaped[Tensor, " N"]]:
        """The columns of all processes, sorted by row, on the CPU.

        Every process must call it.

        Raises:
            InputError: a row was added twice.
        """
        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            return self._table()

    def _table(self) -> dict[str, Tensor]:
        empty = torch.empty(0, len(self.columns), dtype=torch.int64)
        cases = dim_zero_cat(self.cases).cpu() if len(self.cases) else empty
        cases = cases[cases[:, 0].argsort()]
        twice = cases[1:, 0][cases[1:, 0] == cases[:-1, 0]]
        if len(twice):
            raise InputError(
                f"row {int(twice[0])} was evaluated twice, as by a sampler that fills batches; "
                "set trainer.use_distributed_sampler=false"
            )
        return dict(zip(self.columns, cases.unbind(1), strict=True))


def exact_mean(values: Shaped[Tensor, " N"]) -> Float64[Tensor, ""]:
    """Mean of a correctly rounded sum, on the CPU.

    torch.sum adds in an order that depends on threads, whose number goes with that of processes.
    """
    return torch.tensor(math.fsum(values.tolist()) / len(values), dtype=torch.float64)


def _gather(cases: Tensor, group: Any = None, *, width: int) -> list[Tensor]:
    # For a process without rows torchmetrics makes up an empty tensor, in float32 and of one dimension.
    return gather_all_tensors(cases.long().reshape(-1, width), group)

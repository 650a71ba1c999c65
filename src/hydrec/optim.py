"""Optimisers whose step costs what a batch touches, whatever the size of the embedding tables.

A table is an ``nn.Embedding`` or ``nn.EmbeddingBag`` with ``sparse=True``: its gradient has the rows of the
batch and no others, unless the net also reads it whole. Parameters with dense gradients are left to AdamW.

Differs from AdamW, for tables, in that a row without a gradient stays as it is: its moments do not fade and
momentum does not move it. Weight decay is that of AdamW all the same: a row that has none yet owes it, and
pays before it is read, moved or saved.

Shapes: n distinct rows of a batch, V rows of a table, D width.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hydrec.errors import InputError


class Lazy(torch.optim.AdamW, ABC):
    """AdamW for dense gradients; for sparse ones, a rule of the subclass for the rows that have one.

    Several processes need gloo, as NCCL adds no sparse gradients, and tables that are sparse before
    DistributedDataParallel sees them. Gradients cannot be clipped.

    Args:
        params: parameters, or groups of them with values of their own.
        lr: learning rate.
        betas: decay rates of both moments of Adam.
        eps: added to denominators.
        weight_decay: decoupled: a step multiplies each weight by 1 - learning rate * this.
    """

    rate = "lr"  # what groups call the learning rate of rows

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        betas: Sequence[float],
        eps: float,
        weight_decay: float,
    ) -> None:
        super().__init__(params, lr=lr, betas=(betas[0], betas[1]), eps=eps, weight_decay=weight_decay)
        self.watched: set[Tensor] = set()

    def watch(self, net: nn.Module) -> None:
        """Makes rows of a net's tables pay their decay before they are looked up.

        Called once, before training, and only needed for weight decay. What reads a whole table calls
        ``settle`` first.
        """

        def pay(table: Any, args: tuple[Tensor, ...]) -> None:
            if "owed" in self.state.get(table.weight, ()):
                self._pay(table.weight, args[0].unique())

        for module in net.modules():
            if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse:
                self.watched.add(module.weight)
                module.register_forward_pre_hook(pay)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Moves what has a gradient.

        Raises:
            InputError: gradients were to be clipped, or a table with weight decay is not watched.
        """
        loss = None if closure is None else _evaluate(closure)
        sparse = [
            (group, table, table.grad)
            for group in self.param_groups
            for table in group["params"]
            if table.grad is not None and table.grad.is_sparse
        ]
        for _, table, _ in sparse:
            table.grad = None  # AdamW passes it over
        super().step()
        for group, table, grad in sparse:
            table.grad = grad
            summed = grad.coalesce()
            self._step(group, table, summed.indices()[0], summed.values())
        return loss

    @torch.no_grad()
    def settle(self) -> None:
        """Makes all rows pay the decay they owe, at a cost that grows with the tables.

        Where several processes train, each must call it.
        """
        for table, state in self.state.items():
            if "owed" in state:
                table.mul_((state.pop("paid") - state.pop("owed")).exp_().to(table.dtype)[:, None])

    def state_dict(self) -> dict[str, Any]:
        """Moments and groups for a checkpoint; settles, so that the weights saved with them are exact."""
        self.settle()  # and load_state_dict would round what is owed to the precision of the weights
        return super().state_dict()

    def _step(self, group: dict[str, Any], table: Tensor, rows: Tensor, grad: Tensor) -> None:
        state, keep = self.state[table], 1 - group[self.rate] * group["weight_decay"]
        if keep < 1:
            if table not in self.watched:
                raise InputError("model.optimiser.weight_decay: the tables are not watched; set it to 0")
            self._pay(table, rows)
            if "owed" not in state:
                state["owed"], state["paid"] = 0.0, table.new_zeros(len(table), dtype=torch.float64)
            state["owed"] -= math.log(keep)  # a sum of logarithms: the learning rate may change
            state["paid"][rows] = state["owed"]
        state.setdefault("step", torch.tensor(0.0))  # on the CPU, as that of AdamW
        state["step"] += 1
        row = table.index_select(0, rows).mul_(keep)
        self._move(group, table, rows, row, grad)
        table.index_copy_(0, rows, row)

    @torch.no_grad()
    def _pay(self, table: Tensor, rows: Tensor) -> None:
        state = self.state[table]
        if "owed" in state:
            kept = (state["paid"][rows] - state["owed"]).exp_().to(table.dtype)
            table.index_copy_(0, rows, table.index_select(0, rows).mul_(kept[:, None]))
            state["paid"][rows] = state["owed"]

    @abstractmethod
    def _move(
        self,
        group: dict[str, Any],
        table: Float[Tensor, "V D"],
        rows: Int[Tensor, " n"],
        row: Float[Tensor, "n D"],
        grad: Float[Tensor, "n D"],
    ) -> None:
        """Changes the copies ``row`` of the rows that have gradients, and the state of these rows."""


class LazyAdam(Lazy):
    """AdamW whose moments of a table are those of the steps in which a row had a gradient.

    The bias of the moments is corrected by the number of all steps, as in ``torch.optim.SparseAdam``. The
    moments take twice the memory of a table.
    """

    def _move(self, group: dict[str, Any], table: Tensor, rows: Tensor, row: Tensor, grad: Tensor) -> None:
        state, (beta1, beta2) = self.state[table], group["betas"]
        if "moments" not in state:  # (V, 2, D): both of a row side by side in memory
            state["moments"] = table.new_zeros(len(table), 2, *table.shape[1:])
        step = state["step"].item()
        moments = state["moments"].index_select(0, rows)
        mean, square = moments.unbind(1)
        mean.lerp_(grad, 1 - beta1)
        square.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        state["moments"].index_copy_(0, rows, moments)
        spread = square.sqrt().div_((1 - beta2**step) ** 0.5).add_(group["eps"])
        row.addcdiv_(mean, spread, value=-group["lr"] / (1 - beta1**step))


class RowAdagrad(Lazy):
    """Adagrad with one number for each row of a table: the sum of its mean squared gradients.

    Duchi et al., "Adaptive subgradient methods for online learning and stochastic optimization", JMLR 2011,
    by row as in Mudigere et al., "Software-hardware co-design for fast and scalable training of deep learning
    recommendation models", ISCA 2022. Beside the table the memory is 1/D of it.

    Args:
        params: as for AdamW, which the dense gradients get.
        table_lr: learning rate of tables; the first step of a row has this root mean square.
        rest: ``lr``, ``betas``, ``eps`` and ``weight_decay`` of ``Lazy``.

    Raises:
        InputError: ``table_lr`` is not above 0.
    """

    rate = "table_lr"

    def __init__(self, params: Iterable[Any], *, table_lr: float, **rest: Any) -> None:
        super().__init__(params, **rest)
        if not table_lr > 0:
            raise InputError(f"model.optimiser.table_lr={table_lr}: must be above 0")
        self.defaults["table_lr"] = table_lr
        for group in self.param_groups:
            group.setdefault("table_lr", table_lr)

    def _move(self, group: dict[str, Any], table: Tensor, rows: Tensor, row: Tensor, grad: Tensor) -> None:
        state = self.state[table]
        if "sum" not in state:
            state["sum"] = table.new_zeros(len(table))
        total = state["sum"][rows] + grad.square().mean(1)
        state["sum"][rows] = total
        row.addcdiv_(grad, total.sqrt_().add_(group["eps"])[:, None], value=-group["table_lr"])


def _evaluate(closure: Callable[[], Any]) -> Any:
    try:
        with torch.enable_grad():
            return closure()
    except NotImplementedError as error:  # Lightning clips at the end of the closure
        if "Sparse" in str(error):
            raise InputError(
                "sparse gradients cannot be clipped: set trainer.gradient_clip_val=null, or choose "
                "model.optimiser._target_=torch.optim.Adam"
            ) from error
        raise

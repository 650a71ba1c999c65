"""The words that data and models share: batches, evaluation candidates, what a model may know of the data.

Shapes: B rows, T history positions, P scored positions, C candidates, E excluded items, R training rows,
V items.
"""

from typing import NamedTuple

from jaxtyping import Int
from torch import Tensor

PAD = 0


class SequenceBatch(NamedTuple):
    """Histories and what followed them: facts of the log, right-padded with ``PAD`` and 0.

    Attributes:
        items: (B, T) int64, ids 1..V, oldest first.
        times: (B, T) int64 seconds from the row's first event.
        values: (B, T) float32 intensity (rating, hours), NaN where the log has none, 0 on padding.
        lengths: (B,) int64, real positions of each row, at least 1.
        targets: (B, P) int64, the item that followed; ``PAD`` where nothing is supervised. P is 1 or T.
        target_times: (B, P) int64 seconds from the row's first event.
        users: (B,) int64, 1..U; 0 is a user the log does not know.
        rows: (B,) int64, the target's row in the log: names the sample whatever the batch it came in.
    """

    items: Tensor
    times: Tensor
    values: Tensor
    lengths: Tensor
    targets: Tensor
    target_times: Tensor
    users: Tensor
    rows: Tensor


class EvalCandidates(NamedTuple):
    """What a target is ranked against; both ``None`` means the whole catalogue.

    Attributes:
        items: (B, C) int64, the only competitors of the target (the target itself is not among them);
            ``PAD`` fills a row with fewer.
        excluded: (B, E) int64, distinct items that do not compete (the target is never one); ``PAD`` fills.
    """

    items: Tensor | None
    excluded: Tensor | None


class Catalog(NamedTuple):
    """What a model may know of the data: its sizes and, beyond them, the training part only.

    Attributes:
        n_users: U; ids are 1..U.
        n_items: V; ids are 1..V.
        users: (R,) int64, user of each log row that a training sample touches, in log order.
        items: (R,) int64, item of each such row.
        times: (R,) int64 Unix seconds of each such row.
        targets: (V+1,) int64, how often each item is the target of a training sample; entry 0 is 0.
    """

    n_users: int
    n_items: int
    users: Int[Tensor, " R"]
    items: Int[Tensor, " R"]
    times: Int[Tensor, " R"]
    targets: Int[Tensor, " V1"]

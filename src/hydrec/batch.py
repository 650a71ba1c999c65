"""The words that data and models share: batches, evaluation candidates, what a model may know of the data.

Shapes: B rows, T history positions, P scored positions, C candidates, E excluded items, R training rows,
V items, W columns of codes.
"""

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

PAD = 0


class SequenceBatch(NamedTuple):
    """Histories and what followed them: facts of the log, right-padded with ``PAD`` and 0.

    P is 1 where a row has one target, which followed its last real position, or T where every position has
    its own: ``targets[b, t]`` followed ``items[b, t]``, or is what a mask in its place hides.

    Attributes:
        items: (B, T) int64, ids 1..V, oldest first.
        times: (B, T) int64 seconds from the row's first event.
        values: (B, T) float32 intensity (rating, hours), NaN where the log has none, 0 on padding.
        lengths: (B,) int64, real positions of each row, at least 1.
        targets: (B, P) int64, the item that followed; ``PAD`` where nothing is supervised.
        target_times: (B, P) int64 seconds from the row's first event, 0 where nothing is supervised.
        users: (B,) int64, 1..U; 0 is a user the log does not know.
        rows: (B,) int64, the last target's row in the log: names the sample whatever the batch it came in.
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


class ClickBatch(NamedTuple):
    """Candidates that were shown to users, whether they were clicked, and what is known of each showing.

    Attributes:
        items: (B, T) int64, behaviours: ids 1..V of the items met before, oldest first, ``PAD`` after them.
        times: (B, T) int64 seconds from the first behaviour, 0 on padding.
        values: (B, T) float32 intensity (rating, hours), NaN where the log has none, 0 on padding.
        lengths: (B,) int64, behaviours of each row; 0 where there are none.
        candidates: (B,) int64, the item shown.
        labels: (B,) int64, 1 if it was clicked, else 0.
        target_times: (B,) int64 seconds from the first behaviour to the showing, 0 without behaviours.
        users: (B,) int64, 1..U.
        codes: (B, W) int64, the fields of user and context side by side, as ``Catalog.fields`` tells; the
            same for all candidates of one showing.
        weights: (B, W) float32, of each code in its field: a field is the weighted sum of its embeddings.
        rows: (B,) int64, names the sample whatever the batch it came in.
    """

    items: Tensor
    times: Tensor
    values: Tensor
    lengths: Tensor
    candidates: Tensor
    labels: Tensor
    target_times: Tensor
    users: Tensor
    codes: Tensor
    weights: Tensor
    rows: Tensor


class Field(NamedTuple):
    """A feature that a click net embeds: ``width`` columns of codes, each with a weight.

    A category has one column of weight 1; one of several values has as many columns as the most values of a
    row, weighing 1 over their number, and ``PAD`` columns of weight 0. A number that is not put into buckets
    has the same code in all rows, weighed by the number, standardised. Code 0 is PAD and 1 is unknown: what
    training does not have.

    Attributes:
        name: as configurations call it.
        group: ``user``, ``context`` or ``item``.
        size: number of codes.
        width: number of columns.
    """

    name: str
    group: str
    size: int
    width: int


class Catalog(NamedTuple):
    """What a model may know of the data: its sizes and, beyond them, the training part only.

    Attributes:
        n_users: U; ids are 1..U.
        n_items: V; ids are 1..V.
        users: (R,) int64, user of each log row that a training sample touches, in log order.
        items: (R,) int64, item of each such row.
        times: (R,) int64 Unix seconds of each such row.
        values: (R,) float32 intensity of each such row, NaN where the log has none.
        targets: (V+1,) int64, how often each item is the target of a training sample; entry 0 is 0.
    """

    n_users: int
    n_items: int
    users: Int[Tensor, " R"]
    items: Int[Tensor, " R"]
    times: Int[Tensor, " R"]
    values: Float[Tensor, " R"]
    targets: Int[Tensor, " V1"]


class ClickCatalog(NamedTuple):
    """What a click model may know of the data: sizes, fields and, beyond them, the training part only.

    Attributes:
        n_users: U; ids are 1..U.
        n_items: V; ids are 1..V.
        clicked: (V+1,) int64, how often each item is the candidate of a training sample with label 1.
        shown: (V+1,) int64, how often it is with any label; entry 0 is 0.
        fields: of users and of the context, in the order of their columns in ``ClickBatch.codes``.
        item_fields: of items, in the order of their columns in ``item_codes``; the id is not among them.
        item_codes: (V+1, W) int64, codes of each item, of candidates as of behaviours; row 0 is ``PAD``.
        item_weights: (V+1, W) float32, of each code in its field; row 0 is 0.
    """

    n_users: int
    n_items: int
    clicked: Int[Tensor, " V1"]
    shown: Int[Tensor, " V1"]
    fields: tuple[Field, ...]
    item_fields: tuple[Field, ...]
    item_codes: Int[Tensor, "V1 W"]
    item_weights: Float[Tensor, "V1 W"]

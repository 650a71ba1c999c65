"""Where a sequential model looks in one user's history, by layer and head.

Weights are those that the model itself makes in an evaluation, read by hooks on the way: what attention
passes through its dropout, which does nothing then, or through `hydrec.layers.attention.Watched`. HGNN's
layers are asked for eq. 1 and 2 once more.

Of the models with a graph of items (FGNN), an item that occurs several times is looked at where it first
occurred. FGNN's last layers are its readout, which looks as a whole, once a round. All of RetaGNN's positions
add to the score, so that what is told of the last elsewhere is told of their mean; its attention to the
training graph is not over a history. HSTU's weights have no softmax: they may be below 0, and a norm follows.

Shapes: B rows (one), H heads, Q queries, T keys, D width, E width of a head.
"""

import math
from typing import Any, NamedTuple

import polars as pl
import torch
import torch.nn.functional as F
from jaxtyping import Float
from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn

from hydrec.batch import SequenceBatch
from hydrec.errors import InputError
from hydrec.explain import style
from hydrec.explain.case import asked, case_of, history
from hydrec.explain.run import FinishedRun
from hydrec.layers import graph
from hydrec.layers.attention import Watched
from hydrec.layers.scoring import masked_softmax

DRAWN = 50  # positions in the figures, the last
PRINTED = 10  # events that are looked at most
MANY = 8  # columns of weights: more find no room in a terminal
ABREAST = 4
# what is told of a layer, by its queries
LOOKS = {
    "positions": "the last position",
    "nodes": "the last position",
    "all": "a position, on average,",
    "whole": "the history as a whole",
}


class Layer(NamedTuple):
    """What one layer looks at.

    Attributes:
        name: of its module in the net.
        queries: what looks, as `hydrec.layers.attention.Watched` has it.
        weights: (H, Q, T) float, of keys (last axis) for each query.
    """

    name: str
    queries: str
    weights: Float[Tensor, "H Q T"]

    @property
    def told(self) -> Float[Tensor, "H T"]:
        """What `LOOKS` sees."""
        return self.weights.mean(1) if self.queries == "all" else self.weights[:, -1]


def explain(run: str, user: str, out: str, *, wandb: bool) -> None:
    """Writes ``attention.csv``, a figure of all weights and one of those of the last position; prints these.

    Args:
        run: folder of a finished run of a sequential model that attends.
        user: raw id; "" for the first user of the test part.
        out: where the files go; "" for ``explain/attention`` in the run's folder.
        wandb: whether figures and table go to the run's W&B run as well.

    Raises:
        InputError: the run is of clicks, or of a net without such attention, or the user has no test case; or
            as `FinishedRun` has it.
    """
    opened = FinishedRun(run)
    opened.need_ranking("attention")
    if wandb:
        opened.wandb_id()
    data, task = opened.load()
    batch, _ = case_of(data, user)
    shown = asked(task, batch)
    layers = collected(task.net, shown)
    if not layers:
        raise InputError(
            f"run={run} is of {opened.model}, whose layers have no such attention over the positions of a"
            " history: give a run of a model that does, such as sasrec, bert4rec, tisasrec or hgnn"
        )
    past = history(data, shown, opened.items()).with_columns(pl.col("title").fill_null("(to be found)"))
    labels = named(past, layers[0].weights.shape[2] // len(past))
    found = table(layers, labels)
    head = f"{opened.title}, user {data.log.user_ids[int(batch.users[0])]}"
    _print(layers, labels, head)
    pages = {"attention": last_page(layers, labels, head)}
    if any(layer.queries != "whole" for layer in layers):
        pages["positions"] = matrices(layers, labels, head)
    opened.leave("attention", out, {"attention": found}, pages, wandb=wandb)


@torch.no_grad()
def collected(net: Any, batch: SequenceBatch) -> list[Layer]:
    """The layers of a net that attend, in the order in which they do, without padding.

    Args:
        net: in evaluation.
        batch: one row, as the net is shown it.
    """
    found: list[Layer] = []

    def dropped(name: str) -> Any:
        def keep(module: nn.Module, given: tuple[Tensor]) -> None:
            if given[0].ndim == 4:
                found.append(Layer(name, "positions", given[0][0]))

        return keep

    def watched(name: str) -> Any:
        def keep(module: Watched, given: tuple[Tensor]) -> None:
            found.append(Layer(name, module.queries, given[0][0]))

        return keep

    def walked(name: str) -> Any:
        def keep(module: graph.Heads, given: tuple[Tensor, graph.Edges]) -> None:
            found.append(Layer(name, "positions", along_edges(module, *given)[:, 0]))

        return keep

    hooks = []
    for name, module in net.named_modules():
        if isinstance(module, nn.Dropout):
            hooks.append(module.register_forward_pre_hook(dropped(name.removesuffix(".dropout"))))
        if isinstance(module, Watched):
            hooks.append(module.register_forward_pre_hook(watched(name)))
        if isinstance(module, graph.Heads):
            hooks.append(module.register_forward_pre_hook(walked(name)))
    try:
        net.encode(batch)
    finally:
        for hook in hooks:
            hook.remove()
    n, positions = int(batch.lengths[0]), batch.items.shape[1]
    node = (batch.items[0, :n, None] == batch.items[0, :n]).int().argmax(1)  # (n,) where it first occurs
    layers = []
    for layer in found:
        real = n * (layer.weights.shape[2] // positions)  # two for an event that has a token of its own
        weights = layer.weights[:, :real, :real]
        layers.append(layer._replace(weights=weights[:, node] if layer.queries == "nodes" else weights))
    return layers


def along_edges(
    heads: graph.Heads, x: Float[Tensor, "B T D"], edges: graph.Edges
) -> Float[Tensor, "H B T T"]:
    """The shares of HGNN's attention, eq. 1 and 2, which its layer keeps to itself."""
    y = torch.einsum("btd,hde->hbte", x, heads.weight)
    logits = heads.dot * graph.gram(y) + heads.time * edges.weights
    return masked_softmax(F.leaky_relu(logits, heads.slope), edges.mask, dim=3)


def named(past: pl.DataFrame, copies: int) -> list[str]:
    """What each position is: the title of its event, after which a token of it may stand."""
    titles = [f"{place} {title}" for place, title in past.select("place", "title").iter_rows()]
    return [title if copy == 0 else f"{title}: token" for title in titles for copy in range(copies)]


def table(layers: list[Layer], labels: list[str]) -> pl.DataFrame:
    """The weight of each key for each query, by layer and head; those that are 0 are left out.

    ``query`` is null where the history as a whole looks.
    """
    tables = []
    for number, (name, queries, weights) in enumerate(layers, 1):
        head, query, key = weights.nonzero(as_tuple=True)
        tables.append(
            pl.DataFrame(
                {
                    "layer": number,
                    "name": name,
                    "head": (head + 1).numpy(),
                    "query": pl.Series(
                        [None] * len(query) if queries == "whole" else (query + 1).numpy(), dtype=pl.Int64
                    ),
                    "key": (key + 1).numpy(),
                    "weight": weights[head, query, key].double().numpy(),
                }
            )
        )
    titles = pl.DataFrame({"key": range(1, len(labels) + 1), "event": labels})
    return pl.concat(tables).join(titles, "key", "left", maintain_order="left")


def last_page(layers: list[Layer], labels: list[str], head: str) -> Figure:
    """What `LOOKS` sees: events by layer and head."""
    weights = torch.cat([layer.told[:, -DRAWN:] for layer in layers]).T.numpy()
    shown = labels[-DRAWN:]
    page = style.page(5 + 0.45 * weights.shape[1], 1.6 + 0.23 * len(shown), head)
    axes = page.subplots()
    image = axes.imshow(
        weights, aspect="auto", interpolation="none", cmap="cividis", vmin=min(0, weights.min())
    )
    page.colorbar(image, ax=axes, label=f"weight of the event ({_unit(layers)})")
    columns = _columns(layers)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(shown)), [style.short(label) for label in shown])
    style.name(axes, _where(layers), "layer.head", _cut(labels))
    return page


def matrices(layers: list[Layer], labels: list[str], head: str) -> Figure:
    """What every position looks at: a matrix for each layer and head where positions look."""
    several = [
        (f"layer {n}, head {h}", weights[-DRAWN:, -DRAWN:])
        for n, layer in enumerate(layers, 1)
        if layer.queries != "whole"
        for h, weights in enumerate(layer.weights.numpy(), 1)
    ]
    across = min(ABREAST, len(several))
    down = math.ceil(len(several) / across)
    page = style.page(max(6, 1 + 3.2 * across), 1 + 3.2 * down, head)  # room for the title
    grid = page.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    most = max(weights.max() for _, weights in several)
    least = min(0, *(weights.min() for _, weights in several))
    first = max(0, len(labels) - DRAWN)
    ends = (first + 0.5, len(labels) + 0.5)
    for axes, (title, weights) in zip(grid.flat, several, strict=False):
        image = axes.imshow(
            weights, cmap="cividis", vmin=least, vmax=most, interpolation="none", extent=(*ends, *ends[::-1])
        )
        style.name(axes, title, "", "")
    for axes in grid.flat[len(several) :]:
        axes.set_axis_off()
    for axes in grid.flat[len(several) - across : len(several)]:  # nothing may be below
        axes.tick_params(labelbottom=True)
    page.supxlabel(f"position looked at ({_cut(labels)})", fontsize=9)
    page.supylabel("position that looks", fontsize=9)
    unit = f"weight ({_unit(layers)}; the same scale for all)"
    page.colorbar(image, ax=grid.ravel().tolist(), label=unit, shrink=0.8)
    return page


def _cut(labels: list[str]) -> str:
    some = f"the last {DRAWN} of {len(labels)}" if len(labels) > DRAWN else "all"
    return f"{some} events, oldest first"


def _where(layers: list[Layer]) -> str:
    """What `last_page` shows."""
    numbers: dict[str, list[int]] = {}
    for n, layer in enumerate(layers, 1):
        numbers.setdefault(LOOKS[layer.queries], []).append(n)
    if len(numbers) == 1:
        return f"Where {next(iter(numbers))} looks"
    each = (f"{who} (layer {', '.join(map(str, which))})" for who, which in numbers.items())
    return "Where these look: " + ", ".join(each)


def _unit(layers: list[Layer]) -> str:
    """What the weights of a query are of."""
    sums = torch.cat([layer.told.sum(1) for layer in layers])
    return "they sum to 1" if sums.allclose(torch.ones_like(sums), atol=1e-3) else "not normalised"


def _print(layers: list[Layer], labels: list[str], head: str) -> None:
    """Shows what `LOOKS` sees most, by layer and head or, where these are many, by layer."""
    columns = _columns(layers)
    weights = torch.cat([layer.told for layer in layers])  # (columns, T)
    means = torch.stack([layer.told.mean(0) for layer in layers])  # (layers, T)
    if len(columns) > MANY:
        columns, weights = [f"{n}" for n in range(1, len(layers) + 1)], means
    mean = means.mean(0)
    shown = Table("event", "mean weight", *columns, title=f"{head}\n{_where(layers)}")
    shown.title_justify = "left"
    order = mean.flip(0).argsort(stable=True, descending=True)  # the latest first, of equal weights
    for place in (len(labels) - 1 - order[:PRINTED]).tolist():
        shown.add_row(escape(labels[place]), *(f"{each:.3f}" for each in (mean[place], *weights[:, place])))
    Console(soft_wrap=True).print(shown)


def _columns(layers: list[Layer]) -> list[str]:
    """Names of the heads, layer by layer."""
    return [f"{n}.{head + 1}" for n, layer in enumerate(layers, 1) for head in range(len(layer.weights))]

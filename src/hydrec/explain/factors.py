"""What HGNN's factors hold: the case study of one user, and what it takes to believe it: the whole test part.

"Modeling Factorial User Preference with Hierarchical Graph Neural Network for Enhanced Sequential
Recommendation", figs. 2 and 3, with and without the entropy term.

Differs from the paper, which shows hand-picked users, in that every statistic stands beside what it would be
if each history's events were shuffled among its factors, the sizes of these unchanged.

Shapes: B rows of a batch, N test cases, T history nodes, D width, K factors, G genres or planted factors,
V items.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from rich.console import Console
from rich.table import Table
from torch import Tensor

from hydrec.batch import EvalCandidates, SequenceBatch
from hydrec.data.module import LogData
from hydrec.data.simulator import Simulator
from hydrec.errors import InputError
from hydrec.explain import factors_page
from hydrec.explain.case import case_of, history, top
from hydrec.explain.means import means
from hydrec.explain.run import FinishedRun
from hydrec.layers.graph import Clusters, Groups, filled
from hydrec.models.hgnn import HGNN
from hydrec.sampling import below, hash64
from hydrec.tasks import NextItem

SHUFFLES = 20  # of each history
UNITS = {
    "factors in use": "factors",
    "entropy of S": "nats",
    "adjusted Rand index": "index",
    "normalised mutual information": "index",
}  # all others are shares


class Seen(NamedTuple):
    """What a net made of some histories, and of one item for each.

    Attributes:
        nodes: (B, T, D) float, what is grouped.
        groups: of `Clusters`.
        match: (B, K) float, edge scores of eq. 7.
        nearness: (B, K) float, tau of eq. 9.
        weight: (B, K) float, beta of eq. 9.
    """

    nodes: Tensor
    groups: Groups
    match: Tensor
    nearness: Tensor
    weight: Tensor

    @property
    def hard(self) -> Int[Tensor, "B T"]:
        """The factor that has most of each node."""
        return self.groups.shares.argmax(2)


class Words(NamedTuple):
    """What is known of items.

    Attributes:
        genres: (V+1, G) bool.
        planted: (V+1,) int64, the simulator's factor of each item, -1 for PAD; None where none is known.
    """

    genres: Bool[Tensor, "V1 G"]
    planted: Int[Tensor, " V1"] | None


def explain(run: str, other: str, user: str, out: str, *, wandb: bool) -> None:
    """Writes the case (``nodes.csv``, ``edges.csv``) and ``statistics.csv`` with figures; prints the last.

    Args:
        run: folder of a finished run of HGNN.
        other: of another one on the same test, such as without the entropy term, or "".
        user: raw id of whose last case is shown; "" for the first user of the test part.
        out: where the files go; "" for ``explain/factors`` in the run's folder.
        wandb: whether figures and tables go to the run's W&B run as well.

    Raises:
        InputError: a run is not of HGNN, or of HGNN without factors, or tested on other cases, or the user
            has none; or as `FinishedRun` has it.
    """
    runs = [FinishedRun(path) for path in (run, other) if path]
    for each in runs:
        if each.net_class is not HGNN:
            raise InputError(
                f"{each.folder.path} is of {each.model}: factors explains HGNN and its variants only"
                " (model=hgnn...)"
            )
        if not each.cfg.model.net.cluster:
            raise InputError(
                f"{each.folder.path} is of {each.model}, which groups nothing (model.net.cluster=false): each"
                " event is a factor of its own"
            )
        runs[0].need_same_test(each)
    if wandb:
        runs[0].wandb_id()
    names = [f"{each.model}, entropy {each.cfg.model.net.entropy:g}, seed {each.cfg.seed}" for each in runs]
    items = runs[0].items()
    nodes, edges, statistics = [], [], []
    for name, each in zip(names, runs, strict=True):
        data, task = each.load()
        batch, candidates = case_of(data, user)
        of_run = pl.lit(name).alias("run")
        mine = case(task, data, batch, candidates, items)
        nodes.append(mine[0].select(of_run, "*"))
        edges.append(mine[1].select(of_run, "*"))
        statistics.append(summarised(task, data, known(data, items)).select(of_run, "*"))
    tables = {name: pl.concat(each) for name, each in (("nodes", nodes), ("edges", edges))}
    tables["statistics"] = pl.concat(statistics)
    title = f"{runs[0].about['dataset']['name']}, {runs[0].cfg.names.protocol}"
    owner = data.log.user_ids[int(batch.users[0])]
    pages = {
        "factors": factors_page.case(tables["nodes"], tables["edges"], f"{title}, user {owner}"),
        "statistics": factors_page.statistics(tables["statistics"], title),
    }
    _print(tables["statistics"], title)
    runs[0].leave("factors", out, tables, pages, wandb=wandb)


def known(data: LogData, items: pl.DataFrame) -> Words:
    """Genres of the items and, on the simulator, what is planted."""
    words = items.select("item", "genres").explode("genres").drop_nulls()
    names = words["genres"].unique().sort()
    column = words["genres"].cast(pl.Enum(names)).to_physical().to_numpy()
    genres = np.zeros((len(items) + 1, len(names)), bool)
    genres[words["item"].to_numpy(), column] = True
    reader: Any = data.stand_in if data.stood_in else data.reader
    planted = torch.from_numpy(reader.truth().item_factors).long() if isinstance(reader, Simulator) else None
    return Words(torch.from_numpy(genres), planted)


@torch.no_grad()
def looked(task: NextItem, batch: SequenceBatch, items: Int[Tensor, " B"]) -> Seen:
    """What a net makes of a batch, and of one item for each row."""
    net, kept = task.net, []

    def keep(module: Clusters, given: tuple, made: Groups) -> None:
        kept.append((given[0], made))

    hook = net.cluster.register_forward_hook(keep)
    try:
        state, _ = net.encode(batch)
    finally:
        hook.remove()
    ((nodes, groups),) = kept
    match = (state.vectors[:, 0] @ net.item(items)[:, :, None])[:, :, 0]  # eq. 7
    nearness = state.nearness[:, 0]
    return Seen(nodes, groups, match, nearness, (match + nearness).softmax(1))


# One user ---------------------------------------------------------------------------------------------------


def case(
    task: NextItem, data: LogData, batch: SequenceBatch, candidates: EvalCandidates, items: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The nodes of one history, in two dimensions; and the edges of two items, the recommended and the next.

    Args:
        task: of a trained HGNN.
        data: of the batch.
        batch: one row.
        candidates: what its target is ranked against.
        items: `FinishedRun.items`.
    """
    best = top(task, batch, candidates, 1).items[:, 0]
    several = {"recommended": best, "next": batch.targets[:, 0]}
    seen = {name: looked(task, batch, item) for name, item in several.items()}
    n, one = int(batch.lengths[0]), seen["next"]
    x, y = plane(one.nodes[0, :n]).T.numpy()
    shares = one.groups.shares[0, :n].numpy()
    nodes = history(data, batch, items).with_columns(
        x=x,
        y=y,
        factor=(one.hard[0, :n] + 1).numpy(),
        **{f"share_{k + 1}": column for k, column in enumerate(shares.T)},
    )
    edges = []
    for name, found in seen.items():
        row = items.row(int(several[name]) - 1, named=True)
        edges.append(
            pl.DataFrame(
                {
                    "candidate": name,
                    **{key: [row[key]] * shares.shape[1] for key in ("raw", "title", "genres")},
                    "factor": range(1, shares.shape[1] + 1),
                    "score": found.match[0].numpy(),
                    "nearness": found.nearness[0].numpy(),
                    "weight": found.weight[0].numpy(),
                },
                schema_overrides={"genres": pl.List(pl.String)},
            )
        )
    return nodes, pl.concat(edges)


def plane(nodes: Float[Tensor, "T D"]) -> Float[Tensor, "T 2"]:
    """The first two principal components, each with its largest entry positive; 0 where there are fewer."""
    centred = (nodes - nodes.mean(0)).double()
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    found = F.pad(u * s, (0, 2))[:, :2]
    return found * found.gather(0, found.abs().argmax(0, keepdim=True)).sign()


# The whole test part ----------------------------------------------------------------------------------------


def summarised(task: NextItem, data: LogData, words: Words) -> pl.DataFrame:
    """The statistics over all test cases, with intervals over users, and those of shuffled factors.

    Args:
        task: of a trained HGNN.
        data: of its test.
        words: what is known of the items.
    """
    parts = [*_statistics(task, data, words)]
    users = torch.cat([part.pop("users") for part in parts])
    columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    found = means(torch.stack([*columns.values()], 1), users)
    rows = {
        name: dict(zip(("value", "low", "high", "cases", "users"), row, strict=True))
        for name, row in zip(columns, zip(*(each.tolist() for each in found), strict=True), strict=True)
    }
    table = []
    for name in (name for name in rows if not name.endswith(("/shuffled", "/difference"))):
        row = {"statistic": name, "unit": UNITS.get(name, "share"), **rows[name]}
        for kind in ("shuffled", "difference"):
            of_kind = rows.get(f"{name}/{kind}", {})
            row |= {kind: of_kind.get("value")}
            row |= {f"{kind}_{end}": of_kind.get(end) for end in ("low", "high")}
        table.append(row)
    kinds = {
        f"{kind}{end}": pl.Float64 for kind in ("shuffled", "difference") for end in ("", "_low", "_high")
    }
    return pl.DataFrame(table, schema_overrides=kinds).filter(pl.col("cases") > 0).fill_nan(None)


def _statistics(task: NextItem, data: LogData, words: Words) -> Iterator[dict[str, Tensor]]:
    """Of the cases of each batch, (B,) float64 each; NaN where a case says nothing."""
    for batch, candidates in data.test_dataloader():
        best = top(task, batch, candidates, 1).items[:, 0]
        seen = looked(task, batch, best)
        shares, hard = seen.groups.shares.double(), seen.hard
        real = filled(batch.lengths, hard.shape[1])
        factors = shares.shape[2]
        strongest = seen.weight.argmax(1)
        sizes = _counts(hard, real, factors)  # (B, K)
        entropy = torch.special.entr(shares).sum(2)
        found = {
            "users": batch.users,
            "factors in use": (sizes > 0).sum(1).double(),
            "entropy of S": entropy.sum(1) / batch.lengths,
            "strongest factor holds no event": (sizes.gather(1, strongest[:, None])[:, 0] == 0).double(),
        }
        about = _Held(words, batch.items, best, real, strongest, factors)
        mine = about(hard)
        shuffled = [about(hard.gather(1, _shuffle(batch, real, draw))) for draw in range(SHUFFLES)]
        for name, value in mine.items():
            null = torch.stack([each[name] for each in shuffled]).mean(0)
            found |= {name: value, f"{name}/shuffled": null, f"{name}/difference": value - null}
        held = sizes.double() / batch.lengths[:, None]
        found |= {f"{factors_page.HELD}{k + 1}": held[:, k] for k in range(factors)}
        yield found


def _counts(hard: Int[Tensor, "B T"], which: Bool[Tensor, "B T"], factors: int) -> Int[Tensor, "B K"]:
    return (F.one_hot(hard, factors) * which[:, :, None]).sum(1)


def _shuffle(batch: SequenceBatch, real: Bool[Tensor, "B T"], draw: int) -> Int[Tensor, "B T"]:
    """A random order of the events of each history, padding last; a function of row and draw alone."""
    place = torch.arange(real.shape[1])
    bits = below(hash64(0, "shuffled factors", draw, batch.rows[:, None], place), 2**62)
    return bits.masked_fill(~real, 2**62).argsort(1)


class _Held(NamedTuple):
    """Says how well a division of histories into factors agrees with what is known of their items.

    Attributes:
        words: what is known.
        items: (B, T) int64, the histories.
        best: (B,) int64, what is recommended.
        real: (B, T) bool, what is no padding.
        strongest: (B,) int64, the factor with the greatest weight for the recommended item.
        factors: number K.
    """

    words: Words
    items: Tensor
    best: Tensor
    real: Tensor
    strongest: Tensor
    factors: int

    def __call__(self, hard: Int[Tensor, "B T"]) -> dict[str, Tensor]:
        """Statistics of a division, (B,) float64 each."""
        found = {}
        if self.words.genres.shape[1]:
            genres = self.words.genres[self.items] & self.real[:, :, None]  # (B, T, G)
            inside = F.one_hot(hard, self.factors).double().mT @ genres.double()  # (B, K, G) events
            strong = inside[torch.arange(len(hard)), self.strongest]  # (B, G)
            wanted = self.words.genres[self.best]
            shared = ((strong > 0) & wanted).any(1).double()
            found["strongest factor shares a genre with the recommended item"] = shared.where(
                wanted.any(1), torch.nan
            )
            # of the events that have a genre, those of the most frequent one of their factor; 0 / 0 is NaN
            found["purity by genre"] = inside.amax(2).sum(1) / genres.any(2).sum(1)
        if self.words.planted is not None:
            planted = self.words.planted[self.items]
            kinds = int(self.words.planted.max()) + 1
            which = F.one_hot(planted.clamp(min=0), kinds) * self.real[:, :, None]
            table = F.one_hot(hard, self.factors).double().mT @ which.double()  # (B, K, G)
            found["adjusted Rand index"] = rand_index(table)
            found["normalised mutual information"] = mutual_information(table)
        return found


def rand_index(table: Float[Tensor, "B K G"]) -> Float[Tensor, " B"]:
    """Adjusted Rand index of two divisions of the same events, from their contingency table.

    Hubert and Arabie, "Comparing partitions", Journal of Classification 2, 1985. It is 1 where both are the
    same, 0 on average for random ones, and 1 where neither divides anything.

    >>> rand_index(torch.tensor([[[2.0, 0.0], [0.0, 2.0]], [[1.0, 1.0], [1.0, 1.0]]]))
    tensor([ 1.0000, -0.5000])
    """

    def pairs(x: Tensor) -> Tensor:
        return (x * (x - 1) / 2).flatten(1).sum(1)

    together, rows, columns = pairs(table), pairs(table.sum(2)), pairs(table.sum(1))
    chance = rows * columns / pairs(table.sum((1, 2))[:, None]).clamp(min=1)
    most = (rows + columns) / 2
    return torch.where(most == chance, 1.0, (together - chance) / (most - chance))


def mutual_information(table: Float[Tensor, "B K G"]) -> Float[Tensor, " B"]:
    """Mutual information of two divisions over the mean of their entropies; 1 where neither divides anything.

    >>> mutual_information(torch.tensor([[[2.0, 0.0], [0.0, 2.0]], [[1.0, 1.0], [1.0, 1.0]]]))
    tensor([1., 0.])
    """
    shares = table / table.sum((1, 2), keepdim=True)
    rows, columns = (torch.special.entr(shares.sum(axis)).sum(1) for axis in (2, 1))
    mean = (rows + columns) / 2
    both = torch.special.entr(shares).sum((1, 2))
    return torch.where(mean == 0, 1.0, ((rows + columns - both) / mean).clamp(min=0))


def _print(statistics: pl.DataFrame, title: str) -> None:
    for (name,), some in statistics.group_by("run", maintain_order=True):
        table = Table(
            *("statistic", "value", "shuffled", "difference", "cases"),
            title=f"{title}, {name}: means over test cases, 95 % intervals over users",
            title_justify="left",
        )
        for row in some.iter_rows(named=True):
            cells = [_cell(row, "value", ""), _cell(row, "shuffled", "shuffled_")]
            cells.append(_cell(row, "difference", "difference_"))
            table.add_row(f"{row['statistic']} ({row['unit']})", *cells, f"{row['cases']:,}")
        Console(soft_wrap=True).print(table)


def _cell(row: dict[str, Any], name: str, prefix: str) -> str:
    if row[name] is None:
        return "-"
    low, high = row[f"{prefix}low"], row[f"{prefix}high"]
    return f"{row[name]:.3f}" + ("" if low is None else f" ({low:.3f} to {high:.3f})")

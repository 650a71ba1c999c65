"""Candidates to train and to be ranked against, and the random numbers they are drawn by.

There is no generator and no state: a number is a hash of what it is for (seed, purpose, epoch, row, draw). So
a draw depends neither on the batch it is made in nor on workers, processes or devices, and a resumed run
draws what it would have drawn.

Items are drawn in closed form, without rejection: weights are integers, and a uniform number below the mass
that is left after excluding some items is carried over the excluded masses it passes.

Letters: B rows, M of their positions (or rows), T history positions, C candidates, V items, O owners of
excluded items, X pairs of both.
"""

import hashlib
import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hydrec.batch import PAD, Catalog
from hydrec.errors import InputError, at_least, one_of

GAMMA = 0x9E3779B97F4A7C15  # step of splitmix64: odd, near 2^64 over the golden ratio
TOTAL = 2**40  # mass of the catalogue: the bias of `below` is then 2^-23, and ...
OWNERS = 2**22  # ... as many owners (users; rows of a batch) times the mass stay in int64


# Random numbers ---------------------------------------------------------------------------------------------


def hash64(seed: int, purpose: str, *keys: Int[Tensor, "..."] | int) -> Int[Tensor, "..."]:
    """Hashes keys to 64 random bits, as int64; the same bits on every device.

    A chain of splitmix64 streams (Steele, Lea and Flood, OOPSLA 2014): each key picks an output of the
    stream that starts where the keys before it lead. Keys that differ only in the last one never collide.

    Args:
        seed: of the run or of the protocol.
        purpose: what the numbers are for; other purposes give independent numbers.
        keys: integers, broadcast against each other.
    """
    word = int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest(), "big")
    bits = torch.tensor(0)
    for key in (seed, word, *keys):
        step = key * _signed(GAMMA) if isinstance(key, Tensor) else _signed(key * GAMMA)
        bits = _splitmix(bits + step)
    return bits


def below(bits: Int[Tensor, "..."], bound: Int[Tensor, "..."] | int) -> Int[Tensor, "..."]:
    """Maps random bits to integers in [0, ``bound``), uniform up to a relative bias of ``bound`` / 2^63."""
    return (bits & (2**63 - 1)) % bound


def permuted(places: Int[Tensor, " M"], n: int, seed: int, purpose: str, *keys: int) -> Int[Tensor, " M"]:
    """What a random permutation of 0..``n``-1 has at some places, without making the rest of it.

    A Feistel network over a square of n numbers and the few that fill it up, walked on where it lands on one
    of those (Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002).

    Args:
        places: (M,) each in 0..n-1.
        n: size of the permutation.
        seed: of the run or of the protocol.
        purpose: what the permutation is for; other purposes and keys give independent ones.
        keys: integers.
    """
    rows = math.isqrt(n - 1) + 1
    columns = -(-n // rows)
    found, walking = places.clone(), torch.arange(len(places))
    while len(walking):
        row, column = found[walking] // columns, found[walking] % columns
        for turn in range(3):
            row = (row + below(hash64(seed, purpose, *keys, 2 * turn, column), rows)) % rows
            column = (column + below(hash64(seed, purpose, *keys, 2 * turn + 1, row), columns)) % columns
        found[walking] = row * columns + column
        walking = walking[found[walking] >= n]
    return found


def _splitmix(state: Tensor) -> Tensor:
    bits = state + _signed(GAMMA)
    bits = (bits ^ _shift(bits, 30)) * _signed(0xBF58476D1CE4E5B9)
    bits = (bits ^ _shift(bits, 27)) * _signed(0x94D049BB133111EB)
    return bits ^ _shift(bits, 31)


def _shift(bits: Tensor, by: int) -> Tensor:
    return (bits >> by) & (2 ** (64 - by) - 1)  # int64 shifts copies of the sign in


def _signed(value: int) -> int:
    return (value + 2**63) % 2**64 - 2**63


# Weighted draws from the catalogue without some items -------------------------------------------------------


def cumulative(counts: Int[Tensor, " V1"], exponent: float, key: str) -> Int[Tensor, " V1"]:
    """Cumulative integer weights of the items 0..V, proportional to ``counts ** exponent``; ``PAD`` has none.

    Args:
        counts: (V+1,) how often each item occurs; entry 0 is ignored.
        exponent: 0 draws uniformly from the whole catalogue; above 0, items that never occur are never drawn.
        key: configuration key of the exponent.

    Raises:
        InputError: the exponent is negative, or there are no counts to weight by.
    """
    if not isinstance(exponent, int | float) or not exponent >= 0:
        raise InputError(f"{key}={exponent}: must be 0 (uniform) or more (1: by popularity)")
    weight = counts.double() ** exponent
    weight[PAD] = 0
    if not 0 < float(weight.sum()) < math.inf:
        raise InputError(f"{key}={exponent} leaves no finite weights: use an exponent between 0 and 1")
    scale = 2.0 ** math.floor(math.log2(TOTAL / float(weight.sum())))  # a power of two keeps proportions
    return (weight * scale).round().long().cumsum(0)


class Remainder(NamedTuple):
    """The mass of the catalogue that is left to each owner when its excluded items are taken out.

    Attributes:
        gone: (X+1,) mass excluded by the first so many pairs, of all owners together.
        reach: (X,) owner * stride + mass left to the owner up to and including the pair's item; ascending.
        before: (O,) ``gone`` ahead of the owner's first pair.
        left: (O,) mass left to the owner.
    """

    gone: Int[Tensor, " X1"]
    reach: Int[Tensor, " X"]
    before: Int[Tensor, " O"]
    left: Int[Tensor, " O"]


def exclude(
    cdf: Int[Tensor, " V1"], owner: Int[Tensor, " X"], item: Int[Tensor, " X"], owners: int
) -> Remainder:
    """Takes items out of the catalogue, for each owner its own.

    Args:
        cdf: (V+1,) cumulative weights of the items.
        owner: (X,) owner of each pair; pairs come in any order and any number of times.
        item: (X,) item of each pair; ``PAD`` has no mass.
        owners: number O of owners, numbered from 0; at most ``OWNERS``.
    """
    pair = torch.unique(owner * len(cdf) + item)
    owner, item = pair // len(cdf), pair % len(cdf)
    mass = cdf[item] - cdf[(item - 1).clamp(min=0)]
    gone = nn.functional.pad(mass.cumsum(0), (1, 0))
    first = torch.searchsorted(owner, torch.arange(owners + 1, device=owner.device))
    before = gone[first]
    reach = owner * (cdf[-1] + 1) + cdf[item] - (gone[1:] - before[owner])
    return Remainder(gone, reach, before[:-1], cdf[-1] - before.diff())


def draw(
    cdf: Int[Tensor, " V1"], rest: Remainder, owner: Int[Tensor, " M"], bits: Int[Tensor, "M C"]
) -> Int[Tensor, "M C"]:
    """Draws items by their weights from what is left to each row's owner, which must be something."""
    owner = owner[:, None]
    point = below(bits, rest.left[owner])
    passed = torch.searchsorted(rest.reach, owner * (cdf[-1] + 1) + point, right=True)
    return torch.searchsorted(cdf, point + rest.gone[passed] - rest.before[owner], right=True)


# Training candidates ----------------------------------------------------------------------------------------
#
# The positives of a batch are M supervised positions of its B rows: one of each row, or many. Every sampler
# is called alike and reads what it needs:
#
#     targets: (M,) positives.
#     owner: (M,) row of the batch that each position is of, 0..B-1.
#     history: (B, T) items of the rows, ``PAD`` anywhere.
#     users: (B,) their users.
#     names: (M,) of the positions: those of one name draw the same numbers, whatever the batch.
#     seed, epoch: of the run.


class Drawn(NamedTuple):
    """What the positives of a batch are compared with.

    Attributes:
        items: (C,) shared by all positions, or (M, C).
        target: (M,) column of each position's positive.
        log_q: log of the expected number of times that each candidate comes up as a negative, shaped as
            ``items``; ``None`` where scores are not to be corrected for it.
    """

    items: Int[Tensor, "*M C"]
    target: Int[Tensor, " M"]
    log_q: Float[Tensor, "*M C"] | None

    def part(self, positions: slice) -> "Drawn":
        """The same for some of the positions."""
        target = self.target[positions]
        if self.items.dim() == 1:
            return self._replace(target=target)
        log_q = None if self.log_q is None else self.log_q[positions]
        return Drawn(self.items[positions], target, log_q)

    def corrected(self, scores: Float[Tensor, "M C"]) -> Float[Tensor, "M C"]:
        """Takes ``log_q`` off the scores of the negatives.

        The sum of exp over the negatives is then an unbiased estimate of that over all items that may be
        drawn (Bengio and Senecal, "Quick Training of Probabilistic Neural Nets by Importance Sampling",
        AISTATS 2003). The positive is there with certainty, so its score stays. Differs in that from Yi et
        al., "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations", RecSys 2019, who
        correct it like the others.
        """
        if self.log_q is None:
            return scores
        positive = self.target[:, None]
        return (scores - self.log_q).scatter(1, positive, scores.gather(1, positive))


class AllItems(nn.Module):
    """Every item of the catalogue is a candidate."""

    items: Tensor

    def __init__(self, catalog: Catalog) -> None:
        super().__init__()
        self.register_buffer("items", torch.arange(1, catalog.n_items + 1), persistent=False)

    def forward(
        self,
        targets: Int[Tensor, " M"],
        owner: Int[Tensor, " M"],
        history: Int[Tensor, "B T"],
        users: Int[Tensor, " B"],
        names: Int[Tensor, " M"],
        *,
        seed: int,
        epoch: int,
    ) -> Drawn:
        """Returns the whole catalogue, shared by all positions."""
        return Drawn(self.items, targets - 1, None)


class InBatch(nn.Module):
    """The targets of a batch, and items drawn once for all of it, are the candidates of each position.

    These are the negatives of GRU4Rec (Hidasi and Karatzoglou, CIKM 2018). Differs from its code in that an
    item that comes up several times counts once, so a positive never is its own negative. What follows other
    positions of the same history is a negative like any other target. Of several processes, each has the
    targets of its own share of the batch.

    Args:
        catalog: ``targets`` are the counts that weights and corrections are made of.
        count: items drawn, with replacement, beside the targets; 0 for none.
        exponent: an item's weight is (times it is a training target) ** exponent; 0 draws uniformly from the
            whole catalogue.
        correct: whether scores are corrected for how likely an item comes up at all: among the other targets,
            taken as drawn by their counts in training, or in the draws.

    Raises:
        InputError: ``count`` or ``exponent`` is negative.
    """

    cdf: Tensor
    frequency: Tensor
    chance: Tensor

    def __init__(self, catalog: Catalog, *, count: int, exponent: float, correct: bool) -> None:
        super().__init__()
        self.count = at_least("loss.candidates.count", count, 0)
        self.correct = correct
        cdf = cumulative(catalog.targets, exponent, "loss.candidates.exponent")
        often = catalog.targets.double().clamp(min=1)  # a target inside of a window may be that of no sample
        often[PAD] = 0
        weight = cdf.diff(prepend=cdf[:1]).double()
        self.register_buffer("cdf", cdf, persistent=False)
        self.register_buffer("frequency", often / often.sum(), persistent=False)
        self.register_buffer("chance", weight / weight.sum(), persistent=False)

    def forward(
        self,
        targets: Int[Tensor, " M"],
        owner: Int[Tensor, " M"],
        history: Int[Tensor, "B T"],
        users: Int[Tensor, " B"],
        names: Int[Tensor, " M"],
        *,
        seed: int,
        epoch: int,
    ) -> Drawn:
        """Returns the distinct targets and draws, shared by all positions."""
        number = torch.arange(self.count, device=names.device)
        bits = hash64(seed, "shared negatives", epoch, names.min(), number)  # a name is in one batch an epoch
        drawn = torch.searchsorted(self.cdf, below(bits, self.cdf[-1]), right=True)
        items, place = torch.unique(torch.cat([targets, drawn]), return_inverse=True)
        log_q = None
        if self.correct:  # of 1 - (1 - f)^(M - 1) (1 - q)^count
            others = torch.xlogy(len(targets) - 1, 1 - self.frequency[items])  # 0 log 0 is 0
            draws = torch.xlogy(self.count, 1 - self.chance[items])
            log_q = (-(others + draws).expm1()).log().float()
        return Drawn(items, place[: len(targets)], log_q)


class Sampled(nn.Module):
    """Negatives drawn with replacement, for each position its own; the positive is column 0.

    Args:
        catalog: ``targets`` are the counts that weights are made of.
        count: negatives of each position.
        exponent: an item's weight is (times it is a training target) ** exponent; 0 draws uniformly from the
            whole catalogue.
        exclude: what is never drawn: ``target``; ``window``, all of the row, its history and its targets;
            ``user``, all of the user's training items, of which the target is one.
        correct: whether scores are corrected for how often an item is drawn: the sum over the negatives then
            estimates that over all items that are not excluded.

    Raises:
        InputError: a value is not one of these; while training, nothing is left to draw for some position.
    """

    cdf: Tensor

    def __init__(self, catalog: Catalog, *, count: int, exponent: float, exclude: str, correct: bool) -> None:
        super().__init__()
        kinds = {"target": _Target, "window": _Window, "user": _User}
        self.exclude = one_of("loss.candidates.exclude", exclude, kinds)
        self.count = at_least("loss.candidates.count", count, 1)
        self.correct = correct
        cdf = cumulative(catalog.targets, exponent, "loss.candidates.exponent")
        self.register_buffer("cdf", cdf, persistent=False)
        self.taken = kinds[exclude](catalog, cdf)

    def forward(
        self,
        targets: Int[Tensor, " M"],
        owner: Int[Tensor, " M"],
        history: Int[Tensor, "B T"],
        users: Int[Tensor, " B"],
        names: Int[Tensor, " M"],
        *,
        seed: int,
        epoch: int,
    ) -> Drawn:
        """Draws the negatives of M positions."""
        holder, rest = self.taken(self.cdf, targets, owner, history, users)
        left = rest.left[holder]
        if bool((left == 0).any()):
            raise InputError(
                f"loss.candidates.exclude={self.exclude} leaves no item to draw for some training rows:"
                " exclude less, or set loss.candidates.exponent=0 to draw from the whole catalogue"
            )
        number = torch.arange(self.count, device=names.device)
        negatives = draw(self.cdf, rest, holder, hash64(seed, "negatives", epoch, names[:, None], number))
        items = torch.cat([targets[:, None], negatives], 1)
        log_q = None
        if self.correct:
            expected = self.count * (self.cdf[items] - self.cdf[items - 1]).double() / left[:, None]
            log_q = expected.log().float()
        return Drawn(items, torch.zeros_like(targets), log_q)


class _Target(nn.Module):
    """Each position is the holder of its target."""

    def __init__(self, catalog: Catalog, cdf: Tensor) -> None:
        super().__init__()

    def forward(
        self, cdf: Tensor, targets: Tensor, owner: Tensor, history: Tensor, users: Tensor
    ) -> tuple[Tensor, Remainder]:
        holder = torch.arange(len(targets), device=targets.device)
        return holder, exclude(cdf, holder, targets, len(targets))


class _Window(nn.Module):
    """Each row is the holder of its history and its targets, for all of its positions."""

    def __init__(self, catalog: Catalog, cdf: Tensor) -> None:
        super().__init__()

    def forward(
        self, cdf: Tensor, targets: Tensor, owner: Tensor, history: Tensor, users: Tensor
    ) -> tuple[Tensor, Remainder]:
        rows = torch.arange(len(history), device=history.device).repeat_interleave(history.shape[1])
        holder, items = torch.cat([rows, owner]), torch.cat([history.flatten(), targets])
        return owner, exclude(cdf, holder, items, len(history))


class _User(nn.Module):
    """Each user is the holder of its training items, once for all batches."""

    gone: Tensor
    reach: Tensor
    before: Tensor
    left: Tensor

    def __init__(self, catalog: Catalog, cdf: Tensor) -> None:
        super().__init__()
        if catalog.n_users >= OWNERS:
            raise InputError(f"loss.candidates.exclude=user: for fewer than {OWNERS} users; use window")
        for name, column in exclude(cdf, catalog.users, catalog.items, catalog.n_users + 1)._asdict().items():
            self.register_buffer(name, column, persistent=False)

    def forward(
        self, cdf: Tensor, targets: Tensor, owner: Tensor, history: Tensor, users: Tensor
    ) -> tuple[Tensor, Remainder]:
        return users[owner], Remainder(self.gone, self.reach, self.before, self.left)


# Evaluation candidates --------------------------------------------------------------------------------------


def lists(
    cdf: Int[Tensor, " V1"],
    owner: Int[Tensor, " X"],
    item: Int[Tensor, " X"],
    users: Int[Tensor, " M"],
    rows: Int[Tensor, " M"],
    *,
    count: int,
    replace: bool,
    seed: int,
    purpose: str,
) -> Int[Tensor, "M C"]:
    """Draws a list of competitors for each row, which depends on that row alone.

    Without replacement an item that comes up again is passed over, so items enter in the order of successive
    sampling; where no more than ``count`` are left, the list is all of them. With replacement there are
    always ``count``, unless nothing is left.

    Args:
        cdf: (V+1,) cumulative weights of the items.
        owner: (X,) row, 0..M-1, whose list must not have the item of the pair.
        item: (X,) item of the pair.
        users: (M,) user of each list.
        rows: (M,) names each list among those of its user.
        count: length C of a list; ``PAD`` fills it.
        replace: whether an item may come twice.
        seed: of the lists.
        purpose: of the lists.
    """
    found = torch.full((len(rows), count), PAD)
    held = torch.zeros_like(rows)
    number = torch.arange(2 * count)  # mostly enough to find ``count`` distinct items in one turn
    lacking = torch.arange(len(rows))
    while len(lacking):
        # What a row already has is excluded like the rest: every turn so finds at least one item more.
        rest = exclude(cdf, owner, item, len(rows))
        lacking = lacking[rest.left[lacking] > 0]
        bits = hash64(seed, purpose, users[lacking, None], rows[lacking, None], number)
        drawn = draw(cdf, rest, lacking, bits)
        if replace:
            found[lacking] = drawn[:, :count]
            break
        fresh = _first(drawn)
        place = held[lacking, None] + fresh.cumsum(1) - 1
        keep = fresh & (place < count)
        at = lacking[:, None].expand_as(place)[keep]
        found[at, place[keep]] = drawn[keep]
        held[lacking] += keep.sum(1)
        lacking = lacking[held[lacking] < count]
        owner, item = torch.cat([owner, at]), torch.cat([item, drawn[keep]])
        still = (held < count)[owner]
        owner, item = owner[still], item[still]
        number = number + 2 * count
    return found


def _first(items: Int[Tensor, "M C"]) -> Bool[Tensor, "M C"]:
    """Whether each item is the first of its kind in its row."""
    ordered, order = items.sort(dim=1, stable=True)
    again = nn.functional.pad(ordered[:, 1:] == ordered[:, :-1], (1, 0))
    return ~torch.zeros_like(again).scatter(1, order, again)

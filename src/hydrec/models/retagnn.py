"""RetaGNN: attention over the graph of users and items, then over the session, then over its parts.

"RetaGNN: Relational Temporal Attentive Graph Neural Networks for Holistic Sequential Recommendation" (Hsu and
Li, WWW 2021; https://arxiv.org/abs/2101.12457); public code: https://github.com/retagnn/RetaGNN.

Differs from the paper in that there are no attributes, and in that the long term is the whole training graph,
which contains the paper's subgraph around user and session: it is walked once for a batch, or once for an
evaluation. The equations are those of the public code, from which it differs in that nodes are looked up by
their own numbers, not by those in the batch's subgraph; that the long term is not overwritten by the last
part of the session; that attention is normalised over what is looked at and scaled by the root of the width;
that its matrices are trained; and that each session has a graph of its own, in parts of equal size. The loss
is a mean: ``eta`` is the code's 900 over its 3072 pairs, and over two, as the code averages over layers.

A training row must not see its own target as an edge. While training, the pairs (user, target) of all rows of
a batch are left out of the long term, whatever other events they have. For the row itself that is exact: its
scores do not depend on the edge. Beyond it, the graph lacks the other rows' pairs, one edge a row. Evaluation
leaves nothing out: the target of a fair split is no training edge, unless the user took it before.

Shapes: B rows, T history positions, D width, L layers, W = 2 L D, E edges, N nodes of one kind, U users, V
items, M scored rows, C candidate items.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hydrec.batch import PAD, Catalog, SequenceBatch
from hydrec.errors import InputError, at_least
from hydrec.layers import attention, scoring
from hydrec.layers.graph import filled
from hydrec.layers.scoring import masked_softmax

# both ends' parts of the logits, and what the other end sends -> shares of it, summed at each node
Collect = Callable[[Tensor, Tensor, Tensor], Tensor]


class Interest(NamedTuple):
    """What a user is after.

    Attributes:
        vector: (B, 1, W) float, of the user and of its session together.
    """

    vector: Tensor


class Into(nn.Module):
    """Attention along the edges of a large graph into all nodes of one kind.

    Args:
        ends: (E,) node that each edge leads into.
        starts: (E,) node, of the other kind, that it comes from.
        nodes: number N of those that edges lead into.
        senders: number of those that they come from.
    """

    order: Tensor
    ends: Tensor
    starts: Tensor
    bounds: Tensor  # (N + 1,) place of the first edge into each node, and their number
    back: Tensor  # (E,) the edges in the order of where they come from
    back_ends: Tensor
    back_bounds: Tensor

    def __init__(self, ends: Int[Tensor, " E"], starts: Int[Tensor, " E"], nodes: int, senders: int) -> None:
        super().__init__()
        order = ends.argsort(stable=True)
        ends, starts = ends[order], starts[order]
        back = starts.argsort(stable=True)
        for name, column in {
            "order": order, "ends": ends, "starts": starts, "bounds": _bounds(ends, nodes),
            "back": back, "back_ends": ends[back], "back_bounds": _bounds(starts[back], senders),
        }.items():  # fmt: skip
            self.register_buffer(name, column, persistent=False)

    def forward(
        self,
        own: Float[Tensor, " N"],
        other: Float[Tensor, " N2"],
        sent: Float[Tensor, "N2 D"],
        kept: Bool[Tensor, " E"],
    ) -> Float[Tensor, "N D"]:
        """Sums of what is sent along the edges that are kept; 0 where there are none."""
        logits = own.index_select(0, self.ends) + other.index_select(0, self.starts)
        logits = F.leaky_relu(logits, 0.2).masked_fill(~kept[self.order], -torch.inf)
        highest = torch.full_like(own, torch.finfo(own.dtype).min)
        highest = highest.scatter_reduce(0, self.ends, logits.detach(), "amax")
        weights = (logits - highest[self.ends]).exp()
        columns = torch.cat([sent, sent.new_ones(len(sent), 1)], 1)  # the column of ones sums the weights
        sums: Tensor = _Sums.apply(weights, columns, self)
        return sums[:, :-1] / sums[:, -1:].clamp(min=1)  # the largest weight is 1


class _Sums(torch.autograd.Function):
    """Weighted sums (N, D) of rows (N2, D) along edges, without a tensor of E by D in either direction.

    The gradient of the rows is the same sum along the edges turned round; PyTorch's sorts the edges at each
    step.
    """

    @staticmethod
    def forward(ctx: Any, weights: Tensor, rows: Tensor, into: Into) -> Tensor:
        ctx.save_for_backward(weights, rows)
        ctx.into = into
        return _summed(weights, rows, into.starts, into.bounds)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        weights, rows = ctx.saved_tensors
        into, (outer,) = ctx.into, gradients
        size = len(into.bounds) - 1, len(rows)
        edges = torch.sparse_csr_tensor(
            into.bounds, into.starts, torch.zeros_like(weights), size, check_invariants=False
        )
        by_weights = torch.sparse.sampled_addmm(edges, outer, rows.T, beta=0.0).values()
        by_rows = _summed(weights[into.back], outer, into.back_ends, into.back_bounds)
        return by_weights, by_rows, None


def _summed(weights: Tensor, rows: Tensor, numbers: Tensor, bounds: Tensor) -> Tensor:
    return F.embedding_bag(
        numbers, rows, bounds, mode="sum", per_sample_weights=weights, include_last_offset=True
    )


def _bounds(ends: Tensor, nodes: int) -> Tensor:
    return torch.searchsorted(ends, torch.arange(nodes + 1, device=ends.device))


class TrainingGraph(nn.Module):
    """Which users met which items in training, each pair once; a state dict carries it.

    Args:
        catalog: sizes, and the rows of the training part.
    """

    pairs: Tensor  # (E,) int64, ascending: user * (V + 1) + item

    def __init__(self, catalog: Catalog) -> None:
        super().__init__()
        self.sizes = catalog.n_users + 1, catalog.n_items + 1
        self.register_buffer("pairs", torch.empty(0, dtype=torch.int64), persistent=False)
        self._join(torch.unique(catalog.users * self.sizes[1] + catalog.items))

    def _join(self, pairs: Tensor) -> None:
        self.pairs = pairs
        users, items = pairs // self.sizes[1], pairs % self.sizes[1]
        self.to_users, self.to_items = Into(users, items, *self.sizes), Into(items, users, *self.sizes[::-1])

    def get_extra_state(self) -> Float[Tensor, " E"]:
        """The pairs, in float64, which is exact up to 2^53."""
        return self.pairs.double()

    def set_extra_state(self, state: Float[Tensor, " E"]) -> None:
        """Takes what ``get_extra_state`` gave."""
        self._join(state.to(self.pairs))

    def without(self, users: Int[Tensor, " B"], items: Int[Tensor, " B"]) -> Bool[Tensor, " E"]:
        """Which edges join none of these pairs."""
        asked = users * self.sizes[1] + items
        place, after = (torch.searchsorted(self.pairs, asked, right=right) for right in (False, True))
        kept = torch.ones_like(self.pairs, dtype=torch.bool)
        kept[place[place < after]] = False
        return kept


class RelationalAttention(nn.Module):
    """Users take in items, and items users, by matrices of the two relations.

    ``x'_i = tanh(x_i R + sum_j share_ij x_j M_r + b)``, share_ij the softmax over i's neighbours j of
    ``LeakyReLU(a [x_i R ; x_j M_r])``. Each relation's M is a mixture of the same bases.

    Args:
        dim: width D.
        bases: their number.
    """

    def __init__(self, dim: int, *, bases: int) -> None:
        super().__init__()
        self.root = nn.Parameter(torch.empty(dim, dim))
        self.bases = nn.Parameter(torch.empty(bases, dim, dim))
        self.mix = nn.Parameter(torch.full((2, bases), bases**-0.5))  # relations start alike
        self.own, self.other = (nn.Parameter(torch.empty(dim)) for _ in range(2))  # a
        self.bias = nn.Parameter(torch.zeros(dim))
        for matrix in (self.root, *self.bases):
            nn.init.xavier_uniform_(matrix)
        for half in (self.own, self.other):
            nn.init.uniform_(half, -(dim**-0.5), dim**-0.5)

    def matrices(self) -> Float[Tensor, "2 D D"]:
        """M of what users send to items, and of what items send to users."""
        return torch.einsum("rb,bde->rde", self.mix, self.bases)

    def forward(
        self,
        users: Float[Tensor, "*U D"],
        items: Float[Tensor, "*V D"],
        to_users: Collect,
        to_items: Collect,
    ) -> tuple[Float[Tensor, "*U D"], Float[Tensor, "*V D"]]:
        """Users and items after one step along the edges, which ``to_users`` and ``to_items`` know."""
        from_users, from_items = self.matrices()
        return (
            self._step(users, items @ from_items, to_users),
            self._step(items, users @ from_users, to_items),
        )

    def _step(self, x: Tensor, sent: Tensor, collect: Collect) -> Tensor:
        own = x @ self.root
        return (own + collect(own @ self.own, sent @ self.other, sent) + self.bias).tanh()


class RetaGNN(nn.Module):
    """Scores items by how they match a user and the items of its session, both seen in two graphs.

    A user without training events, or unknown (0), has the vector 0 and no edge in the long term: beyond what
    all users share, what is known of it comes from its session.

    Args:
        catalog: sizes of the data set, and the users and items of the training rows.
        dim: width D of nodes; candidates have 2 L D.
        layers: number L for the long term, and again for the session.
        bases: matrices of which those of the relations are mixed.
        parts: of the session, one after another, in each of its layers.
        eta: weight of the squared difference between the matrices of the two relations.

    Raises:
        InputError: a size is not a positive whole number, or ``eta`` is negative.
    """

    def __init__(
        self, catalog: Catalog, *, dim: int, layers: int, bases: int, parts: int, eta: float
    ) -> None:
        super().__init__()
        for key, size in {"dim": dim, "layers": layers, "bases": bases, "parts": parts}.items():
            at_least(f"model.net.{key}", size, 1)
        if not eta >= 0:
            raise InputError(f"model.net.eta={eta}: a weight is 0 or more")
        self.dim, self.parts, self.eta = dim, parts, eta
        width = 2 * layers * dim
        self.graph = TrainingGraph(catalog)
        self.user = nn.Embedding(catalog.n_users + 1, dim)
        self.item = nn.Embedding(catalog.n_items + 1, dim, padding_idx=PAD)
        self.long = nn.ModuleList(RelationalAttention(dim, bases=bases) for _ in range(layers))
        self.short = nn.ModuleList(RelationalAttention(dim, bases=bases) for _ in range(layers))
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.attention = attention.Watched(queries="all")
        self.candidate = nn.Embedding(catalog.n_items + 1, width, padding_idx=PAD)
        self.bias = nn.Embedding(catalog.n_items + 1, 1, padding_idx=PAD)
        nn.init.zeros_(self.bias.weight)
        nn.init.normal_(self.candidate.weight, std=1 / width)
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=0.1)
        with torch.no_grad():
            self.user.weight[torch.bincount(catalog.users, minlength=catalog.n_users + 1) == 0] = 0
            self.item.weight[PAD] = self.candidate.weight[PAD] = 0
        self._walked: tuple[list, tuple[Tensor, Tensor]] | None = None  # by which weights, and what came out

    def encode(self, batch: SequenceBatch) -> tuple[Interest, Float[Tensor, ""]]:
        """The interest of each user, and the term that keeps relations alike."""
        users, items = self._long_term(batch)
        user, session = users[batch.users][:, None], items[batch.items]  # (B, 1, L D), (B, T, L D)
        user, session = self._short_term(user, session, batch)  # (B, 1, W), (B, T, W)
        valid = filled(batch.lengths, session.shape[1])
        seen = attention.causal(session.shape[1], session.device) & valid[:, :, None]  # (B, T, T)
        logits = self.query(session) @ self.key(session).mT * session.shape[2] ** -0.5
        shares = self.attention(masked_softmax(logits, seen, dim=2)[:, None])[:, 0]
        summed = shares.sum(1, keepdim=True) @ session  # over all positions, before the map: it is linear
        return Interest(user + self.value(summed)), self.eta * self._difference()

    def score(self, state: Interest, items: Int[Tensor, "*M C"]) -> Float[Tensor, "M C"]:
        """Scores of candidates for M selected rows, fields (M, W), of the state."""
        return scoring.dot(state.vector[:, None], self.candidate(items))[:, 0] + self.bias(items)[..., 0]

    def _long_term(self, batch: SequenceBatch) -> tuple[Tensor, Tensor]:
        """All users (U + 1, L D) and items (V + 1, L D) after each layer on the training graph."""
        if self.training:
            return self._walk(self.graph.without(batch.users, batch.targets[:, 0]))
        everything = torch.ones_like(self.graph.pairs, dtype=torch.bool)
        if torch.is_grad_enabled():
            return self._walk(everything)
        weights = [(x.data_ptr(), x._version) for x in (*self.parameters(), self.graph.pairs)]
        if self._walked is None or self._walked[0] != weights:
            self._walked = weights, self._walk(everything)
        return self._walked[1]

    def _walk(self, kept: Bool[Tensor, " E"]) -> tuple[Tensor, Tensor]:
        to_users, to_items = (partial(into, kept=kept) for into in (self.graph.to_users, self.graph.to_items))
        users, items = [self.user.weight], [self.item.weight]
        with torch.autocast(kept.device.type, enabled=False):  # popular nodes sum over many
            for layer in self.long:
                user, item = layer(users[-1], items[-1], to_users, to_items)
                users.append(user)
                items.append(item)
        return torch.cat(users[1:], 1), torch.cat(items[1:], 1)

    def _short_term(self, user: Tensor, session: Tensor, batch: SequenceBatch) -> tuple[Tensor, Tensor]:
        """User and session after each layer on the parts of the session, beside what came in."""
        place = torch.arange(batch.items.shape[1], device=batch.items.device)
        part = place * self.parts // batch.lengths[:, None]  # (B, T), from 0; padding is beyond the last
        same = batch.items[:, :, None] == batch.items[:, None, :]  # (B, T, T)
        first = ~same.tril(-1).any(2)
        users, sessions = [user], [session]
        user, session = user[..., -self.dim :], session[..., -self.dim :]
        for layer in self.short:
            for number in range(self.parts):
                met = (same & (part == number)[:, None, :]).any(2)  # all places of the items in the part
                to_user, to_items = partial(_to_user, met=met & first), partial(_to_items, met=met)
                user, session = layer(user, session, to_user, to_items)
            users.append(user)
            sessions.append(session)
        return torch.cat(users, 2), torch.cat(sessions, 2)

    def _difference(self) -> Tensor:
        layers = torch.stack([layer.matrices() for layer in (*self.long, *self.short)])
        return (layers[:, 1] - layers[:, 0]).square().sum()


def _to_user(own: Tensor, other: Tensor, sent: Tensor, met: Tensor) -> Tensor:
    shares = masked_softmax(F.leaky_relu(own + other, 0.2), met, dim=1)  # (B, T)
    return shares[:, None] @ sent


def _to_items(own: Tensor, other: Tensor, sent: Tensor, met: Tensor) -> Tensor:
    return met[:, :, None] * sent  # the user is an item's only neighbour: its share is 1

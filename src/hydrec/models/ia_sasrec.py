"""IA-SASRec: SASRec whose attention knows how strongly the user met each item (rating, hours).

"Architectural Limitations in Intensity-Aware Sequential Recommendation: A Negative Result and Mechanism
Analysis" (Shyrallyiev and Pyshnograiev, 2026). With intensities w of the keys, normalised within a history,
and a strength lambda of each block:

    add: softmax(logits + lambda w)
    mul: softmax(logits (1 + lambda (w - 1)))
    val: softmax(logits) (1 + lambda (w - 1)), not normalised again

At lambda = 0 each gives the bits of SASRec, in training too: the path is the same and lambda draws no random
number. ``add`` only knows differences within a history. ``mul`` raises what a negative logit hid, and turns
signs where w < 1 - 1 / lambda.

Differs from the paper in that all positions of a history are trained in one pass and none may know of later
intensities: each query sees the keys' normalised over the positions up to it, in training as in evaluation
(`norm_scope: causal`). The paper's is `window`, one normalisation for all queries, with `samples: prefixes`;
the two agree at the last position, but not at inner ones, which deeper blocks see. Logits are divided by the
root of a head's width, as in RecBole; the paper writes that of D. A lambda for each head or event is not the
paper's, nor is the mode `rank`.

Shapes: B rows, T history positions (keys), Q the same as queries, P scored positions, D width, H heads,
M scored rows, C candidate items.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hydrec.batch import PAD, Catalog, SequenceBatch
from hydrec.errors import InputError, at_least, one_of
from hydrec.layers import attention, intensity, scoring, transformer
from hydrec.layers.graph import filled
from hydrec.layers.history import at_targets


class Hidden(NamedTuple):
    """What a history says of the next item.

    Attributes:
        vectors: (B, P, D) float.
    """

    vectors: Tensor


Weights = Float[Tensor, "B H Q T"]
Keys = Float[Tensor, "#B #H #Q #T"]  # of intensities or strengths, for each query or for all


def add(w: Keys, strength: Keys, logits: Weights, seen: Bool[Tensor, "Q T"]) -> Weights:
    """Raises the logits of strong keys."""
    return attention.softmax(logits + strength * w, seen)


def mul(w: Keys, strength: Keys, logits: Weights, seen: Bool[Tensor, "Q T"]) -> Weights:
    """Shrinks the logits of weak keys; scaled before they are masked, or the mask would soften."""
    return attention.softmax(logits * (1 + strength * (w - 1)), seen)


def val(w: Keys, strength: Keys, logits: Weights, seen: Bool[Tensor, "Q T"]) -> Weights:
    """Shrinks what weak keys contribute."""
    return attention.softmax(logits, seen) * (1 + strength * (w - 1))


FORMS: dict[str, Callable[..., Tensor]] = {"add": add, "mul": mul, "val": val}


class Strength(nn.Module):
    """One lambda, or one for each head.

    Args:
        value: what it is at first.
        heads: their number; 1 for a lambda that all share.
        learnt: whether it is trained or stays.
    """

    value: Tensor

    def __init__(self, value: float, *, heads: int, learnt: bool) -> None:
        super().__init__()
        values = torch.full((1, heads, 1, 1), float(value))
        if learnt:
            self.value = nn.Parameter(values)
        else:
            self.register_buffer("value", values)

    def forward(self, w: Keys) -> Float[Tensor, "1 H 1 1"]:
        """Lambda, whatever the intensities."""
        return self.value

    def scalars(self) -> dict[str, float]:
        """Lambda, of each head if they have their own."""
        values = self.value.flatten().tolist()
        return {"": values[0]} if len(values) == 1 else {f"/head{h}": v for h, v in enumerate(values, 1)}


class Gate(nn.Module):
    """A lambda for each event, made of its intensity by a perceptron 1-16-1; at first the same for all.

    Args:
        value: what it is at first.
    """

    def __init__(self, value: float) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(1, 16), nn.Linear(16, 1)
        nn.init.zeros_(self.outer.weight)
        nn.init.constant_(self.outer.bias, value)

    def forward(self, w: Keys) -> Keys:
        """Lambda of each key."""
        return self.outer(self.inner(w[..., None]).relu())[..., 0]

    @torch.no_grad()
    def scalars(self) -> dict[str, float]:
        """Lambda of intensity 0 and of intensity 1."""
        ends = self.forward(torch.tensor([0.0, 1.0], device=self.outer.weight.device)[:, None, None, None])
        return dict(zip(("/w0", "/w1"), ends.flatten().tolist(), strict=True))


class IASASRec(nn.Module):
    """SASRec with intensities in its attention.

    Args:
        catalog: sizes of the data set; only ``n_items`` is read.
        dim, block, blocks, heads, inner, window, position, scale, tied, hidden_dropout, attention_dropout,
            eps: as `SASRec` has them.
        form: ``add``, ``mul`` or ``val``.
        intensity_norm: how intensities are made comparable, a mode of `hydrec.layers.intensity`.
        norm_scope: ``causal``, over the positions up to each query, or ``window``, over the whole history,
            which serves one target a row only.
        lambda_mode: ``block``, ``head`` or ``event`` for one that each of these learns, an event's by its
            intensity; ``pinned`` for one that stays.
        lambda_value: what lambda is at first.
        lr: learning rate of the other parameters.
        lambda_lr_mult: that of lambda, as a multiple.

    Raises:
        InputError: an option is none of those above, or a number makes no sense.
    """

    def __init__(
        self,
        catalog: Catalog,
        *,
        dim: int,
        block: str,
        blocks: int,
        heads: int,
        inner: int,
        window: int,
        position: str,
        scale: bool,
        tied: bool,
        hidden_dropout: float,
        attention_dropout: float,
        eps: float,
        form: str,
        intensity_norm: str,
        norm_scope: str,
        lambda_mode: str,
        lambda_value: float,
        lr: float,
        lambda_lr_mult: float,
    ) -> None:
        super().__init__()
        self.item = nn.Embedding(catalog.n_items + 1, at_least("model.net.dim", dim, 1), padding_idx=PAD)
        self.scale = math.sqrt(dim) if scale else 1.0
        self.position = transformer.Positions(window, dim, position=position)
        self.encoder = transformer.Encoder(
            dim,
            block=block,
            blocks=blocks,
            heads=heads,
            inner=inner,
            hidden_dropout=hidden_dropout,
            attention_dropout=attention_dropout,
            eps=eps,
        )
        self.candidate = self.item if tied else nn.Embedding(catalog.n_items + 1, dim, padding_idx=PAD)
        transformer.initialise(self, block)

        self.form = _choose("form", form, FORMS)
        self.mode = _choose("intensity_norm", intensity_norm, intensity.MODES)
        self.normalise = _choose("norm_scope", norm_scope, {"causal": _causal, "window": _window})
        self.causal = norm_scope == "causal"
        strengths: dict[str, Callable[[float], nn.Module]] = {
            "block": partial(Strength, heads=1, learnt=True),
            "head": partial(Strength, heads=heads, learnt=True),
            "event": Gate,
            "pinned": partial(Strength, heads=1, learnt=False),
        }
        strength = _choose("lambda_mode", lambda_mode, strengths)
        # after all others: a gate draws random numbers, and SASRec's must stay the same
        self.strengths: Any = nn.ModuleList(strength(lambda_value) for _ in range(blocks))
        self.lambda_lr = lr * lambda_lr_mult

    def encode(self, batch: SequenceBatch) -> tuple[Hidden, Float[Tensor, ""]]:
        """The transformer's output where something is supervised, and no term of a loss."""
        positions = batch.items.shape[1]
        x = self.scale * self.item(batch.items) + self.position(batch.lengths, positions)
        w = self.normalise(self.mode, batch)
        weigh = [partial(self.form, w, strength(w)) for strength in self.strengths]
        hidden = self.encoder(x, attention.causal(positions, x.device), weigh)
        vectors = at_targets(hidden, batch)
        return Hidden(vectors), vectors.new_zeros(())

    def score(self, state: Hidden, items: Int[Tensor, "*M C"]) -> Float[Tensor, "M C"]:
        """Scores of candidates for M selected rows, fields (M, D), of the state."""
        return scoring.dot(state.vectors[:, None], self.candidate(items))[:, 0]

    def products(self, state: Hidden, items: Int[Tensor, " C"]) -> tuple[Tensor, Tensor, None]:
        """What `score` multiplies: vectors (M, D), of items (C, D), and what it adds (C,)."""
        return state.vectors, self.candidate(items), None

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Lambda apart, with its own learning rate and without weight decay."""
        lambdas = list(self.strengths.parameters())
        others = [p for name, p in self.named_parameters() if not name.startswith("strengths.")]
        return [{"params": others}, {"params": lambdas, "lr": self.lambda_lr, "weight_decay": 0.0}]

    def scalars(self) -> dict[str, float]:
        """Lambda of each block, numbered from 1."""
        return {
            f"lambda/block{number}{name}": value
            for number, strength in enumerate(self.strengths, 1)
            for name, value in strength.scalars().items()
        }


def _causal(mode: Callable[..., Tensor], batch: SequenceBatch) -> Float[Tensor, "B 1 T T"]:
    seen = intensity.causal(filled(batch.lengths, batch.items.shape[1]))
    return mode(batch.values[:, None], seen)[:, None]


def _window(mode: Callable[..., Tensor], batch: SequenceBatch) -> Float[Tensor, "B 1 1 T"]:
    if batch.targets.shape[1] > 1:
        raise InputError(
            "model.net.norm_scope=window shows a position the intensities after it where all are trained: use"
            " causal, or model.samples=prefixes"
        )
    return mode(batch.values, filled(batch.lengths, batch.items.shape[1]))[:, None, None]


def _choose(key: str, value: str, options: dict[str, Any]) -> Any:
    return options[one_of(f"model.net.{key}", value, options)]

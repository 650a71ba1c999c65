"""A finished run whose model is used: recommendations and click probabilities, from the folder alone.

Shapes: B histories or showings, T positions, V items, C candidates, E masked items, M scored rows, K best, W
columns of codes.
"""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from hydra.utils import get_class, instantiate
from jaxtyping import Float, Int
from torch import Tensor

from hydrec.batch import PAD, Catalog, ClickCatalog, SequenceBatch
from hydrec.callbacks import read_checkpoint
from hydrec.cloze import Cloze
from hydrec.errors import InputError, at_least
from hydrec.explain.run import FinishedRun
from hydrec.given import Given, Histories, first, histories, known, moment, seconds, table
from hydrec.showings import Showings
from hydrec.tasks import Click

LOW = 2**32  # keys of `best` have the score above these bits, and the item below
NOTHING = -(2**63)  # the key of no item

logger = logging.getLogger("hydrec")


class LoadedRun:
    """The model of a finished run with the weights that were tested, and the ids that it knows.

    Args:
        run: folder of the run.

    Raises:
        InputError: it is no run folder, of a run that is not finished, or of other sources of hydrec.

    Attributes:
        opened: configuration and record of the run.
        items: ``catalog.parquet``.
        users: ``users.parquet``.
        dated: whether the run's data have times.
        net: the net, in evaluation mode.
        cloze: puts a hidden event behind a history, for nets that are asked so; else ``None``.
        showings: of a click model, makes its batches; else ``None``.
    """

    def __init__(self, run: str | Path) -> None:
        self.opened = FinishedRun(str(run))
        cfg, about = self.opened.cfg, self.opened.about
        self.dated = about["dataset"]["tie_share"] is not None
        self.items, self.users = self._read("catalog.parquet"), self._read("users.parquet")
        self.showings: Showings | None = None
        if get_class(cfg.model._target_) is Click:
            self.showings = Showings(cfg, self.items, self.users, self._read("fields.parquet"), self.dated)
            catalog: Catalog | ClickCatalog = self.showings.catalog
        else:
            nothing = torch.empty(0, dtype=torch.int64)
            catalog = Catalog(
                n_users=len(self.users),
                n_items=len(self.items),
                users=nothing,
                items=nothing,
                times=nothing,
                values=nothing.float(),
                targets=torch.tensor([0, *self.items["train_targets"]]),
            )
        self.net: Any = instantiate(cfg.model.net, _convert_="all")(catalog)
        make = instantiate(cfg.model.get("cloze"), _convert_="all")
        self.cloze: Cloze | None = make(catalog) if make else None
        checkpoint = self.opened.folder.best if cfg.fit else Path(cfg.ckpt_path)
        weights = read_checkpoint(checkpoint)["state_dict"]
        try:
            self.net.load_state_dict(
                {key[4:]: value for key, value in weights.items() if key.startswith("net.")}
            )
        except RuntimeError as error:  # torch's, of names and shapes
            raise InputError(
                f"{checkpoint} does not fit the net that these sources of hydrec make: use those of the run"
            ) from error
        self.net.eval()

    def _read(self, name: str) -> pl.DataFrame:
        path = self.opened.folder.path / name
        try:
            return pl.read_parquet(path)
        except (OSError, pl.exceptions.PolarsError) as error:
            best = self.opened.folder.best
            raise InputError(
                f"{path} cannot be read ({str(error).splitlines()[0]}): where an earlier hydrec left none,"
                f" the command of the run with fit=false ckpt_path={best} makes a folder that has it"
            ) from error

    # Recommendations ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def recommend(
        self,
        given: Given,
        *,
        k: int = 20,
        mask_history: bool | None = None,
        candidates: Given | list[str] | None = None,
        now: str | int | None = None,
        batch_size: int | None = None,
    ) -> pl.DataFrame:
        """The best items for each history; equal scores come in the order of the catalogue.

        Args:
            given: histories, as `hydrec.given.histories` has them: a polars frame or the name of a file.
                Users may be new; the last ``protocol.window`` events of each are read.
            k: items of a user, at most.
            mask_history: whether items of the whole history are left out; ``None`` as the run's test did.
            candidates: raw ids, or a table with a column ``item``: nothing else is recommended.
            now: when the recommendation is asked for, of all users: seconds since 1970 or an ISO date; or the
                name of a column of the histories, whose value beside a user's last event counts. ``None`` for
                the time of the last event. For models that read it; HGNN is one.
            batch_size: histories read at once; ``None`` as in the run's test. Changes speed and memory, and
                results by no more than rounding.

        Returns:
            Columns ``user``, ``rank`` from 1, ``item``, ``score`` and, where the run has them, ``title``.
            Users in the order in which they first appear.

        Raises:
            InputError: the run is of a click model, an option makes no sense, or a table cannot be used.
        """
        cfg = self.opened.cfg
        if self.showings is not None:
            raise InputError(
                f"{self.opened.folder.path} is of {cfg.names.model}, a model of clicks: it scores showings"
                " (score)"
            )
        at_least("k", k, 1)
        size = cfg.eval_batch_size if batch_size is None else at_least("batch_size", batch_size, 1)
        mask = cfg.protocol.mask_history if mask_history is None else mask_history
        events = histories(given, "histories", self.items["raw"], dated=self.dated)
        asked = self._asked(events, now)
        items = torch.arange(1, len(self.items) + 1)
        if candidates is not None:
            items = self._candidates(candidates)
        users = torch.from_numpy(known(events.users, self.users["raw"], "histories", ""))
        found = []
        for start in range(0, len(asked), size):
            some = np.arange(start, min(start + size, len(asked)))
            batch = gathered(events, asked, users, some, cfg.protocol.window)
            found.append(self._best(batch, past(events, some) if mask else None, items, k))
        return self._named(events, torch.cat(found))

    def _asked(self, events: Histories, now: str | int | None) -> np.ndarray:
        """(n,) when the recommendations are asked for."""
        end = events.offsets[1:] - 1
        last = events.times[end]
        if not self.dated:
            if now is not None:
                raise InputError(f"now={now}: the data of this run have no times; leave it out")
            return last + 1
        if now is None:
            return last
        time = moment(now)
        if time is not None:
            asked = np.full(len(end), time)
        elif now in events.events.columns:
            asked = seconds(events.events[str(now)][end], f"histories, column {now}")
        else:
            raise InputError(f"now={now}: neither seconds, nor an ISO date, nor a column of the histories")
        if (early := asked < last).any():
            user = events.users[int(early.argmax())]
            raise InputError(
                f"now={now} is before the last event of {int(early.sum())} users, as of {user}: leave out"
                " events after it"
            )
        return asked

    def _candidates(self, given: Given | list[str]) -> Int[Tensor, " C"]:
        frame = (
            pl.DataFrame({"item": given})
            if isinstance(given, list)
            else table(given, "candidates", ("item",))
        )
        items = np.unique(known(frame["item"], self.items["raw"], "candidates", "left out"))
        items = items[items > 0]
        if not len(items):
            raise InputError("candidates: the run knows none of them; ids are those of its raw files")
        return torch.from_numpy(items)

    def encode(self, batch: SequenceBatch) -> Any:
        """The net's state of B histories, float32, fields (B, ...)."""
        state, _ = self.net.encode(batch if self.cloze is None else self.cloze.ask(batch))
        return type(state)(*(x[:, 0].float() if x.is_floating_point() else x[:, 0] for x in state))

    def _best(
        self, batch: SequenceBatch, masked: Int[Tensor, "B E"] | None, items: Int[Tensor, " C"], k: int
    ) -> Int[Tensor, "B K"]:
        """Keys of the best items of a batch, in parts of rows as the run's test has them."""
        chunk = self.opened.cfg.model.chunk
        state = self.encode(batch)
        some = max(1, chunk // len(items))
        found = []
        for start in range(0, len(batch.users), some):
            part = slice(start, start + some)
            score = partial(self.net.score, type(state)(*(x[part] for x in state)))
            rows = len(batch.users[part])
            found.append(best(score, rows, items, None if masked is None else masked[part], k=k, limit=chunk))
        return torch.cat(found)

    def _named(self, events: Histories, keys: Int[Tensor, "n K"]) -> pl.DataFrame:
        """Keys as a table, by raw ids."""
        real = (keys != NOTHING).numpy()
        user, place = real.nonzero()
        if (short := ~real.any(1)).any():
            logger.warning(
                "histories: %d users have met all candidates (%s): nothing is left for them",
                *(int(short.sum()), first(events.users.filter(pl.Series(short)))),
            )
        scores, items = (each.numpy()[real] for each in unpacked(keys))
        frame = pl.DataFrame(
            {
                "user": events.users[user],
                "rank": place + 1,
                "item": self.items["raw"][items - 1],
                "score": scores,
            }
        )
        if "title" in self.items.columns:
            frame = frame.with_columns(title=self.items["title"][items - 1])
        return frame

    # Clicks -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def score(
        self, given: Given, *, histories: Given | None = None, batch_size: int | None = None
    ) -> pl.DataFrame:
        """The probability that an item is clicked, for each showing.

        Args:
            given: showings: a frame or a file with columns ``user``, ``item``, ``time`` (where the data of
                the run have times) and the fields of the model, as `hydrec.showings.Showings` has them.
            histories: events of the users up to the showings, as `hydrec.given.histories` has them; ``None``
                for none.
            batch_size: showings scored at once; ``None`` as in the run's test.

        Returns:
            ``user``, ``item``, ``time`` where it is given, ``logit`` and ``probability``; null for items that
            the run does not know.

        Raises:
            InputError: the run is of a model that ranks items, or a table cannot be used.
        """
        cfg = self.opened.cfg
        if self.showings is None:
            raise InputError(
                f"{self.opened.folder.path} is of {cfg.names.model}, which ranks items for a history: it"
                " recommends (leave out score)"
            )
        size = cfg.eval_batch_size if batch_size is None else at_least("batch_size", batch_size, 1)
        shown, batches = self.showings(given, histories, size)
        logits = torch.cat([self.net(batch)[0].float() for batch in batches])
        if not logits.isfinite().all():
            raise InputError("a logit is not finite: the net has diverged; use another run")
        real = np.flatnonzero(shown["number"].to_numpy())
        scored = pl.DataFrame(
            {"row": real, "logit": logits.numpy(), "probability": logits.double().sigmoid().numpy()}
        )
        return (
            shown.drop("number")
            .with_row_index("row")
            .with_columns(pl.col("row").cast(pl.Int64))
            .join(scored, on="row", how="left", maintain_order="left")
            .drop("row")
        )


def gathered(
    events: Histories, asked: np.ndarray, users: Tensor, some: np.ndarray, window: int
) -> SequenceBatch:
    """The last events of some users, as an evaluation has them, with no target.

    Args:
        events: of all users.
        asked: (n,) seconds, when the recommendations are asked for.
        users: (n,) numbers of the users, 0 for those the run does not know.
        some: (B,) positions of users.
        window: T.
    """
    last = events.offsets[some + 1]
    start = np.maximum(events.offsets[some], last - window)
    place = start[:, None] + np.arange(window)
    real = place < last[:, None]
    place = np.where(real, place, start[:, None])  # any event: padding is overwritten
    origin = events.times[start][:, None]
    columns = dict(
        items=np.where(real, events.items[place], PAD),
        times=np.where(real, events.times[place] - origin, 0),
        values=np.where(real, events.values[place], np.float32(0)),
        lengths=last - start,
        targets=np.full((len(some), 1), PAD),
        target_times=asked[some][:, None] - origin,
        users=users.numpy()[some],
        rows=some,
    )
    return SequenceBatch(**{name: torch.from_numpy(column) for name, column in columns.items()})


def past(events: Histories, some: np.ndarray) -> Int[Tensor, "B E"]:
    """All items of the whole histories of some neighbouring users; ``PAD`` fills."""
    counts = np.diff(events.offsets)[some]
    found = np.full((len(some), counts.max()), PAD)
    found[np.arange(counts.max()) < counts[:, None]] = events.items[
        events.offsets[some[0]] : events.offsets[some[-1] + 1]
    ]
    return torch.from_numpy(found)


def best(
    score: Callable[[Tensor], Tensor],
    rows: int,
    items: Int[Tensor, " C"],
    masked: Int[Tensor, "M E"] | None,
    *,
    k: int,
    limit: int,
) -> Int[Tensor, "M K"]:
    """The best k items of M rows, from the best down, as keys that `unpacked` reads.

    A key orders by score, then by item from the first: equal scores have one order whatever the parts.

    Args:
        score: gives the (M, c) scores of items (c,).
        rows: M.
        items: candidates, ascending.
        masked: items that are not recommended; ``PAD`` fills.
        k: where fewer are left, keys are ``NOTHING``.
        limit: scores held at once.

    Raises:
        InputError: a score is not finite.
    """
    width = min(len(items), max(1, limit // rows))
    found = torch.full((rows, min(k, len(items))), NOTHING)
    for start in range(0, len(items), width):
        # all parts are of one width, as in the test: BLAS may give other bits in a call of another shape
        some = items[torch.arange(start, start + width).clamp(max=len(items) - 1)]
        scores = score(some).float() + 0.0  # no negative zero
        if not scores.isfinite().all():
            raise InputError("a score is not finite: the net has diverged; use another run")
        keys = (_ordered(scores.contiguous().view(torch.int32)).long() * LOW) + (LOW - 1 - some)
        if masked is not None:
            place = torch.searchsorted(some, masked)
            here = some[place.clamp(max=width - 1)] == masked
            keys = torch.cat([keys, keys[:, :1]], 1).scatter_(1, place.where(here, width), NOTHING)
        found = torch.cat([found, keys[:, : min(width, len(items) - start)]], 1).topk(found.shape[1]).values
    return found


def unpacked(keys: Int[Tensor, "M K"]) -> tuple[Float[Tensor, "M K"], Int[Tensor, "M K"]]:
    """Scores and items of keys."""
    scores = _ordered((keys >> 32).int()).view(torch.float32)
    return scores, LOW - 1 - (keys & (LOW - 1))


def _ordered(bits: Int[Tensor, "M C"]) -> Int[Tensor, "M C"]:
    """Bits of float32 as integers of the same order, and back."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)

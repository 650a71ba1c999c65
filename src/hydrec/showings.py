"""What a click model is asked: showings of items with their fields and the histories of their users.

Shapes: n showings, B of a batch, T behaviours, W columns of codes, U users, V items.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from hydra.utils import get_class
from omegaconf import DictConfig

from hydrec.batch import PAD, ClickBatch, ClickCatalog, Field
from hydrec.data.clicks import DAY, ClickDays, Labelled
from hydrec.data.features import CATEGORIES, DERIVED
from hydrec.data.fields import Coding
from hydrec.data.log import Feature, InteractionLog, ragged
from hydrec.errors import InputError
from hydrec.given import Given, Histories, histories, known, numbers, seconds, table, texts

ELEMENTS = 2**22  # events copied at once, of derived columns
NONE = np.empty(0, np.int64)


class Asked(NamedTuple):
    """Showings, by number.

    Attributes:
        rows: (n,) which they are.
        items, users: (n,) 0 for users that the run does not know.
        times: (n,) seconds.
        codes, weights: (n, W) fields of user and context.
        first, last: (n,) the history is the behaviours ``first:last``.
    """

    rows: np.ndarray
    items: np.ndarray
    users: np.ndarray
    times: np.ndarray
    codes: np.ndarray
    weights: np.ndarray
    first: np.ndarray
    last: np.ndarray


class Showings:
    """Makes batches of a click model of a finished run.

    A field is read from the column of its name, whose values are those of the raw files; null is unknown. A
    field without a column is the user's own, as training knew it (unknown for new users), or is derived from
    the history and the time (`hydrec.data.features`); any other needs its column, and so do derived ones
    where rows brought their own histories.

    A history is what the run's protocol makes of the events up to the time of the showing, without the
    showing itself: where rows had labels, those with ``label`` 1, or of at least the run's threshold; under
    ``click_days`` those of earlier days. Derived columns read all events.

    Args:
        cfg: configuration of the run.
        items: ``catalog.parquet``.
        users: ``users.parquet``.
        fields: ``fields.parquet``.
        dated: whether the data of the run have times.

    Attributes:
        catalog: what the net may know.
    """

    def __init__(
        self, cfg: Any, items: pl.DataFrame, users: pl.DataFrame, fields: pl.DataFrame, dated: bool
    ) -> None:
        self.items, self.users, self.dated = items, users, dated
        self.window = cfg.protocol.window
        protocol = get_class(cfg.protocol._target_)
        self.overnight = issubclass(protocol, ClickDays)
        self.labelled = issubclass(protocol, Labelled)
        self.threshold = cfg.protocol.get("threshold")
        history = cfg.dataset.reader.get("history")
        self.own = isinstance(history, DictConfig)  # rows brought histories, without times
        self.fields = [_field(row) for row in fields.iter_rows(named=True)]
        ahead, of_items = (
            tuple(field for field, *_ in self.fields if (field.group == "item") == item)
            for item in (False, True)
        )
        codes, weights = _coded(items)
        self.catalog = ClickCatalog(
            n_users=len(users),
            n_items=len(items),
            clicked=torch.tensor([0, *items["train_clicked"]]),
            shown=torch.tensor([0, *items["train_shown"]]),
            fields=ahead,
            item_fields=of_items,
            item_codes=torch.from_numpy(np.pad(codes, ((1, 0), (0, 0)))),
            item_weights=torch.from_numpy(np.pad(weights, ((1, 0), (0, 0)))),
        )

    def __call__(
        self, given: Given, past: Given | None, batch_size: int
    ) -> tuple[pl.DataFrame, Iterator[ClickBatch]]:
        """Reads showings and histories.

        Args:
            given: the showings.
            past: the histories, or ``None``.
            batch_size: B.

        Returns:
            Columns ``user``, ``item``, ``time`` if there is one, and ``number`` of the item, 0 if unknown, of
            all rows; and the batches of those with a known item.

        Raises:
            InputError: a table cannot be used; names the column.
        """
        frame = table(given, "rows", ("user", "item", "time") if self.dated else ("user", "item"))
        item = known(frame["item"], self.items["raw"], "rows", "not scored")
        kept = [name for name in ("user", "item", "time") if name in frame.columns]
        shown = frame.select(kept).with_columns(number=pl.Series(item))
        if not item.any():
            raise InputError("rows: no item is known to the run; ids are those of its raw files")
        frame, item = frame.filter(item > 0), item[item > 0]
        time = seconds(frame["time"], "rows") if self.dated else np.zeros(len(frame), np.int64)
        events = self._events(past)
        owner = known(texts(frame["user"]), events.users, "rows", "") - 1
        first, last = self._span(events, owner, time)
        if not self.dated:
            time = last - first  # the place in the user's history, as the log has it
        user = known(frame["user"], self.users["raw"], "rows", "")
        codes, weights = self._fields(frame, user, events, first, last, item, time)
        begin, end, behaviours = self._behaviours(events, owner, last, time)
        asked = Asked(np.arange(len(item)), item, user, time, codes, weights, begin, end)
        batches = (
            self._batch(behaviours, Asked(*(column[start : start + batch_size] for column in asked)))
            for start in range(0, len(item), batch_size)
        )
        return shown, batches

    def _events(self, past: Given | None) -> Histories:
        dated = self.dated and not self.own
        if past is not None:
            return histories(past, "histories", self.items["raw"], dated=dated)
        nobody = pl.Series(dtype=pl.String)
        return Histories(nobody, np.zeros(1, np.int64), NONE, NONE, NONE.astype(np.float32), pl.DataFrame())

    def _span(self, events: Histories, owner: np.ndarray, time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n,) first and last: the events up to some times are the events ``first:last``; -1 owns none."""
        first = np.where(owner < 0, 0, events.offsets[owner])
        if not len(events.items) or not self.dated or self.own:
            return first, np.where(owner < 0, 0, events.offsets[owner + 1])
        whose = np.repeat(np.arange(len(events.users)), np.diff(events.offsets))
        low, width = events.times.min() - 1, np.ptp(events.times) + 2
        ascending = whose * width + events.times - low
        upto = np.searchsorted(ascending, owner * width + np.clip(time - low, 0, width - 1), "right")
        return first, np.where(owner < 0, 0, upto)

    def _behaviours(
        self, events: Histories, owner: np.ndarray, last: np.ndarray, time: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, ...]]:
        """(n,) first and last of each showing's history, and what they point into: items, times, values."""
        clicked = np.ones(len(events.items), bool)
        if self.threshold is not None:
            if np.isnan(events.values).any():
                raise InputError(
                    f"histories: the run calls values of {self.threshold} and more clicks: it needs a value"
                    " of each event (column value)"
                )
            clicked = events.values >= self.threshold
        elif self.labelled and not self.own and "label" in events.events.columns:
            clicked = numbers(events.events["label"], "histories") == 1
        if self.overnight:
            _, last = self._span(events, owner, time // DAY * DAY - 1)
        before = np.concatenate([[0], clicked.cumsum()])
        end = before[last]
        begin = np.maximum(before[np.where(owner < 0, 0, events.offsets[owner])], end - self.window)
        return begin, end, (events.items[clicked], events.times[clicked], events.values[clicked])

    def _batch(self, behaviours: tuple[np.ndarray, ...], asked: Asked) -> ClickBatch:
        """As a test has it; T is the longest history, at least 1."""
        lengths = asked.last - asked.first
        place = asked.first[:, None] + np.arange(max(1, lengths.max()))
        real = place < asked.last[:, None]
        items, times, values = (
            np.where(real, column[np.where(real, place, 0)], np.zeros(1, column.dtype))
            if len(column)
            else np.zeros(place.shape, column.dtype)
            for column in behaviours
        )
        origin = np.where(lengths > 0, times[:, 0], asked.times)
        if self.own:
            origin, times = asked.times, np.broadcast_to(asked.times[:, None], place.shape)
        columns = dict(
            items=items,
            times=np.where(real, times - origin[:, None], 0),
            values=values,
            lengths=lengths,
            candidates=asked.items,
            labels=np.zeros_like(asked.items),
            target_times=asked.times - origin,
            users=asked.users,
            codes=asked.codes,
            weights=asked.weights,
            rows=asked.rows,
        )
        return ClickBatch(**{name: torch.from_numpy(column) for name, column in columns.items()})

    # Fields -------------------------------------------------------------------------------------------------

    def _fields(
        self,
        frame: pl.DataFrame,
        user: np.ndarray,
        events: Histories,
        first: np.ndarray,
        last: np.ndarray,
        item: np.ndarray,
        time: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Codes (n, W) and weights (n, W) of the fields of user and context."""
        found, start = [(np.empty((len(frame), 0), np.int64), np.empty((len(frame), 0), np.float32))], 0
        own = _coded(self.users)
        for field, by, coding in self.fields:
            if field.group == "item":
                continue
            columns = slice(start, start + field.width * (by == "user"))
            start = columns.stop
            if field.name in frame.columns:
                found.append(coding(field, frame[field.name]))
            elif by == "user":
                unknown = coding(field, pl.Series([None], dtype=pl.String))
                found.append(
                    tuple(
                        np.concatenate([new, each[:, columns]])[user]
                        for new, each in zip(unknown, own, strict=True)
                    )
                )
            elif field.name in DERIVED and not self.own:
                words = self._derived(field.name, events, first, last, item, time)
                found.append(coding(field, words))
            else:
                raise InputError(f"rows: the column {field.name} is needed: the model reads it")
        codes, weights = (np.concatenate(each, 1) for each in zip(*found, strict=True))
        return codes, weights

    def _derived(
        self,
        name: str,
        events: Histories,
        first: np.ndarray,
        last: np.ndarray,
        item: np.ndarray,
        time: np.ndarray,
    ) -> pl.Series:
        """(n,) words of a derived column: each showing is the last event of a user of its own."""
        features = {}
        for key in CATEGORIES:
            if key in self.items.columns:
                known_ones = self.items[key].list.eval(pl.element().replace("unknown", None))
                features[key] = Feature.of(known_ones).padded()
        counts = last - first
        ends = np.cumsum(counts + 1)
        found = []
        for part in np.split(
            np.arange(len(item)), np.searchsorted(ends, np.arange(ELEMENTS, ends[-1], ELEMENTS))
        ):
            owner, place = ragged(counts[part] + 1)
            shown = place == counts[part][owner]
            past = (first[part][owner] + place)[~shown]
            items = _joined(shown, events.items[past], item[part])
            times = _joined(shown, events.times[past], time[part])
            values = _joined(shown, events.values[past], np.full(len(part), np.nan, np.float32))
            log = InteractionLog(
                name="rows",
                # before them an event at a time of day: `hour` refuses a log of whole days
                users=np.append(1, owner + 2).astype(np.int32),
                items=np.append(PAD, items).astype(np.int32),
                times=np.append(1, times),
                values=np.append(np.float32(np.nan), values),
                labels=None,
                offsets=np.concatenate([[0, 0, 1], 1 + np.cumsum(counts[part] + 1)]),
                past_items=None,
                past_offsets=None,
                user_ids=np.empty(len(part) + 2, "U1"),
                item_ids=np.empty(len(self.items) + 1, "U1"),
                item_titles=None,
                item_features=features,
                user_features={},
                event_features={},
                dated=self.dated,
                fingerprint="",
            )
            made = DERIVED[name](log)
            words = np.array([None, None, *made.names[2:]], object)
            found.append(words[made.codes[1:][shown]])
        # a list: polars takes no array of objects that begins with None
        return pl.Series(np.concatenate(found).tolist(), dtype=pl.String)


def _joined(shown: np.ndarray, past: np.ndarray, own: np.ndarray) -> np.ndarray:
    """A column of histories with the showings behind them."""
    column = np.empty(len(shown), past.dtype)
    column[~shown], column[shown] = past, own
    return column


def _field(row: dict[str, Any]) -> tuple[Field, str, Coding]:
    """A row of ``fields.parquet``."""
    coding = Coding(
        **{key: row[key] for key in ("form", "first", "mean", "spread")},
        words=np.array(row["words"], dtype=str),
        bounds=np.array(row["bounds"], np.float64),
        seen=np.array(row["seen"], bool),
    )
    return Field(*(row[key] for key in Field._fields)), row["by"], coding


def _coded(frame: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Columns ``codes`` and ``weights``, no column wide where there are none."""
    if "codes" not in frame.columns:
        return np.empty((len(frame), 0), np.int64), np.empty((len(frame), 0), np.float32)
    return frame["codes"].to_numpy(), frame["weights"].to_numpy()

"""What a click model embeds beside ids: the fields that a dataset declares, as codes and weights.

A field is a feature of users, items or events of the log, a derived column (`hydrec.data.features`), or
``user_id``. It is a category unless the dataset gives it another form.

Letters: B rows, N rows of the log, W columns of codes.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypedDict

import numpy as np
import polars as pl

from hydrec.batch import Field
from hydrec.data.features import DERIVED
from hydrec.data.log import Feature, InteractionLog, ragged
from hydrec.data.options import expect
from hydrec.errors import InputError, one_of

GROUPS = ("user", "context", "item")
FORMS = ("bucket", "number")
BUCKETS = 20  # of a numeric field, at quantiles of the training part
USER_ID = "user_id"
PAD, UNKNOWN, FIRST = 0, 1, 2  # codes

logger = logging.getLogger("hydrec")


class Trained(NamedTuple):
    """What of a log is in training, once for each time it is.

    Attributes:
        rows: (n,) row of the log of each training sample.
        items: (n,) its item.
    """

    rows: np.ndarray
    items: np.ndarray


@dataclass(frozen=True)
class Encoded:
    """A field with the codes and weights of its owners.

    Attributes:
        field: its name, group and sizes.
        by: whose codes these are: ``row``, ``user`` or ``item``.
        codes: (owners, width) of the least type that holds them.
        weights: (owners, width) float32, or None where all are 1.
        coding: what made them, for owners that the log does not know.
    """

    field: Field
    by: str
    codes: np.ndarray
    weights: np.ndarray | None
    coding: "Coding"


@dataclass(frozen=True)
class Coding:
    """How training turned the values of a field into codes and weights; a run folder keeps it.

    Attributes:
        form: ``category``, ``bucket`` or ``number``.
        first: how many characters of a value count; None for all.
        words: of a category, the values of the codes from 2 on.
        bounds: of buckets, float64, ascending.
        mean, spread: of numbers.
        seen: (size,) bool, codes that training has; the others are unknown.
    """

    form: str
    first: int | None
    words: np.ndarray
    bounds: np.ndarray
    mean: float
    spread: float
    seen: np.ndarray

    def __call__(self, field: Field, values: pl.Series) -> tuple[np.ndarray, np.ndarray]:
        """Codes (n, width) and weights (n, width) of values, or of lists of them; null is unknown.

        Raises:
            InputError: a value is no number where it must be one, or there are more than ``width`` in a list.
        """
        feature = Feature.of(values)
        if self.first is not None:
            feature = _cut(feature, self.first)
        if self.form in FORMS:
            numbers = _numbers(feature, f"the column {field.name}", "the rows")
            codes, weights = (
                _bucketed(numbers, self.bounds)
                if self.form == "bucket"
                else _scaled(numbers, self.mean, self.spread)
            )
        else:
            words = self.words[: len(self.seen) - FIRST]  # derived columns name more than the log has
            place = pl.Series(feature.vocabulary.astype(object), dtype=pl.String).replace_strict(
                pl.Series(words.astype(object), dtype=pl.String),
                np.arange(FIRST, len(words) + FIRST, dtype=np.int32),
                default=UNKNOWN,
                return_dtype=pl.Int32,
            )
            codes = np.concatenate([[PAD, UNKNOWN], place.to_numpy()]).astype(np.int32)[feature.codes]
            codes, weights = _padded(replace(feature, codes=codes))
        lacking = field.width - codes.shape[1]
        if lacking < 0:
            raise InputError(
                f"the column {field.name} has {codes.shape[1]} values in a row; training knew {field.width}"
            )
        if weights is None:
            weights = np.ones(codes.shape, np.float32)
        codes, weights = (np.pad(each, ((0, 0), (0, lacking))) for each in (codes, weights))
        return _known(codes, self.seen).astype(np.int64), weights


class Declared(TypedDict, total=False):
    """What a dataset declares, as yaml has it."""

    user: list[str | int] | None
    context: list[str | int] | None
    item: list[str | int] | None
    form: dict[str | int, str | int] | None


def declared(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Checks what a dataset declares.

    Args:
        fields: ``user``, ``context`` and ``item``, names, where a name with ``*`` is left out if the log
            lacks what it is made of; ``form``, name -> ``bucket`` for a number put into at most 20 buckets
            at quantiles of the training part, ``number`` for one that scales a vector of its own, or a whole
            number n for a category made of the first n characters.

    Raises:
        InputError: an entry is none of these, or a name comes twice.
    """
    expect("dataset.fields", fields, Declared)
    given = {group: [str(name) for name in fields.get(group) or ()] for group in GROUPS}  # 7 may be a column
    names = [name.removesuffix("*") for group in GROUPS for name in given[group]]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"dataset.fields: {name} comes twice; it belongs into one group")
    forms = {str(name).removesuffix("*"): form for name, form in (fields.get("form") or {}).items()}
    for name, form in forms.items():
        one_of("dataset.fields.form", name, names)
        if type(form) is not int or form < 1:
            one_of(f"dataset.fields.form.{name}", form, (*FORMS, "a number of characters"))
    return {**given, "form": forms}


def encode(log: InteractionLog, fields: Mapping[str, Any], trained: Trained) -> list[Encoded]:
    """Makes the declared fields of a log: user's, then the context's, then items'.

    Args:
        log: the log.
        fields: as `declared` returns them.
        trained: what training has; a code that it never has becomes unknown, and only it makes buckets.

    Raises:
        InputError: there is no such feature, or it is not of that form.
    """
    found, absent = [], []
    for group in GROUPS:
        for name in fields[group]:
            asked = name.removesuffix("*")
            try:
                by, feature = _find(log, asked, group)
            except InputError:
                if asked == name:
                    raise
                absent.append(asked)
                continue
            found.append(_encode(log, asked, group, by, feature, fields["form"].get(asked), trained))
    if absent:
        logger.info("%s: the data do not have the fields %s; left out", log.name, ", ".join(absent))
    return found


def stacked(encoded: Sequence[Encoded], owners: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Codes (B, W) int64 and weights (B, W) float32 of B owners, field beside field.

    Args:
        encoded: the fields.
        owners: for each kind ``by``, the B of them.
    """
    size = len(next(iter(owners.values())))
    codes = np.zeros((size, sum(each.field.width for each in encoded)), np.int64)
    weights = np.ones(codes.shape, np.float32)
    start = 0
    for each in encoded:
        columns = slice(start, start + each.field.width)
        codes[:, columns] = each.codes[owners[each.by]]
        if each.weights is not None:
            weights[:, columns] = each.weights[owners[each.by]]
        start = columns.stop
    return codes, weights


def _encode(
    log: InteractionLog, name: str, group: str, by: str, feature: Feature, form: Any, trained: Trained
) -> Encoded:
    owners = {"row": trained.rows, "user": log.users[trained.rows], "item": trained.items}[by]
    met = np.zeros(len(feature.offsets) - 1, bool)
    met[owners] = True
    if isinstance(form, int):
        feature = _cut(feature, form)
    bounds, mean, spread = np.empty(0), 0.0, 1.0
    if form in FORMS:
        numbers = _numbers(feature, f"dataset.fields.form.{name}={form}", log.name)
        known = numbers[met][np.isfinite(numbers[met])]
        if len(known):
            bounds = np.unique(np.quantile(known, np.arange(1, BUCKETS) / BUCKETS))
            mean, spread = float(known.mean()), float(known.std()) or 1.0
        codes, weights = _bucketed(numbers, bounds) if form == "bucket" else _scaled(numbers, mean, spread)
    else:
        codes, weights = _padded(feature)
        if len(feature.vocabulary) > BUCKETS and _fractions(feature.vocabulary):
            logger.warning(
                "%s: each of the %d numbers of %s is a category; dataset.fields.form={%s:bucket} makes %d",
                *(log.name, len(feature.vocabulary), name, name, BUCKETS),
            )
    size = max(int(codes.max()) + 1, FIRST)
    seen = np.zeros(size, bool)
    seen[codes[met]] = True
    codes = _known(codes, seen).astype(np.min_scalar_type(size))
    if by != "row":
        codes[PAD] = PAD  # nobody's
    if weights is not None and by != "row":
        weights[PAD] = 0
    coding = Coding(
        form=form if form in FORMS else "category",
        first=form if isinstance(form, int) else None,
        words=feature.vocabulary[:0] if form in FORMS else feature.vocabulary,
        bounds=bounds,
        mean=mean,
        spread=spread,
        seen=seen,
    )
    return Encoded(Field(name, group, size, codes.shape[1]), by, codes, weights, coding)


def _find(log: InteractionLog, name: str, group: str) -> tuple[str, Feature]:
    """Whose the feature is, and its codes."""
    if group == "item":
        if not log.item_features:
            raise InputError(f"dataset.fields.item={name}: the items of {log.name} have no features; drop it")
        return "item", log.item_features[one_of("dataset.fields.item", name, log.item_features)]
    if name == USER_ID:
        codes = np.arange(log.n_users + 1, dtype=np.int32) + 1
        return "user", Feature(log.user_ids[1:], codes, np.arange(log.n_users + 2))
    if name in log.user_features:
        return "user", log.user_features[name]
    if name in log.event_features:
        return "row", log.event_features[name]
    known = [USER_ID, *log.user_features, *log.event_features, *DERIVED]
    column = DERIVED[one_of(f"dataset.fields.{group}", name, known)](log)
    return "row", Feature(
        np.array(column.names[FIRST:]), column.codes.astype(np.int32), np.arange(len(log) + 1)
    )


def _fractions(vocabulary: np.ndarray) -> bool:
    """Whether all values are numbers, and not all whole ones."""
    try:
        return bool((vocabulary.astype(np.float64) % 1 != 0).any())
    except ValueError:
        return False


def _padded(feature: Feature) -> tuple[np.ndarray, np.ndarray | None]:
    """Codes (owners, width), and each one's share of its owner's, None where all owners have one."""
    counts = np.diff(feature.offsets)
    width = int(counts.max())
    if width == 1:
        return feature.codes[:, None], None
    owner, place = ragged(counts)
    codes = np.full((len(counts), width), PAD, np.int32)
    codes[owner, place] = feature.codes
    weights = np.zeros(codes.shape, np.float32)
    weights[owner, place] = (1 / counts)[owner]
    return codes, weights


def _cut(feature: Feature, length: int) -> Feature:
    """The feature whose values are the first characters of another's."""
    vocabulary, place = np.unique(feature.vocabulary.astype(f"U{length}"), return_inverse=True)
    codes = np.concatenate([[PAD, UNKNOWN], place + FIRST]).astype(np.int32)[feature.codes]
    return replace(feature, vocabulary=vocabulary, codes=codes)


def _numbers(feature: Feature, key: str, name: str) -> np.ndarray:
    """(owners,) float64, NaN where unknown.

    Raises:
        InputError: a value is no number, or an owner has several.
    """
    if (np.diff(feature.offsets) != 1).any():
        raise InputError(f"{key}: rows of {name} have several values; leave it a category")
    try:
        values = feature.vocabulary.astype(np.float64)
    except ValueError as error:
        raise InputError(f"{key}: {error} in {name}; leave it a category") from error
    return np.concatenate([[np.nan, np.nan], values])[feature.codes]


def _known(codes: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """The codes, those that training lacks as unknown."""
    return np.where(seen[codes] | (codes == PAD), codes, UNKNOWN)


def _bucketed(numbers: np.ndarray, bounds: np.ndarray) -> tuple[np.ndarray, None]:
    """Codes of the buckets between some bounds."""
    place = np.searchsorted(bounds, numbers, "right") + FIRST
    return np.where(np.isfinite(numbers), place, UNKNOWN)[:, None], None


def _scaled(numbers: np.ndarray, mean: float, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """One code for all, and standardised numbers as its weight; unknown weighs 1."""
    finite = np.isfinite(numbers)
    weights = np.where(finite, (numbers - mean) / spread, 1.0)
    return np.where(finite, FIRST, UNKNOWN)[:, None], weights.astype(np.float32)[:, None]

"""What a data card shows: tables and a page of diagrams, of the card alone, also if read from its file."""

import io
import math
from typing import NamedTuple

import numpy as np
import polars as pl
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from hydrec.data.inspect import AGAIN, BINS, GAPS, LEAKAGE, OVERLAP, QUANTILES, RARE, SHOWN, Card

SHARES = {
    "Leakage": LEAKAGE,
    "Overlap with training": OVERLAP,
    "Items met before": AGAIN,
}

# Tables -----------------------------------------------------------------------------------------------------


class Table(NamedTuple):
    """Cells as they are shown; the first column says what a row is."""

    title: str
    header: list[str]
    rows: list[list[str]]


def tables(card: Card) -> list[Table]:
    """What a card says in numbers, in the order in which to read it."""
    data, leakage, strength = card["dataset"], card["leakage"], card["intensity"]
    sizes = ("least", "lower_quartile", "median", "upper_quartile", "most")
    found = [
        Table("Log", ["", data["name"]], _counts(card)),
        Table(
            "Lengths",
            ["events of each", "least", "quarter", "median", "three quarters", "most", "mean"],
            [
                [whose, *(f"{one[key]:,.10g}" for key in sizes), f"{one['mean']:,.1f}"]
                for whose, one in card["lengths"].items()
            ],
        ),
        Table("Parts", ["", *data["parts"]], _parts(data["parts"])),
        Table(
            "From the last event of a history to the target (quantiles)",
            ["", "tied", *(f"{100 * q:g} %" for q in QUANTILES), "most", "reversed"],
            [
                [
                    name,
                    _percent(one["tied"]),
                    *map(_span, one["seconds"].values()),
                    _span(one["most_seconds"]),
                    _percent(one["reversed"]),
                ]
                for name, one in (card["recency"] or {}).items()
            ],
        ),
    ]
    if strength is not None:
        found += [_intensities(strength), _correlations(strength["popularity"])]
    for title, names in SHARES.items():
        rows = [[shown, *map(_percent, each)] for shown, each in _shares(leakage, names).items()]
        found.append(Table(title, ["share of", *leakage], rows))
    inputs = [
        [of, _count(len(group)), ", ".join(f"{name} {_count(codes)}" for name, codes in group.items()) or "-"]
        for of, group in (card["inputs"] or {}).items()
    ]
    found.append(
        Table("Fields of click models, beside the item's id", ["of", "fields", "with codes"], inputs)
    )
    fields = [
        [of, name, _count(one["categories"]), f"{one['values_a_row']:.2f}", _percent(one["unknown"])]
        for of, group in card["fields"].items()
        for name, one in group.items()
    ]
    found.append(
        Table("Fields beside the ids", ["of", "field", "categories", "values a row", "unknown"], fields)
    )
    return [table for table in found if table.rows]


def markdown(card: Card) -> str:
    """The tables as a section of a Markdown page."""
    lines = [f"## {_title(card)}", "", f"`{card['command']}`"]
    for title, header, rows in tables(card):
        lines += ["", f"### {title}", ""]
        lines += [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines) + "\n"


def _shares(parts: dict[str, Card], names: dict[str, str]) -> dict[str, list[float | None]]:
    """What is known of the parts, under the names that are shown."""
    found = {shown: [one.get(key) for one in parts.values()] for key, shown in names.items()}
    return {shown: each for shown, each in found.items() if each != [None] * len(each)}


def _counts(card: Card) -> list[list[str]]:
    data, time = card["dataset"], card["time"]
    rows = {
        "users": _count(data["users"]),
        "items": _count(data["items"]),
        "events": _count(data["interactions"]),
        "density": f"{100 * card['density']:.3g} %",
        "events that repeat a user and item": _percent(card["repeated"]),
    }
    if time is not None:
        tied = data["users_whose_last_two_tie"]
        rows |= {
            "events at the time of the user's event before": _percent(data["tie_share"]),
            "users whose last two events tie": f"{_count(tied)} ({_percent(tied / data['users'])})",
            "first event": f"{time['first']} UTC",
            "last event": f"{time['last']} UTC",
            "days between": f"{time['days']:,.1f}",
            "days with events": _count(time["days_with_events"]),
            "events a day": "-" if time["events_a_day"] is None else f"{time['events_a_day']:,.1f}",
        }
    rows["fingerprint"] = data["fingerprint"][:12]
    return [[name, shown] for name, shown in rows.items()]


def _parts(parts: dict[str, Card]) -> list[list[str]]:
    figures = {
        "samples": ("samples", _count),
        "base_rate": ("positives (base rate)", _percent),
        "users": ("users", _count),
        "items": ("items", _count),
        "samples_of_unseen_users": ("samples of users without a training sample", _count),
        "cold_targets": ("targets whose item is in no training sample (cold)", _count),
        "untrained_targets": ("targets whose item is no training target", _count),
        "targets_in_history": ("targets that the user met before", _percent),
        "cold_candidates": ("samples whose item no training sample shows (cold)", _count),
        "behaviours": ("events of a history (mean)", "{:.1f}".format),
        "samples_without_behaviours": ("samples without a history", _count),
    }
    return [
        [shown, *(form(part[key]) for part in parts.values())]
        for key, (shown, form) in figures.items()
        if key in parts["train"]
    ]


def _intensities(strength: Card) -> Table:
    missing, negative = _count(strength["missing"]), _count(strength["negative"])
    return Table(
        f"Intensity ({missing} missing and {negative} negative, 0 for the normalised)",
        ["", "cases", f"entropy of {BINS} bins", "at 0", "at 1", "std within a history"],
        [
            [
                name,
                _count(one["cases"]),
                f"{one['entropy_bits']:.2f} bits",
                _percent(one["zeros"]),
                _percent(one["ones"]),
                _decimal(one["mean_deviation"]),
            ]
            for name, one in {"raw, every event": strength["raw"], **strength["normalised"]}.items()
        ],
    )


def _correlations(popularity: Card) -> Table:
    less_mean = popularity["event_less_user_mean"]
    found = {
        f"mean intensity of an item with {RARE} or more": popularity["item_mean"],
        f"median intensity of an item with {RARE} or more": popularity["item_median"],
        "intensity of an event": popularity["event"],
        **{f"{mode} of an event less the user's mean": one for mode, one in less_mean.items()},
    }
    return Table(
        "Spearman's correlation with the item's events in training",
        ["", "cases", "rho", "95 % interval"],
        [
            [
                shown,
                _count(one["cases"]),
                _decimal(one["rho"]),
                " to ".join(map(_decimal, one["interval"] or [None])),
            ]
            for shown, one in found.items()
        ],
    )


def _title(card: Card) -> str:
    label = card["dataset"]["label"]
    return f"{card['dataset']['name']}, {card['protocol']['protocol']}{f' ({label})' if label else ''}"


def _count(n: int) -> str:
    return f"{n:,}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _decimal(x: float | None) -> str:
    return "-" if x is None else f"{x:.3f}"


def _span(seconds: float) -> str:
    for unit, size in (("y", 31557600), ("d", 86400), ("h", 3600), ("min", 60)):
        if abs(seconds) >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


# Diagrams ---------------------------------------------------------------------------------------------------

DRAWN = tuple(mode for mode in SHOWN if mode != "none")  # that one is raw already
PANELS = (
    *("time", "lengths", "recency", "fields"),
    *("raw", *DRAWN),
    *("popularity", "known", "leakage", "overlap"),
)
LEFT_OUT = {"time": ("time",), "recency": ("recency",), "intensity": ("raw", *DRAWN, "popularity")}
ABREAST = 4
PARTS = {"train": "#999999", "valid": "#56B4E9", "test": "#0072B2"}  # the colour-blind tell them apart too
GROUPS = {
    "item": "#0072B2",
    "user": "#D55E00",
    "event": "#009E73",
    "context": "#009E73",
    "behaviour": "#56B4E9",
}
KNOWN = {  # of the targets of a part
    "base_rate": "positives",
    "targets_in_history": "the user met before",
    "samples_of_unseen_users": "of users without a training sample",
    "cold_targets": "of an item in no training sample (cold)",
    "cold_candidates": "of an item that no training sample shows (cold)",
    "samples_without_behaviours": "without a history",
}
TICKS = {"1 s": 1, "1 min": 60, "1 h": 3600, "1 d": 86400, "30 d": 2592000, "1 y": 31557600}


def diagrams(card: Card) -> Figure:
    """Draws a card on one page."""
    data, strength = card["dataset"], card["intensity"]
    absent = [panel for figures, panels in LEFT_OUT.items() if card[figures] is None for panel in panels]
    panels = [panel for panel in PANELS if panel not in absent]
    rows = math.ceil(len(panels) / ABREAST)
    panels += ["."] * (rows * ABREAST - len(panels))
    layout = ConstrainedLayoutEngine(hspace=0.06, wspace=0.05)
    page = Figure(figsize=(15.6, 3.4 * rows), layout=layout)
    sizes = (
        f"{_count(data['users'])} users, {_count(data['items'])} items, {_count(data['interactions'])} events"
    )
    page.suptitle(f"{_title(card)}: {sizes}", fontsize=13, x=0.01, ha="left")
    axes = page.subplot_mosaic(np.reshape(panels, (rows, ABREAST)).tolist())
    for each in axes.values():
        each.spines[["top", "right"]].set_visible(False)
        each.tick_params(labelsize=8)
    if card["time"]:
        _draw_time(axes["time"], card["time"])
    _draw_lengths(axes["lengths"], card["lengths"])
    if card["recency"]:
        _draw_recency(axes["recency"], card["recency"])
    categories = {
        of: {name: one["categories"] for name, one in group.items()} for of, group in card["fields"].items()
    }
    _draw_fields(axes["fields"], card["inputs"] or categories)
    known = {
        name: {
            key: part[key] if isinstance(part[key], float) else part[key] / part["samples"]
            for key in KNOWN
            if key in part
        }
        for name, part in data["parts"].items()
    }
    _draw_shares(axes["known"], "Targets", known, KNOWN)
    _draw_shares(axes["leakage"], "Leakage", card["leakage"], LEAKAGE)
    _draw_shares(axes["overlap"], "Overlap", card["leakage"], OVERLAP | AGAIN)
    if strength:
        _draw_intensity(axes["raw"], "Intensity, every event", strength["raw"])
        for mode in DRAWN:
            _draw_intensity(axes[mode], f"{mode}, histories in training", strength["normalised"][mode])
        _draw_popularity(axes["popularity"], strength["popularity"])
    return page


def drawn(page: Figure, form: str) -> bytes:
    """The file of a page, ``png`` or ``svg``; the same bytes for the same card."""
    file = io.BytesIO()
    with rc_context({"svg.hashsalt": "hydrec"}):
        page.savefig(file, format=form, dpi=150, metadata={"Date": None} if form == "svg" else None)
    return file.getvalue()


def _name(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)


def _note(axes: Axes, text: str) -> None:
    """Writes into the upper left corner, and makes room for it."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.3 * (high - low))
    axes.text(0.02, 0.98, text, transform=axes.transAxes, va="top", fontsize=8)


def _draw_time(axes: Axes, time: Card) -> None:
    edges, counts = np.array(time["histogram"]["edges"]), np.array(time["histogram"]["counts"])
    axes.stairs(counts / np.diff(edges), edges, fill=True, color=PARTS["test"])
    _name(axes, "Events over time", f"days since {time['first'][:10]}", "events a day")


def _draw_lengths(axes: Axes, lengths: Card) -> None:
    for whose, one in lengths.items():
        label = f"{whose}s (median {one['median']:,.10g})"
        axes.plot(*one["at_least"].values(), color=GROUPS[whose], label=label)
    axes.loglog()
    axes.legend(fontsize=8, frameon=False)
    _name(axes, "Lengths", "events", "share with at least so many")


def _draw_recency(axes: Axes, recency: Card) -> None:
    for part, one in recency.items():
        counts = np.array(one["histogram"]["counts"])
        share = counts / max(counts.sum(), 1) * (1 - one["tied"] - one["reversed"])
        label = f"{part} (tied {_percent(one['tied'])})"
        axes.stairs(100 * share, one["histogram"]["edges"], color=PARTS[part], label=label, linewidth=1.4)
    axes.set_xscale("log")
    axes.set_xticks(list(TICKS.values()), list(TICKS))
    axes.minorticks_off()
    axes.set_xlim(GAPS[0], GAPS[-1])
    axes.legend(fontsize=8, frameon=False)
    _name(axes, "From the last event of a history to the target", "", "% of targets")


def _draw_fields(axes: Axes, fields: dict[str, dict[str, int]]) -> None:
    rows = [(f"{of} {name}", of, n) for of, group in fields.items() for name, n in group.items()]
    for row, (_, of, n) in enumerate(rows):
        axes.barh(row, n, color=GROUPS[of], height=0.6)
        axes.text(n, row, f" {_count(n)}", va="center", fontsize=8)
    axes.set_xscale("log")
    axes.set_xlim(0.8, 5 * max((n for _, _, n in rows), default=1))
    axes.set_xticks([])
    axes.minorticks_off()
    axes.spines["bottom"].set_visible(False)
    axes.spines["left"].set_visible(bool(rows))
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    axes.invert_yaxis()
    counts = ", ".join(f"{of} {len(group)}" for of, group in fields.items())
    _name(axes, "Fields beside the ids, values (log scale)", counts, "")


def _draw_intensity(axes: Axes, title: str, one: Card) -> None:
    counts = np.array(one["histogram"]["counts"])
    axes.stairs(100 * counts / counts.sum(), one["histogram"]["edges"], fill=True, color=PARTS["test"])
    ends = f"at 0: {_percent(one['zeros'])}, at 1: {_percent(one['ones'])}"
    _note(axes, f"entropy {one['entropy_bits']:.2f} bits\n{ends}")
    _name(axes, title, "", "% of cases")


def _draw_popularity(axes: Axes, popularity: Card) -> None:
    found = pl.DataFrame(popularity["octaves"])
    of_items, of_events = popularity["item_mean"], popularity["event"]
    if len(found):
        middle = found["events"] * math.sqrt(2)
        axes.fill_between(
            middle,
            found["lower_quartile"],
            found["upper_quartile"],
            color=PARTS["valid"],
            alpha=0.4,
            linewidth=0,
        )
        axes.plot(middle, found["median"], color=PARTS["test"], marker="o", markersize=3)
    axes.set_xscale("log")
    interval = " to ".join(map(_decimal, of_items["interval"] or [None]))
    _note(
        axes, f"rho of items {_decimal(of_items['rho'])} ({interval})\nof events {_decimal(of_events['rho'])}"
    )
    title = "Intensity by popularity: median and quartiles"
    _name(axes, title, "training events of an item", "mean intensity of an item")


def _draw_shares(axes: Axes, title: str, parts: dict[str, Card], names: dict[str, str]) -> None:
    """Bars from 0 to 100 % for each part, in blocks with their names above."""
    height, shares = 0.6 / len(parts), _shares(parts, names)
    for row, (name, each) in enumerate(shares.items()):
        for place, (part, share) in enumerate(zip(parts, each, strict=True)):
            y = row + (place + 0.5) * height
            length = 100 * (share or 0)
            axes.barh(y, length, height, color=PARTS[part], label=part if row == 0 else None)
            axes.text(length + 1, y, _percent(share), va="center", fontsize=7)
            if place == 0:
                axes.text(1, row - 0.05, name, va="bottom", fontsize=8)
    axes.set_xlim(0, 115)
    axes.set_xticks(range(0, 101, 25))
    axes.set_ylim(len(shares) - 0.3, -0.45)
    axes.set_yticks([])
    axes.legend(fontsize=8, frameon=False, ncols=3, loc="upper right", bbox_to_anchor=(1, 1.12))
    _name(axes, title, "%", "")

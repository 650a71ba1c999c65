"""Hook of MkDocs: pictures of the protocols, each drawn from what the protocol itself makes of a small log.

python docs/pictures.py FOLDER    # writes them into a folder
"""

import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from hydrec.data.log import InteractionLog
from hydrec.data.protocols import Split

CONF = Path(__file__).parents[1] / "conf"
DAY = 86400
# Okabe and Ito's colours, and a shape each: told apart without colour as well
PARTS = {"train": ("#0072B2", "o"), "valid": ("#E69F00", "s"), "test": ("#D55E00", "^")}
WORDS = {"train": "target that trains", "valid": "target that validates", "test": "target that is tested"}
GREY = "#8a8a8a"
WINDOW = 3  # events of a history in the pictures


def small_log() -> InteractionLog:
    """Four users on 40 days, whose events are 9, 8, 6 and 5."""
    days = [
        [0, 2, 4, 6, 9, 12, 15, 19, 23],
        [3, 5, 8, 11, 16, 21, 26, 33],
        [10, 13, 17, 22, 28, 36],
        [20, 25, 29, 34, 39],
    ]
    users = np.repeat(np.arange(1, 5), [len(each) for each in days])
    times = np.concatenate([np.array(each) for each in days]) * DAY + 10**9
    return InteractionLog.build(name="picture", users=users, items=np.arange(len(users)), times=times)


def split_by(name: str, log: InteractionLog, *settings: str) -> Split:
    """What a protocol of conf/ makes of a log."""
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        cfg = compose("train", [f"protocol={name}", f"protocol.window={WINDOW}", *settings])
    return instantiate(cfg.protocol, _convert_="all")(log)


def sliding_window() -> Figure:
    """Windows, cut in time."""
    log = small_log()
    split = split_by("sliding_window", log, "protocol.stride=4", "protocol.valid=0.4", "protocol.test=0.3")
    figure, axes = _page(3.4)
    day = _days(split)
    _events(axes, split, day)
    _histories(axes, split, day, {part: range(len(each)) for part, each in split.parts().items()})
    _cuts(axes, split, day)
    _finish(axes, split, "day")
    return figure


def leave_one_out() -> Figure:
    """The last event of each user."""
    split = split_by("leave_one_out", small_log())
    figure, axes = _page(3.4)
    day = _days(split)
    _events(axes, split, day)
    _histories(axes, split, day, {"test": range(len(split.test))})
    first = day[split.test.target].min()
    axes.axvline(first, color=PARTS["test"][0], linestyle="--", linewidth=1)
    assert (day[split.train.target] > first).any(), "the picture says so"
    words = "after this, others still train:\nleakage in time"
    axes.text(first - 0.4, 0.42, words, fontsize=8, ha="right", va="center")
    _finish(axes, split, "day")
    return figure


def global_time() -> Figure:
    """One cut for all users."""
    split = split_by("global_time", small_log(), "protocol.valid=0.2", "protocol.test=0.2")
    figure, axes = _page(3.4)
    day = _days(split)
    _events(axes, split, day)
    _histories(axes, split, day, {"test": range(len(split.test))})
    _cuts(axes, split, day)
    _finish(axes, split, "day")
    return figure


def released_windows() -> Figure:
    """Overlapping windows, shuffled: where the targets of tested windows are also trained on."""
    events = 32
    log = InteractionLog.build(
        name="picture",
        users=np.ones(events, int),
        items=np.arange(events),
        times=np.arange(events) * DAY + 10**9,
    )
    split = split_by("released_windows", log, "protocol.valid=0.2", "protocol.test=0.25")
    figure, axes = _page(3.3)
    windows = sorted(
        (*span, part)
        for part, each in split.parts().items()
        for span in zip(each.first.tolist(), each.target.tolist(), strict=True)
    )
    ring: Any = {"marker": "o", "markerfacecolor": "none", "color": "black", "linestyle": "none"}
    for number, (first, target, part) in enumerate(windows):
        colour, shape = PARTS[part]
        axes.plot([first, target], [number] * 2, color=colour, linewidth=2, alpha=0.45)
        axes.plot(range(first, target), [number] * WINDOW, "o", color=GREY, markersize=5)
        axes.plot(target, number, shape, color=colour, markersize=9)
        if part == "test":
            inside = [n for n, (a, b, p) in enumerate(windows) if p == "train" and a <= target <= b]
            assert inside, "the picture says that each tested target is in a training window"
            axes.plot([target] * 2, [number, inside[0]], ":", color="black", linewidth=1.4)
            axes.plot(target, inside[0], markersize=14, **ring)
    last = windows[-1][1]
    axes.set_xticks(range(last + 1), [str(n + 1) for n in range(last + 1)])
    axes.set_yticks(range(len(windows)), [f"window {n + 1}" for n in range(len(windows))], fontsize=8)
    axes.invert_yaxis()
    axes.plot([], [], markersize=11, label="the same event, in a training window", **ring)
    _finish(axes, split, "event of one user", users=False)
    return figure


def _days(split: Split) -> np.ndarray:
    """The day of each event."""
    return (split.log.times - split.log.times.min()) / DAY


def _page(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.8, height), layout="constrained")
    return figure, figure.subplots()


def _events(axes: Axes, split: Split, day: np.ndarray) -> None:
    """Every event at its time, in the lane of its user; targets in colour."""
    part_of = dict.fromkeys(range(len(split.log)), "")
    part_of |= {int(t): part for part, each in split.parts().items() for t in each.target}
    for event, part in part_of.items():
        colour, shape = PARTS[part] if part else (GREY, "o")
        lane = split.log.n_users - int(split.log.users[event])
        axes.plot(day[event], lane, shape, color=colour, markersize=9 if part else 5, zorder=3)


def _histories(axes: Axes, split: Split, day: np.ndarray, which: dict[str, Sequence[int]]) -> None:
    """A band from the first event of a history to its target."""
    for part, numbers in which.items():
        each, colour = split.parts()[part], PARTS[part][0]
        for i in numbers:
            lane = split.log.n_users - int(split.log.users[each.target[i]])
            span = [day[each.first[i]], day[each.target[i]]]
            axes.plot(span, [lane - 0.22] * 2, color=colour, linewidth=4, alpha=0.45, solid_capstyle="butt")


def _cuts(axes: Axes, split: Split, day: np.ndarray) -> None:
    """Lines where validation and test begin."""
    for part in ("valid", "test"):
        at = day[split.parts()[part].target].min() - 0.5
        axes.axvline(at, color=PARTS[part][0], linestyle="--", linewidth=1)


def _finish(axes: Axes, split: Split, unit: str, *, users: bool = True) -> None:
    if users:
        n = split.log.n_users
        axes.set_yticks(range(n), [f"user {n - lane}" for lane in range(n)], fontsize=9)
        axes.set_ylim(-0.6, n - 0.5)
        axes.plot([], [], color=GREY, linewidth=4, alpha=0.6, label="history of a target")
    for part, (colour, shape) in PARTS.items():
        axes.plot([], [], shape, color=colour, markersize=9, linestyle="none", label=WORDS[part])
    axes.plot([], [], "o", color=GREY, markersize=5, linestyle="none", label="no target")
    axes.set_xlabel(unit, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.figure.legend(loc="outside lower center", ncols=2, fontsize=9, frameon=False)


PICTURES: dict[str, Callable[[], Figure]] = {
    "sliding_window": sliding_window,
    "leave_one_out": leave_one_out,
    "global_time": global_time,
    "released_windows": released_windows,
}


def svg(name: str) -> bytes:
    """One picture."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        PICTURES[name]().savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pictures."""
    for name in PICTURES:
        files.append(File.generated(config, f"figures/protocols/{name}.svg", content=svg(name)))
    return files


if __name__ == "__main__":
    for name in PICTURES:
        (Path(sys.argv[1]) / f"{name}.svg").write_bytes(svg(name))

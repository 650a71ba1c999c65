"""A trained net as a function of tensors, without hydrec: what is exported, and how it is checked.

Shapes: B histories or showings, T positions, V items, W columns of codes.
"""

import contextlib
import importlib.util
import io
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.export import Dim

from hydrec.batch import PAD, ClickBatch, SequenceBatch
from hydrec.data.features import DERIVED
from hydrec.errors import InputError, at_least, one_of
from hydrec.given import histories, table
from hydrec.loaded import LoadedRun, gathered
from hydrec.runs import write_atomically
from hydrec.showings import Showings

FORMATS = {"torch": "scorer.pt2", "onnx": "scorer.onnx"}
SAME = 1e-5  # of the largest score, or of 1
# what may vary of the shapes, the most first
FREE = {"batch and length": "BT", "batch": "B", "nothing": ""}
Call = Callable[[dict[str, Tensor]], Tensor]  # scores of inputs
PARTS = (1, 3)  # rows in the first batches of a check: not those of the export


class Input(NamedTuple):
    """What a scorer takes.

    Attributes:
        shape: a letter for each axis.
        meaning: for whoever calls it.
    """

    shape: str
    meaning: str


class Scorer(nn.Module):
    """Scores of all items for B histories, T of them at most the window of the run.

    Args:
        loaded: the run.
    """

    inputs: ClassVar = {
        "items": Input("BT", "numbers of items, as items.csv has them, oldest first; 0 after them"),
        "times": Input("BT", "seconds from the first event, 0 after them"),
        "values": Input("BT", "intensities (rating, hours), NaN where there are none, 0 after them"),
        "lengths": Input("B", "events of each history, at least 1"),
        "asked": Input("B", "seconds from the first event to the time of the recommendation"),
        "users": Input("B", "rows of the run's users.parquet, from 1; 0 for new users"),
    }
    output = Input("BV", "scores of all items, in the order of items.csv")

    catalogue: Tensor

    def __init__(self, loaded: LoadedRun) -> None:
        super().__init__()
        self.net, self.encode, self.cloze = loaded.net, loaded.encode, loaded.cloze
        self.register_buffer("catalogue", torch.arange(1, len(loaded.items) + 1))

    def forward(
        self,
        items: Int[Tensor, "B T"],
        times: Int[Tensor, "B T"],
        values: Float[Tensor, "B T"],
        lengths: Int[Tensor, " B"],
        asked: Int[Tensor, " B"],
        users: Int[Tensor, " B"],
    ) -> Float[Tensor, "B V"]:
        """Column j is item number j + 1; `inputs` says what goes in."""
        none = torch.full_like(lengths, PAD)
        batch = SequenceBatch(items, times, values, lengths, none[:, None], asked[:, None], users, none)
        return self.net.score(self.encode(batch), self.catalogue).float()


class ClickScorer(nn.Module):
    """Logits of clicks for B showings, by what is known of each; the fields of items are inside.

    Args:
        net: of clicks.
    """

    inputs: ClassVar = {
        "items": Input(
            "BT", "numbers of the items of the history, as items.csv has them, oldest first; 0 after them"
        ),
        "times": Input("BT", "seconds from the first of these events, 0 after them"),
        "values": Input("BT", "their intensities (rating, hours), NaN where there are none, 0 after them"),
        "lengths": Input("B", "how many events there are, 0 or more"),
        "candidates": Input("B", "number of the item shown"),
        "target_times": Input("B", "seconds from the first of these events to the showing, 0 without any"),
        "users": Input("B", "rows of users.parquet, from 1; 0 for new users"),
        "codes": Input("BW", "codes of the fields, side by side, as fields says"),
        "weights": Input("BW", "the weight of each code in its field, likewise"),
    }
    output = Input("B", "the logit of a click, whose probability is 1 / (1 + exp(-logit))")

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(
        self,
        items: Int[Tensor, "B T"],
        times: Int[Tensor, "B T"],
        values: Float[Tensor, "B T"],
        lengths: Int[Tensor, " B"],
        candidates: Int[Tensor, " B"],
        target_times: Int[Tensor, " B"],
        users: Int[Tensor, " B"],
        codes: Int[Tensor, "B W"],
        weights: Float[Tensor, "B W"],
    ) -> Float[Tensor, " B"]:
        """One logit a row; `inputs` says what goes in."""
        none = torch.zeros_like(lengths)
        logits, _ = self.net(
            ClickBatch(
                items=items,
                times=times,
                values=values,
                lengths=lengths,
                candidates=candidates,
                labels=none,
                target_times=target_times,
                users=users,
                codes=codes,
                weights=weights,
                rows=none,
            )
        )
        return logits.float()


# how values become codes; beside the forms of a field, what else scorer.json says of one
CODES = {
    "category": "a value that is one of words has code 2 + its place there, from 0; of several values, each"
    " has its code, of weight 1 / their number",
    "bucket": "code 2 + the number of bounds that are not above the value",
    "number": "code 2, of weight (value - mean) / spread",
    "unknown": "missing values, those that are none of words, and codes c that seen lacks or where seen[c] is"
    " false have code 1",
    "past": "past events, where a field's meaning has them, are all of the user's before the second of the"
    " showing, those that history leaves out among them",
    "weights": "1 where nothing else is said; columns that a field leaves free have code 0 and weight 0",
    "words, bounds, mean, spread, seen": "a row of fields.parquet for each field, by name and group",
    "columns": "of codes and weights: the first, and the one after the last",
    "first": "only so many characters of a value count",
    "own": "the field's columns of codes and weights in users.parquet, of users that training knew",
}


def export(run: str, out: str, form: str, given: str | None, showings: str | None, rows: int) -> None:
    """Writes the scorer of a run, once it gave the scores of the original.

    Args:
        run: folder of a finished run.
        out: folder of what is written: the scorer; ``scorer.json``, how to call it; ``items.csv``, numbers
            and raw ids of items; of a click model ``fields.parquet`` and ``users.parquet``, what makes codes.
        form: one of ``FORMATS``.
        given: histories to check it on, as `hydrec.given.histories` has them; ``None`` for those of the test
            part, which needs the data of the run.
        showings: of a click model, what it is checked on, as `hydrec.showings.Showings` has them, ``given``
            being their histories; ``None`` for the test part.
        rows: how many histories or showings are tried, at most.

    Raises:
        InputError: the model cannot be exported; says why. Or the run or the histories cannot be used.
    """
    one_of("format", form, FORMATS)
    at_least("rows", rows, 2)
    loaded = LoadedRun(run)
    clicks = loaded.showings
    if clicks is None:
        if showings is not None:
            raise InputError(f"showings={showings}: run={run} is of a model that ranks items; drop it")
        scorer: Scorer | ClickScorer = Scorer(loaded)
        tried = _tried(loaded, given, rows)
    else:
        scorer = ClickScorer(loaded.net)
        tried = _shown(loaded, clicks, showings, given, rows)
    what = "histories" if clicks is None else "showings"
    content, read, free, apart = exported(scorer.eval(), tried, form)
    about: dict[str, Any] = {
        "run": loaded.opened.folder.path.name,
        "format": form,
        "inputs": {
            name: {
                "shape": [*shape],
                "type": str(tried[name].dtype)[6:],
                "read": name in read,
                "meaning": meaning,
            }
            for name, (shape, meaning) in scorer.inputs.items()
        },
        "output": {"shape": [*scorer.output.shape], "type": "float32", "meaning": scorer.output.meaning},
        "sizes": {"T": loaded.opened.cfg.protocol.window, "V": len(loaded.items)},
        "varies": free,
        f"{what}_tried": len(tried["lengths"]),
        "largest_difference": apart,
    }
    if clicks is not None:
        about["sizes"]["W"] = tried["codes"].shape[1]
        about |= {"history": history(clicks), "fields": fields(clicks), "codes": CODES}
        for name in ("fields.parquet", "users.parquet"):
            write_atomically(Path(out, name), (loaded.opened.folder.path / name).read_bytes())
    write_atomically(Path(out, FORMATS[form]), content)
    write_atomically(Path(out, "items.csv"), loaded.items.select("item", "raw").write_csv())
    write_atomically(Path(out, "scorer.json"), json.dumps(about, indent=2) + "\n")
    print(
        f"{Path(out, FORMATS[form])}: {free} may vary; on {about[f'{what}_tried']} {what} it differs by"
        f" {apart:.2g} of the largest score at most"
    )


def history(showings: Showings) -> str:
    """Which events of a user are its history, as the protocol of the run has it."""
    if showings.own:
        return "the items that the showing brings, the last T of them; all times are 0"
    which = "the last T events up to the showing"
    if showings.threshold is not None:
        which += f", of those with a value of {showings.threshold:g} or more"
    elif showings.labelled:
        which += ", of those that were clicked"
    return which + ", of earlier days (UTC) alone" * showings.overnight


def fields(showings: Showings) -> list[dict[str, Any]]:
    """Where the values of each field of user and context go, in the order of their columns.

    ``columns`` are the first column and the one after the last. ``own`` are, where a field is the user's, the
    columns of ``codes`` and ``weights`` in ``users.parquet``, which has them for users that training knew.
    """
    found = []
    ends = {"all": 0, "user": 0}

    def columns(which: str, width: int) -> list[int]:
        start, ends[which] = ends[which], ends[which] + width
        return [start, ends[which]]

    for field, by, coding in showings.fields:
        if field.group == "item":
            continue
        about: dict[str, Any] = {"name": field.name, "group": field.group, "form": coding.form}
        about["columns"] = columns("all", field.width)
        if coding.first is not None:
            about["first"] = coding.first
        if by == "user":
            about["own"] = columns("user", field.width)
        elif field.name in DERIVED:
            about["meaning"] = str(DERIVED[field.name].__doc__).partition("\n")[0]
        found.append(about)
    return found


def _shown(
    loaded: LoadedRun, clicks: Showings, showings: str | None, given: str | None, rows: int
) -> dict[str, Tensor]:
    """Inputs of some showings, of all lengths of history that the test part has."""
    if showings is not None:
        _, batches = clicks(table(showings, "showings", ())[:rows], given, rows)
        batch = next(batches)
    elif given is not None:
        raise InputError(f"histories={given}: a click model is tried on showings=FILE with these histories")
    else:
        data: Any = loaded.opened.data()
        total = len(data.split.test)
        batch = data.feed.gather(data.split.test, np.linspace(0, total - 1, min(rows, total)).astype(int))
    if len(batch.users) < 2:
        raise InputError("showings: an export is tried on two or more")
    lacking = clicks.window - batch.items.shape[1]
    return {
        name: F.pad(getattr(batch, name), (0, lacking * (shape == "BT")))
        for name, (shape, _) in ClickScorer.inputs.items()
    }


def _tried(loaded: LoadedRun, given: str | None, rows: int) -> dict[str, Tensor]:
    """Inputs of some histories."""
    window = loaded.opened.cfg.protocol.window
    if given is None:
        data: Any = loaded.opened.data()
        batch = data.feed.gather(data.split.test, np.arange(min(rows, len(data.split.test))))
    else:
        events = histories(given, "histories", loaded.items["raw"], dated=loaded.dated)
        some = np.arange(min(rows, len(events.users)))
        asked = events.times[events.offsets[1:] - 1]
        batch = gathered(events, asked, torch.zeros(len(asked), dtype=torch.int64), some, window)
    if len(batch.users) < 2:
        raise InputError("histories: an export is tried on two or more")
    inputs = batch._asdict() | {"asked": batch.target_times[:, 0]}
    return {name: inputs[name] for name in Scorer.inputs}


def exported(
    scorer: Scorer | ClickScorer, tried: dict[str, Tensor], form: str
) -> tuple[bytes, set[str], str, float]:
    """The scorer as a file that gives the same scores, its shapes left as free as the net allows.

    Args:
        scorer: in evaluation mode.
        tried: inputs to trace it on, and to compare on.
        form: one of ``FORMATS``.

    Returns:
        The file, the inputs that it reads, what may vary, one of ``FREE``, and the largest difference, as
        `difference` has it.

    Raises:
        InputError: the net cannot be exported; says why. Or a package is missing.
    """
    write = {"torch": _torch, "onnx": _onnx}[form]
    if form == "onnx":
        _needed()
    for free in FREE:
        try:
            with _quiet(), torch.no_grad():
                program = _program(scorer, tried, free)
                content, call = write(program)
                apart = difference(scorer, call, tried, free)
        except Exception as error:  # whatever tracing and translating a net may raise
            reason = _reason(error)
            continue
        if apart <= SAME:
            return content, _read(program), free, apart
        reason = f"scores differ by {apart:.2g} of the largest, more than {SAME:g}"
    raise InputError(f"{type(scorer.net).__name__} cannot be exported as {form}: {reason}")


def _program(
    scorer: Scorer | ClickScorer, tried: dict[str, Tensor], free: str
) -> torch.export.ExportedProgram:
    shapes = {
        name: {axis: Dim.DYNAMIC for axis, letter in enumerate(each.shape) if letter in FREE[free]}
        for name, each in scorer.inputs.items()
    }
    # strict: else len() of a tensor would fix its size
    return torch.export.export(scorer, (), tried, dynamic_shapes=shapes, strict=True)


def _read(program: torch.export.ExportedProgram) -> set[str]:
    """The inputs that scores are made of."""
    taken = program.graph_signature.user_inputs
    return {node.name for node in program.graph.nodes if node.name in taken and node.users}


def _torch(program: torch.export.ExportedProgram) -> tuple[bytes, Call]:
    """The file, and the scorer that is read from it again."""
    file = io.BytesIO()
    torch.export.save(program, file)
    again = torch.export.load(io.BytesIO(file.getvalue())).module()
    return file.getvalue(), lambda inputs: again(**inputs)


def _onnx(program: torch.export.ExportedProgram) -> tuple[bytes, Call]:
    """As `_torch`."""
    made: Any = torch.onnx.export(program, dynamo=True, verbose=False)
    content = made.model_proto.SerializeToString()
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    read = {each.name for each in session.get_inputs()}  # those that the net does not read are gone

    def call(inputs: dict[str, Tensor]) -> Tensor:
        arrays = {name: value.numpy() for name, value in inputs.items() if name in read}
        return torch.from_numpy(session.run(None, arrays)[0])

    return content, call


def _needed() -> None:
    """Stops where packages that ONNX takes are missing."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise InputError(f"format=onnx needs {package}: pip install onnx onnxscript onnxruntime")


def difference(scorer: Scorer | ClickScorer, call: Call, tried: dict[str, Tensor], free: str) -> float:
    """The largest difference of scores over batches, in units of the largest score or of 1."""
    apart = []
    for inputs in _parts(scorer, tried, free):
        mine, theirs = scorer(**inputs), call(inputs)
        apart.append((mine - theirs).abs().max() / mine.abs().max().clamp(min=1))
    return float(torch.stack(apart).max())


def _parts(scorer: Scorer | ClickScorer, tried: dict[str, Tensor], free: str) -> Iterator[dict[str, Tensor]]:
    """What is tried, in batches of several sizes and of the least length that holds them, where free."""
    total = len(tried["lengths"])
    ends = [*(end for end in PARTS if end < total), total] if "B" in FREE[free] else [total]
    for start, end in zip([0, *ends], ends, strict=False):
        width = max(1, int(tried["lengths"][start:end].max())) if "T" in FREE[free] else None
        yield {
            name: value[start:end, :width] if "T" in scorer.inputs[name].shape else value[start:end]
            for name, value in tried.items()
        }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what the exporters tell their developers off the terminal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def _reason(error: BaseException) -> str:
    """The first line of what lies behind an error, without colours."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().partition("\n")[0]
    return f"{type(error).__name__}: {line[:300]}"

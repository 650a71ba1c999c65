"""A trained net as a function of tensors, without hydrec: what is exported, and how it is checked.

Shapes: B histories, T positions, V items.
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
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.export import Dim

from hydrec.batch import PAD, SequenceBatch
from hydrec.errors import InputError, at_least, one_of
from hydrec.given import histories
from hydrec.loaded import LoadedRun, gathered
from hydrec.runs import write_atomically

FORMATS = {"torch": "scorer.pt2", "onnx": "scorer.onnx"}
SHAPES = {"items": "BT", "times": "BT", "values": "BT", "lengths": "B", "asked": "B", "users": "B"}
SAME = 1e-5  # of the largest score, or of 1
# what may vary of the shapes, the most first
FREE = {"batch and length": "BT", "batch": "B", "nothing": ""}
Call = Callable[[dict[str, Tensor]], Tensor]  # scores of inputs
PARTS = (1, 3)  # histories in the first batches of a check: not those of the export


class Scorer(nn.Module):
    """Scores of all items for B histories, T of them at most the window of the run.

    Args:
        loaded: the run.
    """

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
        """Column j is item number j + 1.

        Args:
            items: numbers of items, oldest first, 0 after them.
            times: seconds from the first event, 0 after them.
            values: intensities, NaN where there are none, 0 after them.
            lengths: events of each history, at least 1.
            asked: seconds from the first event to the time of the recommendation.
            users: numbers of users, 0 for new ones.
        """
        none = torch.full_like(lengths, PAD)
        batch = SequenceBatch(items, times, values, lengths, none[:, None], asked[:, None], users, none)
        return self.net.score(self.encode(batch), self.catalogue).float()


def export(run: str, out: str, form: str, given: str | None, rows: int) -> None:
    """Writes the scorer of a run, once it gave the scores of the original.

    Args:
        run: folder of a finished run.
        out: folder of what is written: the scorer; ``scorer.json``, how to call it; ``items.csv``, whose
            scores its columns are.
        form: one of ``FORMATS``.
        given: histories to check it on, as `hydrec.given.histories` has them; ``None`` for those of the test
            part, which needs the data of the run.
        rows: how many of them are tried, at most.

    Raises:
        InputError: the model cannot be exported; says why. Or the run or the histories cannot be used.
    """
    one_of("format", form, FORMATS)
    at_least("rows", rows, 2)
    loaded = LoadedRun(run)
    if loaded.showings is not None:
        raise InputError(f"run={run} is of a model of clicks: only models that rank items are exported")
    tried = _tried(loaded, given, rows)
    content, free, apart = exported(Scorer(loaded).eval(), tried, form)
    about = {
        "run": loaded.opened.folder.path.name,
        "format": form,
        "inputs": {
            name: {"shape": [*shape], "type": str(tried[name].dtype)[6:]} for name, shape in SHAPES.items()
        },
        "sizes": {"T": tried["items"].shape[1], "V": len(loaded.items)},
        "varies": free,
        "histories_tried": len(tried["items"]),
        "largest_difference": apart,
    }
    write_atomically(Path(out, FORMATS[form]), content)
    write_atomically(Path(out, "items.csv"), loaded.items.select("item", "raw").write_csv())
    write_atomically(Path(out, "scorer.json"), json.dumps(about, indent=2) + "\n")
    print(
        f"{Path(out, FORMATS[form])}: {free} may vary; on {about['histories_tried']} histories it differs by"
        f" {apart:.2g} of the largest score at most"
    )


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
    return {name: inputs[name] for name in SHAPES}


def exported(scorer: Scorer, tried: dict[str, Tensor], form: str) -> tuple[bytes, str, float]:
    """The scorer as a file that gives the same scores, its shapes left as free as the net allows.

    Args:
        scorer: in evaluation mode.
        tried: inputs to trace it on, and to compare on.
        form: one of ``FORMATS``.

    Returns:
        The file, what may vary, one of ``FREE``, and the largest difference, as `difference` has it.

    Raises:
        InputError: the net cannot be exported; says why. Or a package is missing.
    """
    write = {"torch": _torch, "onnx": _onnx}[form]
    if form == "onnx":
        _needed()
    for free in FREE:
        try:
            with _quiet(), torch.no_grad():
                content, call = write(_program(scorer, tried, free))
                apart = difference(scorer, call, tried, free)
        except Exception as error:  # whatever tracing and translating a net may raise
            reason = _reason(error)
            continue
        if apart <= SAME:
            return content, free, apart
        reason = f"scores differ by {apart:.2g} of the largest, more than {SAME:g}"
    raise InputError(f"{type(scorer.net).__name__} cannot be exported as {form}: {reason}")


def _program(scorer: Scorer, tried: dict[str, Tensor], free: str) -> torch.export.ExportedProgram:
    shapes = {
        name: {axis: Dim.DYNAMIC for axis, letter in enumerate(shape) if letter in FREE[free]}
        for name, shape in SHAPES.items()
    }
    # strict: else len() of a tensor would fix its size
    return torch.export.export(scorer, (), tried, dynamic_shapes=shapes, strict=True)


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


def difference(scorer: Scorer, call: Call, tried: dict[str, Tensor], free: str) -> float:
    """The largest difference of scores over batches of histories, in units of the largest score or of 1."""
    apart = []
    for inputs in _parts(tried, free):
        mine, theirs = scorer(**inputs), call(inputs)
        apart.append((mine - theirs).abs().max() / mine.abs().max().clamp(min=1))
    return float(torch.stack(apart).max())


def _parts(tried: dict[str, Tensor], free: str) -> Iterator[dict[str, Tensor]]:
    """The histories in batches of several sizes and of the least length that holds them, where free."""
    total = len(tried["lengths"])
    ends = [*(end for end in PARTS if end < total), total] if "B" in FREE[free] else [total]
    for start, end in zip([0, *ends], ends, strict=False):
        width = int(tried["lengths"][start:end].max()) if "T" in FREE[free] else None
        yield {
            name: value[start:end, :width] if "T" in SHAPES[name] else value[start:end]
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

"""Who may import whom, read from the syntax trees."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[1] / "src" / "hydrec"

# a unit is a module or package directly under hydrec; those of one floor do not import each other, but on top
FLOORS = [
    {"batch", "errors"},
    {"cases"},
    {"layers", "losses", "sampling", "metrics", "click_metrics", "optim"},
    {"data", "models", "cloze"},
    {"tasks"},
    {"pipeline", "cli", "overrides", "loggers", "callbacks", "runs", "explain", "__main__"}
    | {"sweep", "study", "preloaded"}
    | {"recommend", "export", "commands", "given", "loaded", "showings", "scorer", "model_card"},
]
FLOOR = {unit: floor for floor, units in enumerate(FLOORS) for unit in units}

# what a unit may import beside the standard library and the floors below; None: whatever is installed
OUTSIDE: dict[str, set[str] | None] = {
    "batch": {"torch", "jaxtyping"},
    "errors": set(),
    "cases": {"torch", "jaxtyping", "torchmetrics"},
    "layers": {"torch", "jaxtyping"},
    "losses": {"torch", "jaxtyping"},
    "sampling": {"torch", "jaxtyping"},
    "cloze": {"torch"},
    "metrics": {"torch", "jaxtyping"},
    "click_metrics": {"torch", "jaxtyping"},
    "optim": {"torch", "jaxtyping"},
    "data": {"torch", "jaxtyping", "numpy", "polars", "pytorch_lightning", "rich", "matplotlib"},
    "models": {"torch", "jaxtyping"},
    "tasks": {"torch", "jaxtyping", "pytorch_lightning"},
    "cli": {"hydra", "omegaconf"},
    "overrides": {"hydra", "omegaconf"},
    "__main__": {"hydra", "omegaconf", "rich"},
    **{key: {"polars"} for key in ("commands", "recommend", "export")},
    "model_card": {"omegaconf"},
} | dict.fromkeys(
    (
        "pipeline",
        "loggers",
        "callbacks",
        "runs",
        "explain",
        "sweep",
        "study",
        "preloaded",
        "given",
        "loaded",
        "showings",
        "scorer",
    )
)

# a model reads batches and is made of layers: it knows neither data nor loss, and no other model
BELOW_MODELS = {"batch", "layers", "errors"}
# a study reads run folders, a sweep starts processes: what made the runs they do not know
BELOW_STUDY = {"study", "metrics", "click_metrics", "errors", "runs"}
BELOW_SWEEP = {"sweep", "errors", "overrides", "runs"}


def imports(source: str, package: str) -> Iterator[str]:
    """Dotted names that a module imports, at any depth of its code."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            prefix = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            base = ".".join(filter(None, (prefix, node.module)))
            # "from hydrec import cli" imports hydrec.cli, "from hydrec.batch import PAD" hydrec.batch
            yield from (f"{base}.{alias.name}" for alias in node.names) if base == "hydrec" else [base]


def violations(module: str, source: str) -> list[str]:
    """What a module imports and may not; module is dotted, as in ``hydrec.models.hgnn``."""
    unit = "__main__" if module.endswith(".__main__") else module.split(".")[1]  # a package's command
    if unit not in FLOOR:
        return [f"{module} has no floor: give {unit} one in tests/test_floors.py"]
    wrong = []
    for name in imports(source, module.rpartition(".")[0]):
        top, *inner = name.split(".")
        if top == "hydrec":
            other = inner[0]
            if other == "__version__":
                continue
            if unit == "models":
                allowed = other in BELOW_MODELS
            elif unit in ("study", "sweep"):
                allowed = (
                    other in {"study": BELOW_STUDY, "sweep": BELOW_SWEEP}[unit] and "__main__" not in inner
                )
            else:
                same = other == unit or FLOOR.get(other) == FLOOR[unit] == len(FLOORS) - 1
                allowed = (same or FLOOR.get(other, 9) < FLOOR[unit]) and "__main__" not in inner
        else:
            outside = OUTSIDE[unit]
            allowed = top in sys.stdlib_module_names or outside is None or top in outside
        if not allowed:
            wrong.append(f"{module} imports {name}")
    return wrong


MODULES = {
    ".".join(("hydrec", *path.relative_to(SOURCES).with_suffix("").parts)): path
    for path in sorted(SOURCES.rglob("*.py"))
    if path != SOURCES / "__init__.py"
}


@pytest.mark.parametrize("module", MODULES)
def test_imports_come_from_below(module: str) -> None:
    assert violations(module, MODULES[module].read_text()) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("hydrec.batch", "import hydrec.errors"),
        ("hydrec.batch", "import numpy"),
        ("hydrec.layers.graph", "from hydrec.losses import BPR"),
        ("hydrec.metrics", "from hydrec import sampling"),
        ("hydrec.click_metrics", "from hydrec.metrics import rank"),
        ("hydrec.sampling", "def f():\n    import hydrec.data.log"),
        ("hydrec.data.log", "from hydrec.models.hgnn import HGNN"),
        ("hydrec.data.log", "from hydra.utils import instantiate"),
        ("hydrec.data.log", "from ..tasks import NextItem"),
        ("hydrec.models.hgnn", "from hydrec.models.popularity import Popularity"),
        ("hydrec.models.hgnn", "from . import popularity"),
        ("hydrec.models.hgnn", "from hydrec.losses import BPR"),
        ("hydrec.models.hgnn", "import pytorch_lightning as pl"),
        ("hydrec.models.hgnn", "import numpy as np"),
        ("hydrec.tasks", "from hydrec.pipeline import run"),
        ("hydrec.tasks", "import omegaconf"),
        ("hydrec.cli", "import torch"),
        ("hydrec.data.__main__", "import numpy"),
        ("hydrec.data.log", "from hydrec.data.__main__ import main"),
        ("hydrec.cli", "import hydrec.data.__main__"),
        ("hydrec.tasks", "from hydrec.explain.means import means"),
        ("hydrec.attic", "import os"),
    ],
)
def test_what_is_forbidden_is_found(module: str, line: str) -> None:
    assert len(violations(module, line)) == 1


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("hydrec.layers.graph", "from hydrec.layers.attention import heads"),
        (
            "hydrec.models.hgnn",
            "from hydrec.layers import graph\nfrom hydrec.batch import PAD\nimport torch, math",
        ),
        ("hydrec.data.module", "from hydrec.data.log import Feature\nfrom hydrec.sampling import hash64"),
        ("hydrec.tasks", "from hydrec.models.popularity import Popularity"),
        ("hydrec.data.__main__", "import hydra\nfrom hydrec import cli\nfrom hydrec.data import inspect"),
        ("hydrec.pipeline", "from hydrec.runs import RunFolder\nimport polars"),
        ("hydrec.explain.gim", "from hydrec.models.mian import MIAN\nfrom hydrec.runs import RunFolder"),
    ],
)
def test_what_is_allowed_passes(module: str, line: str) -> None:
    assert violations(module, line) == []

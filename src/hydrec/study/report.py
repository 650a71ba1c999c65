"""The report of a study: from run folders to tables, figures and one page that opens anywhere."""

import base64
import io
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import polars as pl
from matplotlib.figure import Figure

from hydrec.runs import write_atomically
from hydrec.study import figures, sensitivity, tables
from hydrec.study.results import Ledger, Run, Setting, Study, finished, frame, ledger, settings, study
from hydrec.study.tables import Cell, Table
from hydrec.study.verdicts import judged

DIGITS = 12  # of a digest that are shown
NAMED = 12  # robust differences that are named in words; all are in the tables


class Text(NamedTuple):
    """A paragraph."""

    text: str


class Log(NamedTuple):
    """Lines as a program said them."""

    log: str


class Picture(NamedTuple):
    """A figure as base64 of its SVG."""

    title: str
    svg: str


class Section(NamedTuple):
    """A part of the page."""

    title: str
    parts: list[Text | Log | Picture | Table]


def write(folder: Path, *, baseline: str, metrics: Sequence[str], out: Path) -> Path:
    """Writes ``runs.parquet``, ``verdicts.csv``, ``tables/``, ``figures/`` and ``report.html``.

    The same folder gives the same bytes, except for what matplotlib's release draws.

    Args:
        folder: of run folders; ``study.yaml`` and ``ledger.json`` are read if they are there.
        baseline: model to compare with; "" for that of the study.
        metrics: to show; none for those of the study.
        out: where the files go.

    Returns:
        The page.

    Raises:
        InputError: there is nothing to report, or runs of one setting cannot be compared; says why.
    """
    runs = finished(folder)
    asked = study(folder, runs, baseline, metrics)
    places, jobs = settings(runs, asked), ledger(folder)
    main, own = _pairs(places, asked)
    verdicts, alone = judged(places, main, asked)
    ablations, _ = judged(places, own, asked)

    made, drawings = _tables(places, asked, verdicts, alone, ablations), _figures(places, asked, verdicts)
    shown = places[0].metrics
    found = sensitivity.points(folder, jobs, shown)
    made += [sensitivity.table(name, curve, shown) for name, curve in sensitivity.curves(found, shown)]
    page = sensitivity.figure(found, shown[0])
    drawings |= {} if page is None else {"values": ("One key at a time", page)}
    files = {
        name: {form: figures.drawn(page, form) for form in ("svg", "png")}
        for name, (_, page) in drawings.items()
    }
    pictures = {
        name: Picture(title, base64.b64encode(files[name]["svg"]).decode())
        for name, (title, _) in drawings.items()
    }
    sections = [
        Section("What was run", _ran(places, jobs)),
        Section("Comparison", [*_reading(asked, verdicts), *_of(made, "comparison", "changes", "leads")]),
        Section("Published and found", _of(made, "claims")),
        Section("Ablations", _of(made, "ablation")),
        Section("What settings are worth", [*_drawn(pictures, "values"), *_of(made, "curve")]),
        Section("What single seeds would claim", _of(made, "cells")),
        Section("Intervals", _drawn(pictures, "forest")),
        Section("Lambda", _drawn(pictures, "lambda")),
        Section("Learning curves", _drawn(pictures, "curves")),
        Section("Cost", _drawn(pictures, "cost")),
        Section("Search", _searched(places, jobs, asked)),
        Section("Failures", _failures(jobs)),
        Section("Every run", _identities(places)),
    ]
    loader = jinja2.Environment(
        loader=jinja2.PackageLoader("hydrec.study", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    text = loader.get_template("report.html.j2").render(
        title=asked.title,
        verdict=words(places, asked, verdicts, alone),
        sections=[section for section in sections if section.parts],
    )

    for table in made:
        write_atomically(out / "tables" / f"{table.name}.csv", table.frame.write_csv())
        write_atomically(out / "tables" / f"{table.name}.md", tables.markdown(table))
        write_atomically(out / "tables" / f"{table.name}.tex", tables.latex(table))
    for name, forms in files.items():
        for form, content in forms.items():
            write_atomically(out / "figures" / f"{name}.{form}", content)
    buffer = io.BytesIO()
    frame(runs).write_parquet(buffer)
    write_atomically(out / "runs.parquet", buffer.getvalue())
    families = {"baseline": verdicts, "ablation": ablations}
    every = pl.concat([some.select(pl.lit(name).alias("family"), "*") for name, some in families.items()])
    write_atomically(out / "verdicts.csv", every.write_csv())
    write_atomically(out / "report.html", text + "\n")
    return out / "report.html"


def _pairs(
    places: Sequence[Setting], asked: Study
) -> tuple[dict[str, list[tuple[str, str]]], dict[str, list[tuple[str, str]]]]:
    """Models against the baseline, and variants against what they vary, by setting."""
    main, own = {}, {}
    for setting in places:
        models, base = setting.models, asked.baseline
        main[setting.key] = [(base, model) for model in models if base in models and model != base]
        varied = tables.parents(models)
        own[setting.key] = [(parent, model) for model, parent in varied.items()]
    return main, own


# Words ------------------------------------------------------------------------------------------------------


def words(places: Sequence[Setting], asked: Study, verdicts: pl.DataFrame, alone: pl.DataFrame) -> list[str]:
    """What the verdicts say, in sentences; the first is the answer."""
    if asked.baseline is None:
        return [
            "No baseline was named, so there are no verdicts: baseline=MODEL compares the others with it."
        ]
    lacking = [setting.title for setting in places if asked.baseline not in setting.models]
    lines = [f"{asked.baseline} was not run on {', '.join(lacking)}: no verdicts there."] if lacking else []
    if not len(verdicts):
        return [f"There is nothing to compare with {asked.baseline}.", *lines]
    gains, losses = (int((verdicts["verdict"] == kind).sum()) for kind in ("robust gain", "robust loss"))
    cells, rest, seeds = len(verdicts), len(verdicts) - gains - losses, verdicts["seeds"]
    answer = (
        f"Of {_n(cells, 'cell')} against {asked.baseline}, {gains} {_are(gains)} robust gains, {losses}"
        f" {_are(losses)} robust losses and {rest} {'shows' if rest == 1 else 'show'} no robust difference."
    )
    about = (
        "A cell is one model in one metric on one dataset under one protocol:"
        f" {_n(len(places) - len(lacking), 'setting')}, {_span(seeds)},"
        f" {_span(verdicts['users'], 'test user')}."
    )
    lines = [answer, about, *lines]
    if seeds.max() == 1:
        lines.append(
            "With one seed there is no test over seeds, and so no verdict: run at least three seeds."
        )
    for kind in ("robust gain", "robust loss"):
        lines += _named(kind, verdicts.filter(verdict=kind))
    claimed = tables.cells(verdicts, alone, asked.alpha).frame.row(-1, named=True)
    lines.append(
        "A reader of a single seed, with a test over its users alone, would have claimed"
        f" {claimed['gains_mean_of_seeds']:g} gains on average. Of the robust differences"
        f" {claimed['robust_holm']} remain after Holm's correction over all {cells} cells, and"
        f" {claimed['robust_bh']} after that of Benjamini and Hochberg."
    )
    for setting in places:
        lines += _beaten(setting)
        if setting.label:
            lines.append(
                f"{setting.title}: the protocol is labelled {setting.label}; read its numbers as such."
            )
    return lines


def _named(kind: str, some: pl.DataFrame) -> list[str]:
    """The robust differences of a kind, the largest first."""
    if not len(some):
        return []
    largest = some.sort(pl.col("change").abs(), descending=True, maintain_order=True).head(NAMED)
    named = [
        f"{row['model']} in {tables.shown(row['metric'])} on {row['dataset']}, {row['protocol']}"
        f" ({row['change']:+.1f} %)"
        for row in largest.iter_rows(named=True)
    ]
    more = f"; and {len(some) - NAMED} more" if len(some) > NAMED else ""
    return [f"{kind.capitalize()}: {'; '.join(named)}{more}."]


def _beaten(setting: Setting) -> list[str]:
    """Says which models are below a reference in the first metric."""
    metric = setting.metrics[0]
    found = tables.scores(setting, [metric])
    references = [score for score in found if score.kind == "reference"]
    if not references:
        return []
    sign = -1 if setting.lower_is_better(metric) else 1
    best = max(references, key=lambda score: sign * score.mean)
    below = [score.model for score in found if score.kind == "model" and sign * score.mean < sign * best.mean]
    if not below:
        return []
    return [
        f"Warning: on {setting.title}, {len(below)} of {_n(len(setting.models), 'model')} {_are(len(below))}"
        f" worse in {tables.shown(metric)} than {best.model}, which is not trained: too little training, a"
        " finding about the protocol, or a bug."
    ]


def _reading(asked: Study, verdicts: pl.DataFrame) -> list[Text]:
    """How to read a verdict."""
    if not len(verdicts):
        return []
    level, pool = f"{asked.alpha:g}", asked.pooling
    resampled = "users, each with the mean of its seeds" if pool == "users" else "pairs of seed and user"
    found = verdicts.filter(pl.col("detectable").is_not_null(), pl.col("baseline_mean") > 0)
    lines = [
        f"A difference is robust if three things agree: a paired t-test over seeds (p < {level}), a paired"
        f" bootstrap over test users ({asked.draws} draws of {resampled}; p < {level}), and the sign of most"
        " seeds, each with its own interval over users. The first knows that another seed may give another"
        " result, the second that other users may; neither alone is enough. No robust difference does not"
        " mean equal: it means that these seeds and users cannot tell.",
    ]
    if len(found):
        effect = np.median(100 * (found["detectable"] / found["baseline_mean"]).to_numpy())
        lines.append(
            f"With {_span(found['seeds'])} and this scatter, the smallest difference that the t-test can tell"
            f" from 0 is {effect:.1f} % of the baseline's mean in the median cell; that of each cell is in"
            " brackets behind its change."
        )
    return [Text(line) for line in lines]


def _n(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _span(values: pl.Series, what: str = "seed") -> str:
    """The least and the most of some counts.

    >>> _span(pl.Series([3, 5])), _span(pl.Series([1, 1]))
    ('3 to 5 seeds', '1 seed')
    """
    low, high = int(values.min()), int(values.max())  # type: ignore[arg-type]
    return _n(high, what) if low == high else f"{low:,} to {_n(high, what)}"


# Parts ------------------------------------------------------------------------------------------------------


def _tables(
    places: Sequence[Setting],
    asked: Study,
    verdicts: pl.DataFrame,
    alone: pl.DataFrame,
    ablations: pl.DataFrame,
) -> list[Table]:
    made = []
    for setting in places:
        own, variants = _here(verdicts, setting), _here(ablations, setting)
        made.append(tables.comparison(setting, own, asked))
        if len(own):
            made.append(tables.changes(setting, own))
        if len(setting.models) > 1:
            made.append(tables.leads(setting))
        for parent in variants["baseline"].unique(maintain_order=True):
            made.append(tables.ablation(setting, variants.filter(baseline=parent), parent))
    claims = tables.claims(places, asked)
    made += [claims] if claims is not None else []
    return made + ([tables.cells(verdicts, alone, asked.alpha)] if len(verdicts) else [])


def _figures(
    places: Sequence[Setting], asked: Study, verdicts: pl.DataFrame
) -> dict[str, tuple[str, Figure]]:
    page: Figure | None
    drawings: dict[str, tuple[str, Figure | None]] = {}
    kinds: dict[str, tuple[str, Callable[[Setting], Figure | None]]] = {
        "lambda-steps": ("Lambda by steps of the optimiser", figures.lambda_steps),
        "curves": ("Validation by epoch", figures.curves),
        "cost": ("Quality by cost", figures.cost),
    }
    drawable = verdicts.filter(pl.col("low").is_not_null(), pl.col("baseline_mean") > 0)
    for setting in places:
        own = _here(drawable, setting)
        if len(own):
            page = figures.forest(setting, own, asked.alpha)
            drawings[f"forest-{setting.key}"] = ("Differences to the baseline", page)
    page = figures.lambda_difference(places, drawable, asked.alpha)
    drawings["lambda-difference"] = ("Lambda and difference", page)
    for name, (title, draw) in kinds.items():
        for setting in places:
            drawings[f"{name}-{setting.key}"] = (title, draw(setting))
    return {name: (title, page) for name, (title, page) in drawings.items() if page is not None}


def _here(verdicts: pl.DataFrame, setting: Setting) -> pl.DataFrame:
    return verdicts.filter(dataset=setting.dataset, protocol=setting.protocol)


def _of(made: Iterable[Table], *kinds: str) -> list[Any]:
    return [table for table in made if table.name.partition("-")[0] in kinds]


def _drawn(pictures: dict[str, Picture], kind: str) -> list[Any]:
    return [picture for name, picture in pictures.items() if name.partition("-")[0] == kind]


def _table(name: str, title: str, lines: Sequence[dict[str, Any]], notes: Sequence[str] = ()) -> Table:
    """A table whose cells are texts already."""
    header = [*dict.fromkeys(key for line in lines for key in line)]
    rows = [[Cell(str(line.get(key, ""))) for key in header] for line in lines]
    return Table(name, title, header, rows, 0, [*notes], pl.DataFrame())


def _ran(places: Sequence[Setting], jobs: Ledger) -> list[Any]:
    """Settings and models with their seeds; what is missing, and what a reader should be warned of."""
    lines = []
    for setting in places:
        for model, runs in (setting.models | {m: {r.seed: r} for m, r in setting.references.items()}).items():
            some = [*runs.values()]
            seconds = sum(run.about["seconds"]["fit"] for run in some) / len(some)
            epochs = [run.about["epochs"] for run in some if run.trained]
            lines.append(
                {
                    "setting": setting.title,
                    "model": model,
                    "seeds": ", ".join(map(str, runs)) if some[0].trained else "not trained",
                    "loss": some[0].about["names"]["loss"] or "" if some[0].trained else "",
                    "parameters": f"{some[0].about['parameters']:,}",
                    "epochs trained (tested)": ", ".join(
                        f"{e['trained']} ({e['tested'] + 1})" for e in epochs
                    ),
                    "seconds of training (mean)": f"{seconds:,.1f}",
                }
            )
    parts: list[Any] = [_table("ran", "Finished runs", lines)]
    wanted = jobs.of("seed", "reference")
    states = {state: len([*group]) for state, group in groupby(sorted(job["state"] for job in wanted))}
    if wanted and states != {"finished": len(wanted)}:
        said = ", ".join(f"{count} {state}" for state, count in states.items())
        parts.append(Text(f"Not all of the {_n(len(wanted), 'run')} of the study are there: {said}."))
    for dataset, reason in jobs.absent.items():
        parts.append(Text(f"The dataset {dataset} is absent: {reason}"))
    return parts + [Text(line) for line in _warnings(places)]


def _warnings(places: Sequence[Setting]) -> list[str]:
    runs = [run for setting in places for run in setting.runs]
    lines = []
    sources: dict[str, int] = {}
    for run in runs:
        sources[run.about["source_digest"]] = sources.get(run.about["source_digest"], 0) + 1
    if len(sources) > 1:
        said = ", ".join(f"{digest[:DIGITS]} ({_n(count, 'run')})" for digest, count in sources.items())
        lines.append(f"Warning: the runs were made by {len(sources)} different sources of hydrec: {said}.")
    for setting in places:
        if setting.runs[0].about["dataset"]["stand_in"]:
            lines.append(f"Warning: {setting.title} is simulated, a stand-in for files that were not found.")
    return lines


def _searched(places: Sequence[Setting], jobs: Ledger, asked: Study) -> list[Any]:
    """What the search of each model tried, and what it found."""
    lines = []
    trials = jobs.of("trial")
    lower = any(
        setting.measured.directions.get(asked.monitor.removeprefix("valid/")) == "min" for setting in places
    )
    for where in dict.fromkeys((job["dataset"], job.get("protocol", ""), job["model"]) for job in trials):
        some = [job for job in trials if (job["dataset"], job.get("protocol", ""), job["model"]) == where]
        valued = [job for job in some if job["state"] == "finished" and job.get("value") is not None]
        best = (min if lower else max)(valued, key=lambda job: job["value"]) if valued else None
        states = {
            state: sum(job["state"] == state for job in some) for state in ("finished", "pruned", "failed")
        }
        tried = (best or {}).get("params") or {}
        shown = (
            f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
            for key, value in tried.items()
        )
        lines.append(
            dict(zip(("dataset", "protocol", "model"), where, strict=True))
            | states
            | {f"best {asked.monitor or 'value'}": f"{best['value']:.4f}" if best else "-"}
            | {"best parameters": ", ".join(shown) or "-"}
        )
    return [_table("search", "Trials of the search", lines)] if lines else []


def _failures(jobs: Ledger) -> list[Any]:
    parts: list[Any] = []
    for job in jobs.jobs:
        if job["state"] == "failed":
            lines = job["lines"] if isinstance(job["lines"], str) else "\n".join(job["lines"] or [])
            parts += [
                Text(
                    f"{job['kind'].capitalize()} {job['name']} failed: {job['reason'] or 'nothing was said'}."
                ),
                Log(lines),
            ]
    pruned = sum(job["state"] == "pruned" for job in jobs.jobs)
    return parts + (
        [Text(f"{_n(pruned, 'trial')} of the search {'was' if pruned == 1 else 'were'} pruned.")]
        if pruned
        else []
    )


def _identities(places: Sequence[Setting]) -> list[Any]:
    """For each number the data, protocol, code and machine that it is of."""
    parts: list[Any] = []
    for setting in places:
        about = setting.runs[0].about
        data, test = about["dataset"], about["dataset"]["parts"]["test"]
        protocol = ", ".join(f"{key} {value}" for key, value in about["protocol"].items() if key != "metrics")
        measured = ", ".join(f"{key} {value}" for key, value in about["protocol"]["metrics"].items())
        parts.append(
            Text(
                f"{setting.title}: {_n(data['users'], 'user')}, {_n(data['items'], 'item')},"
                f" {_n(data['interactions'], 'interaction')}; {_n(len(setting.facts), 'test row')} of"
                f" {_n(test['users'], 'user')}. Data {data['fingerprint']}. Protocol"
                f" {about['protocol_digest']}: {protocol}; metrics: {measured}."
            )
        )
        parts.append(
            _table(
                f"runs-{setting.key}",
                f"Runs of {setting.title}",
                [_identity(run, setting) for run in setting.runs],
            )
        )
    return parts


def _identity(run: Run, setting: Setting) -> dict[str, str]:
    about = run.about
    values = {
        tables.shown(metric): tables.number(metric, run.metrics[f"test/{metric}"])
        for metric in setting.metrics
    }
    return {
        "run": run.name,
        **values,
        "data": about["dataset"]["fingerprint"][:DIGITS],
        "protocol": about["protocol_digest"][:DIGITS],
        "code": about["source_digest"][:DIGITS],
        "machine": f"{about['device']} x {about['processes']}, {about['precision']}",
        "versions": ", ".join(f"{name} {number}" for name, number in about["versions"].items()),
    }

"""The mirror of a report in W&B, offline, read back from its file; the workspace as it would be sent."""

import json
from pathlib import Path

import polars as pl
import pytest

from hydrec.errors import InputError
from hydrec.study import dashboard, report, results


def test_the_report_is_mirrored_offline(ranked_in, tmp_path):
    runs = tmp_path / "mine"
    for model in ("sasrec", "other"):
        for seed in (0, 1):
            ranked_in(runs, model, seed, better=0.1 * (model == "other"))
    out = tmp_path / "report"
    report.write(runs, baseline="sasrec", metrics=["ndcg@10"], out=out)
    asked = results.study(runs, results.finished(runs), "sasrec", ["ndcg@10"])
    where = dashboard.mirror(out, study=asked, name="mine", project="hydrec", mode="offline")
    (file,) = Path(where).glob("*.wandb")
    content = file.read_bytes()
    for part in ("mine report", "robust_gains", "robust_losses"):
        assert part.encode() in content, part
    media = Path(where) / "files" / "media"
    (page,) = media.glob("html/*.html")
    assert page.read_text() == (out / "report.html").read_text()
    for kind, files in (
        ("images/figures", out.glob("figures/*.png")),
        ("table/tables", out.glob("tables/*.csv")),
    ):
        for path in files:
            assert list((media / kind).glob(f"{path.stem}_*")), path
    (table,) = media.glob("table/verdicts_*.json")
    verdicts = pl.read_csv(out / "verdicts.csv", infer_schema_length=None)
    assert json.loads(table.read_text())["data"] == [list(row) for row in verdicts.rows()]


def test_a_mode_that_is_none(tmp_path):
    with pytest.raises(InputError, match="wandb=on is none of offline, online"):
        dashboard.mirror(tmp_path, study=None, name="x", project="hydrec", mode="on")  # type: ignore[arg-type]


def test_the_workspace_shows_the_study_by_model():
    pytest.importorskip("wandb_workspaces")
    asked = results.Study(
        *("A title", ["a"], [], "a", ["ndcg@10", "hit@10"], 0.05, 2000, "users", {}, "", "valid/ndcg@10")
    )
    page = dashboard.workspace(asked, name="mine", project="hydrec", entity="me")
    assert page.name == "A title" and "mine" in str(page.runset_settings.filters)
    test, curves = page.sections
    assert [panel.metrics[0].name for panel in test.panels] == ["test/ndcg@10", "test/hit@10"]
    assert [panel.y for panel in curves.panels] == [["valid/ndcg@10"], ["valid/hit@10"]]
    assert {panel.groupby.name for panel in (*test.panels, *curves.panels)} == {"names.model"}

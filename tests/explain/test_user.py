"""One user by two models, against what the test left of both."""

import polars as pl
import pytest

from hydrec.explain.run import FinishedRun


@pytest.fixture
def shown(runs, answer):
    """The tables of a user, the user's last row of each test, and what was printed."""

    def shown(user, *more):
        status, out, err = answer("user", f"run={runs['hgnn']}", f"user={user}", *more)
        assert (status, err) == (0, "")
        folder = runs["hgnn"] / "explain" / "user"
        tables = (
            pl.read_csv(folder / f"{name}.csv", infer_schema_length=None) for name in ("history", "top")
        )
        return *tables, out

    return shown


def test_models_stand_side_by_side(runs, shown):
    tested = {name: FinishedRun(str(run)).tested() for name, run in runs.items()}
    user = tested["hgnn"]["user"].mode().sort()[0]
    others = ",".join(str(runs[name]) for name in ("sasrec", "ia_sasrec_add"))
    past, best, out = shown(user, f"others={others}", "k=4")
    items = FinishedRun(str(runs["hgnn"])).items()
    titles = dict(items.select(pl.col("raw"), "title").iter_rows())
    assert best["model"].unique(maintain_order=True).to_list() == ["hgnn", "sasrec", "ia_sasrec_add"]
    for (model,), some in best.group_by("model", maintain_order=True):
        row = tested[model].filter(user=user).sort("sample").row(-1, named=True)
        assert some["place"].to_list() == [1, 2, 3, 4]
        assert some["score"].is_sorted(descending=True)
        assert {*some["next_first"]} == {row["greater"] + 1}
        assert {*some["next_last"]} == {row["greater"] + row["equal"] + 1}
        assert {*some["candidates"]} == {row["candidates"]}
        hit = some.filter("is_next")
        assert len(hit) == (row["greater"] < 4)
        assert all(str(raw) == row["target"] for raw in hit["raw"])
        assert f"place {row['greater'] + 1}" in out
        assert {*some["title"]}.isdisjoint({*past["title"]})  # of models that mask the history
    assert all(titles[str(raw)] == title for raw, title in best.select("raw", "title").iter_rows())
    assert f"(* is the true next item, {titles[row['target']]}" in " ".join(out.split())
    assert len(past) == 8


def test_the_next_item_is_marked_where_it_is_found(runs, shown):
    tested = FinishedRun(str(runs["hgnn"])).tested().group_by("user").last()
    user, raw = tested.filter(pl.col("greater") < 10).sort("user").select("user", "target").row(0)
    _, best, _ = shown(user)
    assert [str(each) for each in best.filter("is_next")["raw"]] == [raw]
    svg = (runs["hgnn"] / "explain" / "user" / "user.svg").read_text()
    assert "bold" in svg or "#d55e00" in svg.lower()


def test_the_wandb_run_has_figure_and_tables(runs, shown):
    shown(FinishedRun(str(runs["hgnn"])).tested()["user"][0], "wandb=true")
    latest = max((runs["hgnn"] / "wandb").glob("offline-run-*"), key=lambda path: path.stat().st_mtime)
    names = {path.name.partition("_table")[0] for path in latest.rglob("media/table/**/*.json")}
    assert names == {"history", "top"}
    (picture,) = latest.rglob("media/images/**/*.png")
    assert picture.read_bytes() == (runs["hgnn"] / "explain" / "user" / "user.png").read_bytes()


def test_what_cannot_be_shown_is_one_line(runs, copied, refused):
    refused("user=nobody is no user of simulated", "user", f"run={runs['hgnn']}", "user=nobody")
    clicks = copied(runs["sasrec"], "clicks", model___target_="hydrec.tasks.Click")
    refused("a model of clicks: user explains", "user", f"run={runs['hgnn']}", f"others={clicks}")
    assert not (clicks / "explain").exists()
    refused("has no W&B run", "user", f"run={copied(runs['sasrec'])}", "wandb=true")

"""The plan of a study, and which of its jobs can be run when."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from hydrec.errors import InputError
from hydrec.overrides import check
from hydrec.sweep import study
from hydrec.sweep.ledger import Ledger

CONF = Path(__file__).parents[2] / "conf"
STUDIES = sorted(path.stem for path in (CONF / "study").glob("*.yaml") if not path.name.startswith("_"))


def settings(name="smoke", *overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return OmegaConf.to_container(compose("sweep", [f"study={name}", *overrides]).study, resolve=True)


@pytest.fixture(scope="module")
def cells():
    return study.plan(settings(), CONF)


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_has_a_plan(name):
    own = settings(name)
    # others differ in a name: composing each takes a minute
    own["datasets"], own["protocols"] = own["datasets"][:1], own["protocols"][:1]
    planned = study.plan(own, CONF)
    lines = {cell.model for cell in planned if cell.kind != "curve"}
    assert lines == {*own["models"], *own["variants"], *own["references"]}
    points = sum(len(curve["values"]) for curve in own["curves"])
    assert sum(cell.kind == "curve" for cell in planned) == points
    if own["search"] is not None:
        assert any(cell.space for cell in planned)
    if own["baseline"] is not None:
        assert own["baseline"] in {cell.model for cell in planned}


def finish(ledger, jobs, value=0.5):
    for job in jobs:
        ledger.register(job)
        changes = {"value": value + (job.number or 0) / 10} if job.kind == "trial" else {}
        ledger.set(job.name, state="finished", **changes)


def test_jobs_come_as_those_before_are_through(cells, tmp_path):
    own, ledger = settings(), Ledger(tmp_path)

    def new():
        return [job for job in study.jobs(cells, own, ledger) if ledger.state(job.name) != "finished"]

    assert [job.kind for job in new()] == ["data"]
    finish(ledger, new())
    # only SASRec is searched (of: sasrec); the second trial follows from the first; the reference needs none
    assert [(job.kind, job.model, job.number) for job in new()] == [
        ("trial", "sasrec", 0),
        ("reference", "itemknn", None),
    ]
    finish(ledger, new())
    assert [(job.kind, job.number) for job in new()] == [("trial", 1)]
    finish(ledger, new())
    runs = new()
    assert [(job.model, job.seed) for job in runs] == [
        (model, seed) for seed in (0, 1) for model in ("sasrec", "ia_sasrec_add", "ia_sasrec_val")
    ]
    # all take what was best for SASRec, the second trial
    found = ledger.jobs[next(name for name in ledger.jobs if "-t1-" in name)]["params"]
    for job in runs:
        for key, value in found.items():
            assert f"{key}={value}" in [text.replace('"', "") for text in job.overrides]
    assert study.count(cells, own, ledger) == len(list(study.jobs(cells, own, ledger)))


def test_jobs_keep_their_names_when_a_study_grows(cells, tmp_path):
    own, ledger = settings(), Ledger(tmp_path)
    for _ in range(4):
        finish(ledger, list(study.jobs(cells, own, ledger)))
    before = {job.name for job in study.jobs(cells, own, ledger)}
    more = settings("smoke", "study.seeds=[0,1,2]", "study.search.trials=3")
    cells = study.plan(more, CONF)
    now = {job.name for job in study.jobs(cells, more, ledger)}
    # the third trial may find better settings: until then no run is known
    assert {name for name in before if name.startswith(("data", "trials"))} <= now
    assert len([name for name in now if name.startswith("trials")]) == 3
    other = settings("smoke", "study.search.epochs=3")
    assert (
        not {job.name for job in study.jobs(study.plan(other, CONF), other, ledger) if job.kind == "trial"}
        & before
    )


def test_absent_data_hold_nothing_else_up(tmp_path):
    own = settings("smoke", "study.datasets=[steam,simulated]", "study.overrides=[]")
    cells, ledger = study.plan(own, CONF), Ledger(tmp_path)
    jobs = list(study.jobs(cells, own, ledger))
    assert [job.dataset for job in jobs] == ["steam", "simulated"]
    for job in jobs:
        ledger.register(job)
    ledger.set(jobs[0].name, state="absent")
    ledger.set(jobs[1].name, state="finished")
    later = list(study.jobs(cells, own, ledger))
    assert {job.dataset for job in later[2:]} == {"simulated"}
    assert study.count(cells, own, ledger) == 2 + 2 + 3 * 2 + 1


def test_no_trial_that_finished_means_no_run(cells, tmp_path):
    own, ledger = settings(), Ledger(tmp_path)
    for _ in range(4):
        for job in study.jobs(cells, own, ledger):
            ledger.register(job)
            ledger.set(job.name, state="failed" if job.kind == "trial" else "finished")
    assert not [job for job in study.jobs(cells, own, ledger) if job.kind == "seed"]


def test_variants_and_rules():
    own = settings(
        "smoke",
        "study.search=null",
        "+study.variants.pinned=['model=ia_sasrec_pinned','model.net.lambda_value=0.5']",
        "study.where=[{model:[sasrec,ia_sasrec_pinned],set:['model.net.dim=32']}]",
    )
    planned = {cell.model: cell for cell in study.plan(own, CONF)}
    assert planned["pinned"].overrides[0] == "model=ia_sasrec_pinned"
    assert "model.net.lambda_value=0.5" in planned["pinned"].overrides
    assert (
        "model.net.dim=32" in planned["pinned"].overrides
        and "model.net.dim=32" in planned["sasrec"].overrides
    )
    assert "model.net.dim=32" not in planned["ia_sasrec_add"].overrides
    assert planned["sasrec"].epochs == 8


def test_a_curve_takes_what_the_search_found_but_for_its_own_key(tmp_path):
    own = settings(
        "smoke",
        "study.models=[sasrec]",
        "study.references=[]",
        "study.curves=[{model:sasrec,key:model.net.dim,values:[8,16]}]",
    )
    cells, ledger = study.plan(own, CONF), Ledger(tmp_path)
    for _ in range(4):
        finish(
            ledger, [job for job in study.jobs(cells, own, ledger) if ledger.state(job.name) != "finished"]
        )
    jobs = list(study.jobs(cells, own, ledger))
    found = ledger.jobs[next(name for name in ledger.jobs if "-t1-" in name)]["params"]
    curve = [job for job in jobs if job.kind == "curve"]
    assert [(job.model, job.params, job.seed) for job in curve] == [
        ("sasrec", {"model.net.dim": dim}, seed) for seed in (0, 1) for dim in (8, 16)
    ]
    for job in curve:
        given = dict(text.split("=", 1) for text in job.overrides)
        assert float(given.pop("model.net.dim")) == job.params["model.net.dim"]
        assert all(given[key].strip('"') == str(found[key]) for key in found if key != "model.net.dim")
    assert len({job.folder for job in jobs if job.folder}) == len([job for job in jobs if job.folder])
    assert study.count(cells, own, ledger) == len(jobs)


def test_a_model_with_a_loss_of_its_own_keeps_it():
    own = settings("smoke", "study.references=[retagnn]", "study.search=null")
    own["models"] = ["click_constant"]
    own["datasets"], own["protocols"], own["baseline"], own["overrides"] = (
        ["simulated"],
        ["click_last"],
        None,
        [],
    )
    own["references"] = []
    (cell,) = study.plan(own, CONF)
    assert not any(text.startswith("loss=") for text in cell.overrides)


def test_the_command_line_of_a_study_is_checked():
    check(["study=smoke", "study.search=null", "study.baseline=null", "launcher.at_once=2"], CONF, "sweep")
    check(["study=hgnn", "launcher=slurm", "launcher.more={qos:long}"], CONF, "sweep")
    for wrong, said in (
        ("study=smok", "did you mean study=smoke?"),
        ("study.seed=[0]", "study.seed is not a key; did you mean study.seeds?"),
        ("launcher.at_one=2", "did you mean launcher.at_once?"),
        ("dry_run=yes", "true or false is expected"),
        ("model=sasrec", "model is not a key"),
    ):
        with pytest.raises(InputError) as caught:
            check(["study=smoke", wrong] if not wrong.startswith("study=") else [wrong], CONF, "sweep")
        assert said in str(caught.value)


def test_the_last_override_of_a_key_counts():
    assert study.merged("a=1", "b=2", "a=3") == ("a=3", "b=2")
    assert study.merged("+a=1", "a=2") == ("a=2",)


@pytest.mark.parametrize(
    "overrides, said",
    [
        (["study.datasets=[]"], "study.datasets is empty"),
        (["study.models=[sasrec,sasrec]"], "sasrec stands there twice"),
        (["study.seeds=[-1]"], "study.seeds=-1"),
        (["study.baseline=gru4rec"], "study.baseline=gru4rec is none of"),
        (["study.models=[sasrek]", "study.baseline=null"], "did you mean sasrec?"),
        (["study.datasets=[simulate]"], "study.datasets=simulate is none of"),
        (["+study.variants.x=['model=sasrek']"], "study.variants.x=sasrek is none of"),
        (["study.search.of=gru4rec"], "study.search.of=gru4rec"),
        (["+study.search.space.model.net.dmi=[1]"], "space"),
        (["study.where=[{datset:x,set:[]}]"], "study.where=datset is none of dataset, protocol, model, set"),
        (["study.where=[{dataset:simulatet,set:[]}]"], "study.where.dataset=simulatet"),
        (["study.where=[{dataset:simulated}]"], "needs set="),
        (["study.curves=[{model:sasrec,key:model.net.dim}]"], "needs model=NAME, key=KEY and values"),
        (["study.curves=[{model:hgnn,key:model.net.dim,values:[1]}]"], "study.curves.model=hgnn is none of"),
        (["+study.variants.x=['model.net.dim=3']"], "study.variants.x: needs one model=NAME"),
        (["study.overrides=['trainer.max_epoch=3']"], "did you mean trainer.max_epochs"),
    ],
)
def test_a_study_that_makes_no_sense(overrides, said):
    with pytest.raises(InputError) as caught:
        study.plan(settings("smoke", *overrides), CONF)
    assert said in str(caught.value) and "\n" not in str(caught.value)

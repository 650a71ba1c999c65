"""What a user can get wrong on the command line, and what runs when nothing is wrong."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from hydra import compose
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from hydrec import cli
from hydrec.errors import InputError
from hydrec.overrides import check, defaults, nearest, options, purpose

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"

# Stands in for the pipeline in subprocesses: notes what it was given, or goes wrong in the way the seed says.
PIPELINE = """
import json, os, sys, time, types

def run(cfg):
    from omegaconf import OmegaConf
    from hydrec.errors import InputError
    note = {"cfg": OmegaConf.to_container(cfg, resolve=True), "argv": sys.argv[1:], "parent": os.getppid()}
    with open(f"job-{cfg.seed}.json", "w") as file:
        json.dump(note, file)
    if cfg.seed == 11:
        raise InputError("the file is empty:\\n fill it")
    if cfg.seed == 12:
        raise ZeroDivisionError("nothing left")
    if cfg.seed == 13:
        time.sleep(60)
    print(f"ran {cfg.seed}")

pipeline = types.ModuleType("hydrec.pipeline")
pipeline.run = run
sys.modules["hydrec.pipeline"] = pipeline
"""

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Starts ``train.py`` in an empty folder with the pipeline above."""
    site, work = tmp_path / "site", tmp_path / "work"
    site.mkdir()
    work.mkdir()
    (site / "sitecustomize.py").write_text(PIPELINE)

    def run(*args: str, **env: str) -> subprocess.Popen[str]:
        path = os.pathsep.join([str(site), str(ROOT / "src")])
        return subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *args],
            cwd=work,
            env=os.environ | {"PYTHONPATH": path} | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return run


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return tmp_path / "work"


def jobs(work: Path) -> dict[int, dict]:
    return {n["cfg"]["seed"]: n for n in (json.loads(p.read_text()) for p in work.glob("job-*.json"))}


MISTAKES = {
    # keys
    "seeed=1": "did you mean seed?",
    "model=mian protocol=click_last loss=softmax": "model=mian has a loss of its own",
    "model=din protocol=click_last loss.objective.t=0.5": "model=din has a loss of its own",
    "max_epochs=3": "did you mean trainer.max_epochs?",
    "trainer.max_epoch=3": "did you mean trainer.max_epochs?",
    "lr=0.1": "did you mean model.optimiser.lr?",
    "model.dim=3": "did you mean model.net.dim?",
    "model.net={dmi: 3}": "did you mean model.net.dim?",
    "+model.net.dmi=3": "did you mean model.net.dim?",
    "+foo=1": "foo is not a key; did you mean",
    "++foo.bar=1": "foo.bar is not a key; did you mean",
    "names.model=x": "names.model is not a key",
    "+seed=1": "without the +",
    "hydra.jobb=1": "hydra.jobb",
    # groups and options
    "modle=hgnn": "did you mean model?",
    "model=hgn": "did you mean model=hgnn?",
    "model=[hgn]": "did you mean model=hgnn?",
    "dataset=movielense": "did you mean dataset=movielens?",
    "trainer=dpp": "did you mean trainer=ddp?",
    "experiment=nothing_like_it": "there is no such experiment",
    "+model=hgnn": "write model=hgnn",
    "model=null": "a run needs a model",
    "~model": "a run needs a model",
    "debug=null": "leave it out",
    "~seed": "seed is needed",
    "hydra/launcher=slurm": "hydra/launcher",
    # a group not chosen
    "logger.tensorboard.name=x logger=none": "tensorboard",
    "logger.wandb.project=x logger=none": "logger=wandb,wandb_online,wandb_tensorboard",
    # values
    "trainer.max_epochs=abc": "a whole number is expected, as in trainer.max_epochs=200",
    "trainer.max_epochs=": "a whole number is expected",
    "trainer.use_distributed_sampler=maybe": "true or false is expected",
    "batch_size=10.5": "a whole number is expected",
    "batch_size=[1]": "a whole number is expected",
    "seed=null": "a value is expected",
    "seed=true": "a whole number is expected",
    "rerun=1": "true or false is expected, as in rerun=false",
    "protocol.metrics.at=10": "a list is expected, as in protocol.metrics.at=[",
    "stopping=3": "(stopping.monitor, stopping.patience, stopping.min_steps)",
    "paths.runs=[a]": "a single value is expected",
    # form
    "seed": "write seed=VALUE",
    "hgnn": "a value is missing",
    "seed==1": "cannot be read",
    "seed=(1": "cannot be read",
    "--modle hgnn": "--modle is not a flag",
    "--config-name other": "--config-name is not for train.py",
    # sweeps
    "model=hgnn,popularity": "need -m",
    "seed=0,1": "need -m, as in -m seed=0,1",
    "seed=range(3)": "need -m",
    "seed=choice(1)": "need -m",
    "-m seed=interval(0,1)": "an interval",
    "-m model=hgnn,sasrc": "model=sasrc: there is no such model",
    "-m trainer.max_epochs=1,x": "trainer.max_epochs=x: a whole number",
    "-m logger=wandb,none logger.wandb.project=x": "not a key of logger=none",
    "seeds=five seed=7": "seed=7: seeds=five",
    "-m seeds=one,five": "seeds=five",
    "seeds=fife": "did you mean seeds=five?",
    "dataset=table dataset.reader.columns={usr: x}": "did you mean dataset.reader.columns.user?",
}


@pytest.fixture(scope="module", autouse=True)
def composed_once() -> Iterator[None]:
    """Most lines need the same few compositions; nobody changes one."""

    @cache
    def known(name: str, texts: tuple[str, ...], hydra: bool) -> DictConfig:
        return compose(name, list(texts), return_hydra_config=hydra)

    def once(name: str, texts: list[str], return_hydra_config: bool = False) -> DictConfig:
        return known(name, tuple(texts), return_hydra_config)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hydrec.overrides.compose", once)
        yield


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_line_with_the_nearest_valid_name(line: str) -> None:
    arguments = re.findall(r"\S+\{.*?\}|\S+", line)
    with pytest.raises(InputError) as caught:
        check(arguments, CONF)
    assert MISTAKES[line] in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "model=hgnn seed=3 trainer.max_epochs=2 protocol.candidates=sampled loss.candidates.count=5",
        "trainer.devices=[0,1] +trainer.max_steps=10 trainer.gradient_clip_val=1.0 trainer.devices=auto",
        "trainer.limit_train_batches=5 trainer=ddp_cpu trainer.strategy=auto",
        "dataset.stand_in=false model.optimiser.lr=1e-3 +model.optimiser.weight_decay=0.1",
        "protocol.metrics.at=[5] ckpt_path='a, b' paths.runs=/tmp/x",
        "-m model=hgnn,popularity seed=0,1 trainer.max_epochs=1",
        "seed=range(2) -m",
        "seed=1 -m model=hgnn,popularity",
        "seeds=five model=hgnn,popularity",
        "seeds=five seed=1 hydra.mode=RUN",
        "~trainer.precision hydra.verbose=true --cfg job",
        "dataset=table dataset.reader.where={3:play} dataset.reader.columns={user:1,item:2}",
    ],
)
def test_what_is_right_passes(line: str) -> None:
    check(re.findall(r"\S*'.*?'|\S+", line), CONF)


def test_nearest_prefers_the_last_component() -> None:
    known = ["trainer.max_epochs", "model.net.dim", "seed", "model"]
    assert nearest("dim", known) == "model.net.dim"
    assert nearest("Trainer.MaxEpochs", known) == "trainer.max_epochs"


def test_every_group_is_one_of_a_command() -> None:
    groups = {path.name for path in CONF.iterdir() if path.is_dir()}
    assert groups == set(defaults(CONF)) | set(defaults(CONF, "sweep"))


@pytest.mark.parametrize("root", ["train", "sweep"])
def test_help_has_every_group_option_and_key(root: str) -> None:
    page = cli.help_page(CONF, root)
    for group, default in defaults(CONF, root).items():
        block = page.split(f"\n{group}")[1].split("\n\n")[0]
        for option in options(CONF, group):
            mark = "*" if option == default else " "
            about = purpose(CONF / group / f"{option}.yaml")
            assert re.search(
                rf"^  {re.escape(mark)} {re.escape(option)} +{re.escape(about)}$", block, re.M
            ), option
    for key in OmegaConf.load(CONF / f"{root}.yaml"):
        assert key in ("defaults", "hydra") or re.search(rf"^  {key}: .*  [a-z0-9]", page, re.M), key


def test_help_is_quick_and_imports_no_torch() -> None:
    code = "import runpy, sys\nsys.argv = ['train.py', '--help']\n"
    code += "try: runpy.run_path('train.py', run_name='__main__')\n"
    code += "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "0 False"
    assert time.perf_counter() - started < 2


def test_a_mistake_ends_with_status_2_and_one_line(start: Start) -> None:
    process = start("model=hgn")
    out, err = process.communicate()
    assert (process.returncode, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("hydrec: model=hgn: ")


def test_a_job_gets_the_configuration_and_the_names_of_its_options(start: Start, work: Path) -> None:
    process = start("model=popularity", "-r", "seed=3")
    out, err = process.communicate()
    assert (process.returncode, out, err) == (0, "ran 3\n", "")
    cfg = jobs(work)[3]["cfg"]
    assert cfg["names"] == {
        "dataset": "movielens",
        "protocol": "sliding_window",
        "model": "popularity",
        "loss": defaults(CONF)["loss"],
    }
    assert {path.name for path in work.iterdir()} == {"job-3.json"}, "Hydra left something behind"


@pytest.mark.parametrize(
    ("seed", "status", "line"),
    [
        (11, 2, "hydrec: the file is empty: fill it\n"),
        (12, 1, "hydrec: ZeroDivisionError: nothing left (HYDRA_FULL_ERROR=1 shows the traceback)\n"),
    ],
)
def test_a_failing_job_is_one_line(start: Start, seed: int, status: int, line: str) -> None:
    process = start(f"seed={seed}")
    assert process.communicate()[1] == line
    assert process.returncode == status


def test_multirun_runs_each_job_in_a_process_of_its_own(start: Start, work: Path) -> None:
    process = start("-m", "seed=0,11,12,1", "trainer=ddp_cpu")
    out, err = process.communicate()
    assert process.returncode == 1
    notes = jobs(work)
    assert list(notes) and set(notes) == {0, 1, 11, 12}, "a failing job stopped the others"
    for note in notes.values():
        # Lightning repeats the command line for every process: it must be this job and no sweep
        assert note["parent"] == process.pid
        assert not {"-m", "--multirun"} & set(note["argv"])
        assert note["cfg"]["trainer"]["devices"] == 2
    assert re.findall(r"^hydrec: job .*$", err, re.M) == [
        "hydrec: job 1 failed with exit status 2: seed=11 trainer=ddp_cpu",
        "hydrec: job 2 failed with exit status 1: seed=12 trainer=ddp_cpu",
    ]
    assert not re.search(r"\d\d:\d\d|20\d\d-", out + err)
    left = {path.relative_to(work).as_posix() for path in work.rglob("*") if path.is_file()}
    assert left == {*(f"job-{seed}.json" for seed in notes), "cache/multirun/multirun.yaml"}


def test_seeds_five_is_five_seeds(start: Start, work: Path) -> None:
    process = start("seeds=five", "logger=none")
    process.communicate()
    assert process.returncode == 0
    five = {seed: note["cfg"] for seed, note in jobs(work).items()}
    assert sorted(five) == [0, 1, 2, 3, 4]
    start("-m", "seed=4", "logger=none").communicate()
    four = jobs(work)[4]["cfg"]
    assert five == {seed: four | {"seed": seed, "dataset": five[seed]["dataset"]} for seed in five}
    assert {cfg["dataset"].get("seed") for cfg in five.values()} == set(five)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_all_jobs(start: Start, work: Path, number: signal.Signals, status: int) -> None:
    process = start("-m", "seed=13,0")
    deadline = time.monotonic() + 300
    while not (work / "job-13.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.2)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == status
    assert "Traceback" not in err
    assert set(jobs(work)) == {13}
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # nobody of the group is left


def report(error: Exception, cfg: dict, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    status = cli.report(error, OmegaConf.create(cfg))
    return status, capsys.readouterr().err


def raised(call: Callable[[], object]) -> Exception:
    with pytest.raises((InstantiationException, TypeError)) as caught:
        call()
    return caught.value


def test_a_wrong_argument_is_named_by_its_key(capsys: pytest.CaptureFixture[str]) -> None:
    cfg = {"a": {"b": {"_target_": "fractions.Fraction", "numeratr": 1}}}
    error = raised(lambda: instantiate(cfg["a"]["b"]))
    line = "hydrec: a.b.numeratr: fractions.Fraction takes no numeratr; did you mean a.b.numerator?\n"
    assert report(error, cfg, capsys) == (2, line)


def test_a_wrong_argument_that_is_handed_on_to_a_parent_is_named_by_its_key(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shared = {
        "candidates": "full",
        "mask_history": False,
        "cold": "keep",
        "shuffle_ties": None,
        "sampled": {},
    }
    cfg = {"p": {"_target_": "hydrec.data.protocols.LeaveOneOut", "windw": 12, "metrics": None, **shared}}
    error = raised(lambda: instantiate(cfg["p"]))
    line = "hydrec: p.windw: hydrec.data.protocols.LeaveOneOut takes no windw; did you mean p.window?\n"
    assert report(error, cfg, capsys) == (2, line)


def test_a_wrong_argument_of_a_partial_is_named_by_its_key(capsys: pytest.CaptureFixture[str]) -> None:
    cfg = {"model": {"optimiser": {"_target_": "torch.optim.Adam", "_partial_": True, "learning_rate": 0.1}}}
    error = raised(lambda: instantiate(cfg["model"]["optimiser"])([]))
    status, line = report(error, cfg, capsys)
    assert status == 2
    assert line.startswith("hydrec: model.optimiser.learning_rate: torch.optim.Adam takes no learning_rate")


def test_a_missing_argument_is_named_by_its_key(capsys: pytest.CaptureFixture[str]) -> None:
    cfg = {"a": {"b": {"_target_": "textwrap.fill", "width": 3}}}
    error = raised(lambda: instantiate(cfg["a"]["b"]))
    assert report(error, cfg, capsys) == (2, "hydrec: a.b.text is missing: textwrap.fill needs it\n")


def test_an_input_error_in_a_constructor_is_its_own_line(capsys: pytest.CaptureFixture[str]) -> None:
    error = InstantiationException("Error in call to target\nfull_key: model")
    error.__cause__ = InputError("model.dim=0: at least 1")
    assert report(error, {}, capsys) == (2, "hydrec: model.dim=0: at least 1\n")


def test_another_error_in_a_constructor_names_the_key(capsys: pytest.CaptureFixture[str]) -> None:
    cfg = {"x": {"y": {"_target_": "fractions.Fraction", "numerator": "one"}}}
    status, line = report(raised(lambda: instantiate(cfg)), cfg, capsys)
    assert status == 1
    assert re.fullmatch(r"hydrec: x\.y: ValueError: Invalid literal.* \(HYDRA_FULL_ERROR=1 .*\)\n", line)


def test_full_error_shows_the_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    status, text = report(InputError("no file"), {}, capsys)
    assert status == 2
    assert "InputError: no file" in text


def test_other_processes_of_a_run_do_not_repeat_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert report(InputError("no file"), {}, capsys) == (2, "")


def test_an_error_of_one_process_in_training_names_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    assert report(InputError("not finite"), {}, capsys) == (2, "hydrec: process 1: not finite\n")

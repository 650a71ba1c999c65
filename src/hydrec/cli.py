"""The command line around Hydra: help page, jobs in processes of their own, errors in one line, exit status.

Exit status: 0 done, 1 failed, 2 something the user can mend, 130 interrupted, 143 terminated.
Nothing here imports torch before a job starts: help and mistakes are answered at once.
"""

import contextlib
import ctypes
import os
import re
import shlex
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from hydrec.errors import InputError
from hydrec.overrides import arguments, check, defaults, nearest, options, parameters, purpose

INTERRUPTED, TERMINATED = 130, 143
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt

HELP = """\
Trains a model, tests it once, and leaves everything about the run in one folder under runs/.

  python train.py                                       {default}
  python train.py model=hgnn dataset=movielens seed=1   options of groups, and values
  python train.py -m seed=0,1,2,3,4                     several runs, one after the other; also: seeds=five
  python train.py -m model=hgnn,popularity seed=0,1     all combinations
  python train.py hparams_search=tpe model=sasrec       a search first, then the run with what it found
  python train.py trainer=ddp                           several GPUs
  python train.py fit=false ckpt_path=RUN/checkpoints/best.ckpt
                                                        test a checkpoint, also among other candidates
  python train.py --cfg job                             print every key with its value, run nothing

The same command continues a run that was cut off and shows one that is finished (rerun=true repeats it).

GROUPS (group=option; * is chosen unless you say otherwise)
{groups}

KEYS (key=value; those inside an option have its path: trainer.max_epochs=20, model.net.dim=32)
{keys}

What a library's constructor takes and the option leaves out is added with +, as in +trainer.max_steps=100.
HYDREC_DATA=FOLDER says where raw files lie, HYDREC_OFFLINE=1 downloads none; HYDRA_FULL_ERROR=1 shows
tracebacks.
Exit status: 0 done, 1 failed, 2 something you can mend, 130 interrupted, 143 terminated.
"""

SWEEP_HELP = """\
Runs a study: a search for settings for each data set and model, a run for each seed, then a report with
verdicts. Every job is a process of its own; the same command goes on where a sweep was cut off.

  python sweep.py study=smoke                           two minutes, on simulated interactions
  python sweep.py study=ia_sasrec dry_run=true          the plan and what it costs, from a few timed steps
  python sweep.py study=ia_sasrec launcher.at_once=4    jobs at a time
  python sweep.py study=ia_sasrec launcher=slurm        on a cluster
  python sweep.py study=ia_sasrec study.seeds=[0,1]     any key of a study
  python sweep.py study=ia_sasrec --cfg job             print every key with its value, run nothing

It leaves runs/NAME/: the run folders, trials/, logs/, ledger.json and report/report.html.

GROUPS (group=option; * is chosen unless you say otherwise)
{groups}

KEYS (key=value; those inside an option have its path: launcher.at_once=2, study.search.trials=10)
{keys}

HYDREC_DATA=FOLDER says where raw files lie; HYDRA_FULL_ERROR=1 shows tracebacks.
Exit status: 0 done, 1 a job failed, 2 something you can mend, 130 interrupted, 143 terminated.
"""

# (number, overrides, exit status) of the jobs of this process that failed
_failed: list[tuple[int, str, int]] = []


def main(entry: Callable[[], None], conf: Path, root: str = "train") -> int:
    """Answers ``--help``, refuses mistakes, then hands over to Hydra.

    Args:
        entry: what ``hydra.main`` made; calls `job` once per job, or `study`.
        conf: the config folder.
        root: the config of the command, ``train`` or ``sweep``.

    Returns:
        The exit status.
    """
    try:
        args = arguments(sys.argv[1:], root)
        if args.help:
            print(help_page(conf, root), end="")
            return 0
        check(sys.argv[1:], conf, root)
        flags = [argument for argument in sys.argv[1:] if argument not in args.overrides]
        sys.argv[1:] = [*args.overrides, *flags]  # Hydra does not take flags in between
        signal.signal(signal.SIGTERM, _terminate)
        entry()
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as end:
        if end.code == INTERRUPTED:
            print("hydrec: interrupted; the same command continues", file=sys.stderr)
        raise
    except Exception as error:
        return report(error)
    for number, overrides, status in _failed:
        print(f"hydrec: job {number} failed with exit status {status}: {overrides}", file=sys.stderr)
    return 1 if _failed else 0


def job(cfg: DictConfig) -> None:
    """Runs one job: here, or as one of several in a child process of its own.

    A child has clean memory, random numbers and W&B, and a command line without ``-m``: Lightning repeats the
    command line for every process of a distributed run, which must not start the sweep anew.

    Args:
        cfg: the composed configuration of the job.

    Raises:
        SystemExit: the job failed; carries the exit status.
    """
    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN:
        own = [o for o in hydra.overrides.hydra if not o.startswith("hydra.mode=")]
        status = _in_child([sys.argv[0], *hydra.overrides.task, *own, "hydra.mode=RUN"])
        if status == INTERRUPTED:
            raise KeyboardInterrupt
        if status != 0:
            _failed.append((hydra.job.num, shlex.join(hydra.overrides.task), status))
        return
    if "hparams_search" in cfg:
        _search(cfg, [*hydra.overrides.task], hydra.runtime.choices)
        return
    with open_dict(cfg):
        cfg.names = {
            group: hydra.runtime.choices[group] for group in ("dataset", "protocol", "model", "loss")
        }
    try:
        tune()
        from hydrec import pipeline  # torch and Lightning take seconds to import

        pipeline.run(cfg)
    except Exception as error:
        raise SystemExit(report(error, cfg)) from None
    except SystemExit as end:
        # Lightning leaves by 1 after Ctrl-C and by 0 after SIGTERM
        if isinstance(end.__context__, KeyboardInterrupt):
            raise SystemExit(INTERRUPTED) from None
        if type(end).__name__ == "SIGTERMException":
            raise SystemExit(TERMINATED) from None
        raise


def _search(cfg: DictConfig, overrides: list[str], choices: dict[str, Any]) -> None:
    """One job of ``train.py hparams_search=...``: the search, which all seeds share, then the run."""
    from hydrec.sweep import engine  # Optuna takes a while to import

    conf = Path(sys.argv[0]).resolve().parent / "conf"
    GlobalHydra.instance().clear()  # the command lines of the search are composed in their turn
    try:
        settings: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        command = engine.tuned(overrides, choices, settings, conf)
    except Exception as error:
        raise SystemExit(report(error, cfg)) from None
    status = _in_child(command[1:]) if command else 1  # shows the results
    if status != 0:
        raise SystemExit(status)


def study(cfg: DictConfig, conf: Path) -> None:
    """Runs a study to its end and has its report written.

    Args:
        cfg: the composed configuration of ``sweep.py``.
        conf: the config folder.

    Raises:
        SystemExit: with the exit status, where something failed.
    """
    from hydrec.sweep import engine  # Optuna takes a while to import

    name = HydraConfig.get().runtime.choices["study"]
    GlobalHydra.instance().clear()  # the command lines of the study are composed in their turn
    try:
        if name is None:
            raise InputError(f"study=NAME is missing: {', '.join(options(conf, 'study'))}")
        settings: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        well = engine.run(name, settings, conf)
    except Exception as error:
        raise SystemExit(report(error, cfg)) from None
    if not well:
        raise SystemExit(1)


def tune() -> None:
    """Sets up the C runtime for training, before torch is there."""
    # Waiting threads spin for long by default: on a busy machine a training step took ten times as long.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # glibc hands a step's tensors back to the system and asks for them anew: a sixth of HGNN's step.
    with contextlib.suppress(OSError, AttributeError, TypeError):  # other C libraries
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(MMAP_THRESHOLD, 2**25)  # the largest it takes
        mallopt(TRIM_THRESHOLD, 2**31 - 1)


def _in_child(command: list[str]) -> int:
    sys.stdout.flush()
    process = subprocess.Popen([sys.executable, *command])
    try:
        status = process.wait()
    except KeyboardInterrupt:
        # a terminal interrupts the child as well: it has time to save; where only we were told, we tell it
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
        process.send_signal(signal.SIGINT)
        process.wait()
        raise
    except SystemExit:
        process.terminate()
        process.wait()
        raise
    return status if status >= 0 else 128 - status  # as a shell counts a death by signal


def _terminate(number: int, frame: FrameType | None) -> None:
    # while Lightning fits, its own handler calls this one: it leaves at the end of the batch, so we must not
    if signal.getsignal(signal.SIGTERM) is _terminate:
        raise SystemExit(TERMINATED)


def help_page(conf: Path, root: str = "train") -> str:
    """The page that ``--help`` prints: commands, every group with its options and their purpose, the keys."""
    chosen = defaults(conf, root)
    groups = []
    for group, default in chosen.items():
        names = options(conf, group)
        width = max(map(len, names), default=0)
        lines = [
            f"  {'*' if name == default else ' '} {name:<{width}}  {purpose(conf / group / f'{name}.yaml')}"
            for name in names
        ]
        groups.append("\n".join([f"{group}{'' if default else ' (none unless chosen)'}", *lines]))
    keys = re.findall(r"^(\w+: \S.*?)(?:  # (.*))?$", (conf / f"{root}.yaml").read_text(), re.MULTILINE)
    width = max(len(key) for key, _ in keys)
    named = [group for group in ("model", "dataset", "protocol") if group in chosen]
    return {"train": HELP, "sweep": SWEEP_HELP}[root].format(
        default=" ".join(f"{group}={chosen[group]}" for group in named),
        groups="\n".join(groups),
        keys="\n".join(f"  {key:<{width}}  {comment}" for key, comment in keys),
    )


def report(error: Exception, cfg: DictConfig | None = None) -> int:
    """Prints an exception on stderr: as one line, or as its traceback where ``HYDRA_FULL_ERROR=1``.

    Args:
        error: what was raised.
        cfg: the configuration of the job, to name the key that a constructor was given.

    Returns:
        The exit status: 2 for what the user can mend, 1 for anything else.
    """
    line, status = _explain(error, cfg)
    ranks = [os.environ[key] for key in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if key in os.environ]
    rank = int(ranks[0]) if ranks else 0
    distributed = sys.modules.get("torch.distributed")
    if rank > 0:
        if distributed is None or not distributed.is_initialized():
            return status  # all processes got this far alike: the first one has said it
        line = f"process {rank}: {line}"
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        traceback.print_exception(error)
    else:
        print(f"hydrec: {line}", file=sys.stderr, flush=True)
    return status


def _explain(error: Exception, cfg: DictConfig | None) -> tuple[str, int]:
    chain = [error]
    while isinstance(chain[-1].__cause__, Exception):
        chain.append(chain[-1].__cause__)
    for link in chain:
        if isinstance(link, InputError):
            return _one_line(link), 2
    for link in chain:
        if isinstance(link, TypeError) and cfg is not None and (line := _wrong_argument(str(link), cfg)):
            return line, 2
    where = ""
    if isinstance(error, InstantiationException):  # says only which key; its cause says what
        key = re.search(r"full_key: (\S+)", str(error))
        where = f"{key[1]}: " if key else ""
        error = chain[1] if len(chain) > 1 else error
    return f"{where}{type(error).__name__}: {_one_line(error)} (HYDRA_FULL_ERROR=1 shows the traceback)", 1


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _wrong_argument(message: str, cfg: DictConfig) -> str | None:
    """A constructor's complaint about the name of an argument, in the words of the configuration."""
    unknown = re.match(r"(\w+)(?:\.\w+)*\(\) got an unexpected keyword argument '(\w+)'", message)
    missing = re.match(r"(\w+)(?:\.\w+)*\(\) missing .* arguments?: '(\w+)'", message)
    found = unknown or missing
    if found is None:
        return None
    owner, name = found.groups()
    for key, node in _constructed(cfg):
        target = get_object(node._target_)
        if owner not in [part.__name__ for part in getattr(target, "__mro__", [target])]:
            continue
        if missing and name not in node:
            return f"{key}.{name} is missing: {node._target_} needs it"
        if unknown and name in node:
            near = f"{key}.{nearest(name, parameters(target))}"
            return f"{key}.{name}: {node._target_} takes no {name}; did you mean {near}?"
    return None


def _constructed(node: Any, key: str = "") -> Iterator[tuple[str, DictConfig]]:
    """The nodes of a configuration that name a constructor, with their keys."""
    if isinstance(node, ListConfig):
        for index, child in enumerate(node):
            yield from _constructed(child, f"{key}[{index}]")
    elif isinstance(node, DictConfig):
        if "_target_" in node:
            yield key, node
        for name in map(str, node):
            if not OmegaConf.is_interpolation(node, name) and not OmegaConf.is_missing(node, name):
                yield from _constructed(node[name], f"{key}.{name}" if key else name)

"""``python -m hydrec.data inspect``: the data card, on the screen and in files; ``prepare``: fills the cache.

A command, so on the top floor beside `hydrec.cli`, whatever folder it lies in: nothing imports it.
"""

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from hydrec import cli
from hydrec.errors import InputError, MissingData
from hydrec.overrides import check
from hydrec.runs import digest, write_atomically

HELP = """\
Measures a data set under a protocol: counts, lengths, ties, intensities, recency, fields, leakage.

  python -m hydrec.data inspect                                     what `python train.py` would train on
  python -m hydrec.data inspect dataset=movielens_100k protocol=leave_one_out dataset.reader.k_core=5
  python -m hydrec.data inspect dataset=simulated_clicks protocol=click_days
  python -m hydrec.data prepare dataset=movielens                   reads the files into the cache, no more

It takes the groups and keys of train.py (python train.py --help lists them), prints the card as tables and
leaves it in cards/<dataset>-<protocol>-<digest>/ (paths.cards), a folder for each data and options:
card.json has every figure, card.md the tables, card.png and card.svg one page of diagrams. A model changes
nothing. prepare ends with exit status 3 where the files are nowhere to be found.
"""

NO_DATA = 3


def main(argv: Sequence[str]) -> int:
    """Answers one command line.

    Args:
        argv: the arguments after ``python -m hydrec.data``.

    Returns:
        The exit status, as `hydrec.cli` has it.
    """
    cfg = None
    try:
        if {"--help", "-h"} & set(argv):
            print(HELP, end="")
            return 0
        if argv[:1] not in (["inspect"], ["prepare"]):
            given = argv[0] if argv else "nothing"
            raise InputError(f"{given} is no command: use python -m hydrec.data inspect (--help says more)")
        overrides = argv[1:]
        for flag in overrides:
            if flag.startswith("-"):
                raise InputError(
                    f"{flag}: one card a command, of groups and keys only, as in dataset=movielens"
                )
        conf = _conf()
        check(overrides, conf)
        with initialize_config_dir(str(conf), version_base="1.3"):
            cfg = compose("train", list(overrides), return_hydra_config=True)
        if argv[0] == "prepare":
            _prepare(cfg)
        else:
            _inspect(cfg, shlex.join(["python", "-m", "hydrec.data", *argv]))
    except MissingData as error:
        cli.report(error, cfg)
        return NO_DATA if argv[0] == "prepare" else 2
    except KeyboardInterrupt:
        return cli.INTERRUPTED
    except Exception as error:
        return cli.report(error, cfg)
    return 0


def _conf() -> Path:
    """The config tree: of the working directory, else of the checkout that this file is in."""
    places = [Path.cwd() / "conf", Path(__file__).resolve().parents[3] / "conf"]
    for place in places:
        if (place / "train.yaml").is_file():
            return place
    raise InputError(f"no train.yaml in {' or '.join(map(str, places))}; run this in a checkout of hydrec")


def data_of(cfg: DictConfig) -> Any:
    """The `LogData` of a configuration, whatever its model: training rows are those the protocol makes."""
    from hydrec.data.clicks import ClickProtocol
    from hydrec.data.module import CLICKS

    of_clicks = issubclass(get_class(cfg.protocol._target_), ClickProtocol)
    return instantiate(cfg.dataset, samples=CLICKS if of_clicks else "prefixes", _convert_="all")


def _prepare(cfg: DictConfig) -> None:
    cli.tune()
    data = data_of(cfg)
    data.prepare()
    print(f"{data.name}: {len(data.log):,} interactions, fingerprint {data.log.fingerprint[:12]}")
    if data.stood_in:
        from hydrec.pipeline import STAND_IN

        print(STAND_IN.format(data.name))


def _inspect(cfg: DictConfig, command: str) -> None:
    cli.tune()
    from hydrec.data import inspect, page  # torch and matplotlib take seconds to import
    from hydrec.pipeline import STAND_IN

    data = data_of(cfg)
    data.prepare()
    card = inspect.card(data, command)
    console = Console(soft_wrap=True)
    for title, header, rows in page.tables(card):
        table = Table(title=title, title_justify="left")
        for place, column in enumerate(header):
            table.add_column(column, justify="right" if place else "left")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    drawing = page.diagrams(card)
    about = {"data": card["dataset"]["fingerprint"], "protocol": card["protocol"], "fields": data.fields}
    name = f"{data.name}-{cfg.hydra.runtime.choices.protocol}-{digest(about)}"
    folder = Path(cfg.paths.cards) / name
    write_atomically(folder / "card.json", json.dumps(card, indent=1, allow_nan=False) + "\n")
    write_atomically(folder / "card.md", page.markdown(card))
    for form in ("svg", "png"):
        write_atomically(folder / f"card.{form}", page.drawn(drawing, form))
    print(f"the card is in {folder}")
    if data.stood_in:
        print(STAND_IN.format(data.name))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

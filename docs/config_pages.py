"""Hook of MkDocs: a page for each config group, made of the yaml files when the site is built."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from hydrec.overrides import defaults, options, purpose

CONF = Path(__file__).parents[1] / "conf"
COMMANDS = {"train": "python train.py", "sweep": "python sweep.py"}
INDEX = """\
# Every option

`python train.py` and `python sweep.py` are put together from small yaml files in `conf/`:
a folder is a *group*, a file in it an *option*. `GROUP=OPTION` chooses one, `KEY=VALUE` changes a value:

    python train.py model=sasrec protocol=leave_one_out model.net.dim=32
    python train.py --help        # groups, options and keys
    python train.py --cfg job     # every key with the value that it would have

A key that nobody reads, or a value of the wrong type, stops the command with one line.
These pages are made of the yaml files when the site is built.
"""


def groups() -> dict[str, list[str]]:
    """Each config group with the commands that take it."""
    found: dict[str, list[str]] = {}
    for root in COMMANDS:
        for group in defaults(CONF, root):
            found.setdefault(group, []).append(root)
    return found


def on_config(config: MkDocsConfig) -> None:
    """Adds the pages to the navigation."""
    pages = [{"Overview": "config/index.md"}, *({group: f"config/{group}.md"} for group in groups())]
    config.nav = [*(config.nav or []), {"Every option": pages}]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages."""
    files.append(File.generated(config, "config/index.md", content=index()))
    for group, roots in groups().items():
        files.append(File.generated(config, f"config/{group}.md", content=page(group, roots)))
    return files


def index() -> str:
    """The page of all groups, and of the keys that are in none."""
    lines = ["", "| group | options | chosen unless you say otherwise | of |", "|---|---|---|---|"]
    for group, roots in groups().items():
        chosen = defaults(CONF, roots[0])[group]
        of = " and ".join(f"`{root}.py`" for root in roots)
        default = f"`{chosen}`" if chosen else "none"
        lines.append(f"| [{group}]({group}.md) | {len(options(CONF, group))} | {default} | {of} |")
    for root, command in COMMANDS.items():
        lines += ["", f"## Keys of `{command}`", "", _yaml(CONF / f"{root}.yaml")]
    return INDEX + "\n".join(lines) + "\n"


def page(group: str, roots: list[str]) -> str:
    """The page of a group: its options in a table, then each with its keys."""
    names = options(CONF, group)
    default = defaults(CONF, roots[0])[group]
    chosen = (
        f"`{group}={default}` is chosen unless you say otherwise."
        if default
        else "Chosen only if you say so."
    )
    how = " or ".join(f"`{COMMANDS[root]} {group}=OPTION`" for root in roots)
    lines = [f"# {group}", "", f"{how}. {chosen}", "", "| option | what it is |", "|---|---|"]
    lines += [f"| [`{name}`](#{name}) | {purpose(CONF / group / f'{name}.yaml')} |" for name in names]
    for name in (*names, *sorted(path.stem for path in (CONF / group).glob("_*.yaml"))):
        path = CONF / group / f"{name}.yaml"
        lines += ["", f"## {name} {{#{name}}}", "", purpose(path)]
        text = path.read_text()
        parents = re.findall(r"[\w/@: ]+", "".join(re.findall(r"^defaults: \[(.*)\]", text, re.MULTILINE)))
        parents = [parent.strip() for parent in parents if parent.strip() not in ("", "_self_")]
        if parents:
            lines += [
                "",
                f"Starts from {', '.join(f'`{parent}`' for parent in parents)}; below is what differs.",
            ]
        targets = dict.fromkeys(re.findall(r"_target_: (hydrec\.[\w.]+)", text))
        if targets:
            lines += ["", f"Builds {', '.join(f'[`{target}`][{target}]' for target in targets)}."]
        lines += ["", _yaml(path)]
    return "\n".join(lines) + "\n"


def _yaml(path: Path) -> str:
    lines = path.read_text().splitlines()
    if lines and lines[0].lstrip("# ") == purpose(path):
        lines = lines[1:]
    body = "\n".join(lines).strip("\n")
    return (
        f'```yaml title="conf/{path.relative_to(CONF).as_posix()}"\n{body}\n```'
        if body
        else "It has no keys."
    )

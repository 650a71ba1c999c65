"""What the pages tell a reader to type: every command is understood, and what takes a minute is run."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from hydrec.explain.__main__ import COMMANDS
from hydrec.overrides import check

ROOT = Path(__file__).parents[2]
PAGES = {path.name: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def blocks(page: str) -> list[tuple[str, str, str]]:
    """Language, title and text of each block of a page."""
    return BLOCK.findall(PAGES[page])


def commands(page: str, *languages: str) -> list[str]:
    """The lines of a page's blocks in some languages."""
    return [line for language, _, text in blocks(page) for line in text.splitlines() if language in languages]


COMMAND_LINES = [
    (page, line) for page in PAGES for line in commands(page, "sh", "bash") if line.startswith("python ")
]


@pytest.fixture
def checkout(tmp_path):
    """A folder with conf, sources and tests, to which the files of a page are added."""

    def make(page):
        ignore = shutil.ignore_patterns("__pycache__")
        for name in ("conf", "src", "tests"):
            shutil.copytree(ROOT / name, tmp_path / name, ignore=ignore, dirs_exist_ok=True)
        for name in ("train.py", "sweep.py", "pyproject.toml"):
            shutil.copy(ROOT / name, tmp_path)
        for _, title, text in blocks(page):
            if title:
                (tmp_path / title).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / title).write_text(text)
        return tmp_path

    return make


@pytest.fixture(scope="module")
def conf(tmp_path_factory):
    """The config folder with what all pages add to it."""
    folder = tmp_path_factory.mktemp("pages")
    shutil.copytree(ROOT / "conf", folder / "conf")
    for page in PAGES:
        for _, title, text in blocks(page):
            if title.startswith("conf/"):
                (folder / title).write_text(text)
    return folder / "conf"


@pytest.mark.parametrize(("page", "line"), COMMAND_LINES)
def test_every_command_is_understood(page, line, conf):
    words = shlex.split(line.split("||")[0], comments=True)
    match words[1:]:
        case ["train.py" | "sweep.py" as program, *given]:
            check([word for word in given if word != "--help"], conf, program.removesuffix(".py"))
        case ["-m", module, *given]:
            assert find_spec(module)
            assert module != "hydrec.explain" or given[0] in COMMANDS
        case ["-c", code]:
            compile(code, page, "exec")
        case [script]:
            assert script in [title for _, title, _ in blocks(page)]
        case other:
            pytest.fail(f"{page}: nobody knows how to check {other}")


def test_there_are_commands_to_check():
    assert len(COMMAND_LINES) > 40
    assert all(commands(page, "sh") for page in ("add_model.md", "your_data.md", "findings.md"))


@pytest.mark.slow
@pytest.mark.parametrize("page", ["add_model.md", "findings.md", "your_data.md"])
def test_what_a_page_says_works(page, checkout):
    folder = checkout(page)
    said = ""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PYTHONPATH": str(folder / "src"), "PATH": path}
    environment |= {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    environment.pop("HYDREC_DATA", None)
    for line in commands(page, "sh"):
        done = subprocess.run(
            line, shell=True, cwd=folder, env=environment, text=True, capture_output=True, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        said += done.stdout
    for language, title, text in blocks(page):
        if language == "text" and page == "findings.md" and not title:
            assert all(line in said for line in text.splitlines()), text
    if page == "findings.md":
        assert said.splitlines()[-3:] == ["add -0.68", "mul -0.81", "val -0.75"]


def test_the_example_of_counted_ranks(capsys):
    (code,) = [text for language, _, text in blocks("decisions.md") if language == "python"]
    exec(compile(code, "decisions.md", "exec"), {})
    assert "0.1" in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES)
def test_pages_name_nothing_of_one_machine(page):
    assert not re.search(r"/(work|home|tmp|root|Users)/", PAGES[page])

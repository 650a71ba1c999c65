"""The run folder: names, locks and writing whole files or none."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hydrec.errors import InputError
from hydrec.runs import RunFolder, digest, write_atomically

CONFIG = {
    "seed": 0,
    "model": {"net": {"dim": 64}},
    "paths": {"runs": "runs"},
    "logger": {"wandb": {}},
    "rerun": False,
}


def test_digest_names_what_is_run_and_not_where():
    assert digest(CONFIG) == digest(dict(reversed(CONFIG.items())))
    assert digest(CONFIG) == digest(CONFIG | {"paths": {"runs": "elsewhere"}, "logger": {}, "rerun": True})
    assert digest(CONFIG) != digest(CONFIG | {"seed": 1})
    assert digest(CONFIG) != digest(CONFIG | {"model": {"net": {"dim": 32}}})
    assert len(digest(CONFIG)) == 10


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "metrics.json"
    write_atomically(path, "old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"metrics\.json.*No space left.*another folder"):
        write_atomically(path, "new")
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]
    assert path.read_text() == "old"


def test_a_folder_under_a_file_is_one_line(tmp_path):
    (tmp_path / "runs").write_text("a file")
    folder = RunFolder(tmp_path / "runs" / "x")
    with pytest.raises(InputError, match=r"paths\.runs"), folder.locked():
        pass


def test_two_processes_never_share_a_folder(tmp_path):
    code = (
        "import sys; from pathlib import Path; from hydrec.runs import RunFolder\n"
        "with RunFolder(Path(sys.argv[1])).locked(): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "held\n"
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(InputError, match="in use by another process"), folder.locked():
        pass
    holder.kill()  # however it ends, the lock goes with it
    holder.wait()
    with folder.locked():
        pass


def test_leftovers_of_a_killed_writer_are_removed(tmp_path):
    folder = RunFolder(tmp_path / "run")
    leftover = folder.path / "checkpoints" / ".last.ckpt.123.tmp"
    leftover.parent.mkdir(parents=True)
    leftover.write_text("half")
    with folder.locked():
        assert not leftover.exists()


def test_set_aside_keeps_every_earlier_run(tmp_path):
    folder = RunFolder(tmp_path / "run")
    for number in (1, 2):
        folder.write("metrics.json", f"{number}")
        folder.set_aside()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.old1", "run.old2"]
    assert (tmp_path / "run.old2" / "metrics.json").read_text() == "2"
    folder.set_aside()  # nothing there: nothing to do
    assert not Path(folder.path).exists()


def test_csv_has_the_columns_of_all_rows_in_order(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_csv("history.csv", [{"epoch": 0, "a": 0.1}, {"epoch": 1, "a": 0.2, "b": 3.0}])
    assert (tmp_path / "history.csv").read_text() == "epoch,a,b\n0,0.1,\n1,0.2,3.0\n"


def test_a_broken_json_file_is_named(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.read("run.json") is None
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(InputError, match=r"run\.json.*rerun=true"):
        folder.read("run.json")


def test_a_folder_into_which_nothing_was_written_goes_again(tmp_path):
    folder = RunFolder(tmp_path / "runs" / "x")
    with pytest.raises(ZeroDivisionError), folder.locked():
        raise ZeroDivisionError
    assert not folder.path.exists()
    with folder.locked():
        folder.write("run.json", "{}")
    assert {path.name for path in folder.path.iterdir()} == {".lock", "run.json"}

import errno
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from hydrec.data import cache
from hydrec.data.log import InteractionLog
from hydrec.errors import InputError, MissingData


class Lines:
    """Reads "user item time" lines; counts its calls."""

    def __init__(self, *paths, name="lines", **options):
        self.paths, self.name, self.opts, self.calls = list(paths), name, options, 0

    def files(self):
        return self.paths

    def options(self):
        return {"version": 1, **self.opts}

    def __call__(self):
        self.calls += 1
        users, items, times = np.concatenate([np.loadtxt(path, dtype=np.int64) for path in self.paths]).T
        features = {"none": (items[:0], [""][:0]), "kind/of": ([1], [["x", "y"]])}  # one empty vocabulary
        return InteractionLog.build(name="raw", users=users, items=items, times=times, item_features=features)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "raw.txt"
    path.write_text("1 1 5\n1 2 6\n2 1 7\n")
    return path


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


def entries(folder):
    return [path for path in folder.iterdir() if path.is_dir()]


def same(one, other):
    return all(
        np.array_equal(column, other.columns()[key], equal_nan=column.dtype.kind == "f")
        for key, column in one.columns().items()
    )


def test_second_load_reads_nothing_and_maps_the_same_columns(source, folder):
    reader = Lines(source)
    for _ in range(3):
        log = cache.load(reader, folder)
        assert same(reader(), log)
        assert type(log.users) is np.ndarray and not log.users.flags.writeable  # mapped, not a copy
        assert log.name == "lines"
    assert reader.calls == 1 + 3
    assert {path.name for path in folder.iterdir()} == {"sources.json", entries(folder)[0].name}


def test_the_fingerprint_is_of_raw_bytes_options_and_log(source, folder):
    logs = [cache.load(Lines(source, k_core=1), folder) for _ in range(2)]
    bytes_ = hashlib.sha256(source.read_bytes()).hexdigest()
    identity = [[["raw.txt", bytes_]], {"version": 1, "k_core": 1}, Lines(source)().fingerprint]
    expected = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    assert [log.fingerprint for log in logs] == [expected] * 2


@pytest.mark.parametrize("change", ["bytes", "option", "name"])
def test_the_fingerprint_sees_what_leaves_the_log_as_it_is(source, folder, change):
    before = cache.load(Lines(source, duplicates="keep"), folder)
    if change == "bytes":
        source.write_text(source.read_text().replace("\n", "\r\n"))
    if change == "name":
        source = source.rename(source.with_name("other.txt"))
    after = cache.load(Lines(source, duplicates="first" if change == "option" else "keep"), folder)
    assert same(before, after)
    assert before.fingerprint != after.fingerprint


def test_the_fingerprint_does_not_see_where_files_lie_nor_how_the_cache_lays_out_logs(
    source, folder, tmp_path, monkeypatch
):
    here = cache.load(Lines(source), folder)
    (tmp_path / "elsewhere").mkdir()
    there = tmp_path / "elsewhere" / source.name
    there.write_bytes(source.read_bytes())
    monkeypatch.setattr(cache, "FORMAT", cache.FORMAT + 1)
    reader = Lines(there)
    assert cache.load(reader, tmp_path / "other cache").fingerprint == here.fingerprint
    assert reader.calls == 1


def test_raw_files_are_named_with_their_digests(source, folder, monkeypatch):
    cache.load(Lines(source), folder)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    monkeypatch.setattr(cache, "_sha256", lambda path: pytest.fail(f"hashes {path} again"))
    assert cache.raw_files(Lines(source), folder) == [("raw.txt", digest)]


def test_each_reader_gives_the_log_its_own_name(source, folder):
    cache.load(Lines(source), folder)
    other = Lines(source, name="other")
    assert (cache.load(other, folder).name, other.calls) == ("other", 0)


def test_other_options_are_another_entry(source, folder):
    for k_core in (1, 2):
        reader = Lines(source, k_core=k_core)
        cache.load(reader, folder)
        assert reader.calls == 1
    assert len(entries(folder)) == 2


def test_new_bytes_are_read_and_new_times_alone_are_not(source, folder):
    cache.load(Lines(source), folder)
    os.utime(source, ns=(1, 1))
    touched = Lines(source)
    cache.load(touched, folder)
    assert touched.calls == 0
    assert json.loads((folder / "sources.json").read_text())[str(source)]["mtime_ns"] == 1
    source.write_text("1 1 5\n1 2 6\n2 1 8\n")
    changed = Lines(source)
    assert cache.load(changed, folder).times.tolist() == [5, 6, 8]


def test_verify_hashes_what_size_and_time_do_not_show(source, folder):
    cache.load(Lines(source), folder)
    state = source.stat()
    source.write_text("1 1 5\n1 2 6\n2 1 8\n")
    os.utime(source, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert cache.load(Lines(source), folder).times.tolist() == [5, 6, 7]
    assert cache.load(Lines(source), folder, verify=True).times.tolist() == [5, 6, 8]
    assert cache.load(Lines(source), folder).times.tolist() == [5, 6, 8]


def test_sources_are_hashed_once(source, folder, monkeypatch):
    cache.load(Lines(source), folder)
    monkeypatch.setattr(cache, "_sha256", lambda path: pytest.fail(f"hashes {path} again"))
    cache.load(Lines(source), folder)


def test_damaged_memory_of_sources_is_found_out_again(source, folder):
    cache.load(Lines(source), folder)
    (folder / "sources.json").write_text('{"/raw.txt": {"si')
    reader = Lines(source)
    cache.load(reader, folder)
    assert reader.calls == 0
    assert str(source) in json.loads((folder / "sources.json").read_text())


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("harm", [flip, cut, empty, Path.unlink])
@pytest.mark.parametrize("victim", ["00.npy", "05.npy", "meta.json"])
def test_damaged_entry_is_built_again_and_said_so_in_one_line(source, folder, harm, victim, caplog):
    cache.load(Lines(source), folder)
    harm(entries(folder)[0] / victim)
    reader = Lines(source)
    with caplog.at_level(logging.INFO, "hydrec"):
        log = cache.load(reader, folder)
    assert reader.calls == 1
    assert same(reader(), log)
    assert len(caplog.messages) == 1
    assert "\n" not in caplog.text.strip() and "the entry is built again" in caplog.text
    caplog.clear()
    cache.load(reader, folder)
    assert (reader.calls, caplog.messages, len(list(folder.iterdir()))) == (2, [], 2)


def test_two_that_build_at_once_both_get_the_log(source, folder):
    together = threading.Barrier(2)

    class Both(Lines):
        def __call__(self):
            together.wait(timeout=20)  # neither writes before both have seen that there is no entry
            return super().__call__()

    readers, logs = [Both(source), Both(source)], []
    threads = [threading.Thread(target=lambda r=r: logs.append(cache.load(r, folder))) for r in readers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [reader.calls for reader in readers] == [1, 1]
    assert len(logs) == 2 and same(*logs)
    assert len(list(folder.iterdir())) == 2  # one entry and what is known of the sources


def aged(path, hours):
    then = time.time() - 3600 * hours
    os.utime(path, (then, then))


def test_what_a_killed_writer_leaves_is_swept_a_day_later(source, folder):
    code = f"""
import os, signal, numpy, test_cache
numpy.save = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
test_cache.cache.load(test_cache.Lines(test_cache.Path({str(source)!r})), {str(folder)!r})
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    )
    assert done.returncode == -signal.SIGKILL
    (draft,) = (path for path in folder.iterdir() if path.is_dir())
    cache.load(Lines(source), folder)
    assert draft.exists()  # it may be another process's, at work
    aged(draft, 25)
    cache.load(Lines(source), folder)
    assert draft.exists()  # nothing was written
    cache.load(Lines(source, k_core=2), folder)
    assert not draft.exists()
    assert len(entries(folder)) == 2


def test_only_old_drafts_are_swept(source, folder):
    cache.load(Lines(source), folder)
    old, young = (cache._beside(folder / "sources.json") for _ in range(2))
    others = [folder / ".nfs00000001", folder / ".git", folder / "notes"]
    for path in (old, young, *others):
        path.touch()
    for path in (old, *others, *entries(folder)):
        aged(path, 25)
    aged(young, 23)
    cache.load(Lines(source, k_core=2), folder)
    assert not old.exists() and young.exists() and all(path.exists() for path in others)
    assert len(entries(folder)) == 2


def test_folder_that_cannot_be_written_names_its_key(source, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError) as caught:
        cache.load(Lines(source), tmp_path / "file" / "cache")
    assert str(caught.value) == (
        f"{tmp_path}/file/cache: the cache cannot be written (Not a directory);"
        " set paths.cache to a folder with room"
    )


@pytest.mark.parametrize(("part", "name"), [(np, "save"), (Path, "rename")])
def test_full_disk_names_the_key_and_leaves_nothing(source, folder, monkeypatch, part, name):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(part, name, full)
    with pytest.raises(InputError, match=r"No space left on device\); set paths\.cache"):
        cache.load(Lines(source), folder)
    assert [path.name for path in folder.iterdir()] == ["sources.json"]


def test_reader_that_fails_leaves_no_entry(source, folder):
    source.write_text("1 1 5\n1 2\n")
    with pytest.raises(ValueError, match="columns"):
        cache.load(Lines(source), folder)
    assert entries(folder) == []


def test_missing_files_are_the_readers_to_report(folder):
    class Nowhere(Lines):
        def files(self):
            raise MissingData("nowhere")

    with pytest.raises(MissingData, match=r"^nowhere$"):
        cache.load(Nowhere(), folder)


def test_reading_needs_no_torch():
    code = "import sys, hydrec.data.cache, hydrec.data.movielens; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"

"""Downloads from a server on this machine that stalls, truncates, corrupts and changes its mind."""

import hashlib
import io
import json
import logging
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from hydrec.data import download
from hydrec.data.download import Source, fetch, sources
from hydrec.data.module import LogData
from hydrec.data.movielens import MovieLens
from hydrec.data.protocols import LeaveOneOut
from hydrec.data.simulator import Simulator
from hydrec.errors import InputError, MissingData
from hydrec.metrics import RankMetrics

CONF = Path(__file__).parents[2] / "conf"
CONTENT = np.random.default_rng(0).bytes(300_000)
OTHER = np.random.default_rng(1).bytes(300_000)
HALF = len(CONTENT) // 2


class Site(ThreadingHTTPServer):
    """A publisher of one content: each request is answered as the next of ``turns`` says, then properly.

    Attributes:
        content: of every path.
        headers: sent with it; an ``ETag`` or ``Last-Modified`` here is what ``If-Range`` is compared with.
        turns: what goes wrong, request by request.
        asked: the headers of every request so far.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.content, self.headers = CONTENT, {"ETag": '"one"'}
        self.turns: list[str] = []
        self.asked: list[dict[str, str]] = []
        self.over = threading.Event()

    @property
    def ranges(self) -> list[str | None]:
        return [headers.get("Range") for headers in self.asked]

    def source(self, checksum: str | None = None, unpack: bool = False, name: str = "log.gz") -> Source:
        return Source(f"http://127.0.0.1:{self.server_port}/some/{name}", checksum, unpack)

    def handle_error(self, request: object, address: object) -> None:
        """Clients that leave are part of the tests."""


class Answer(BaseHTTPRequestHandler):
    """One answer of the site."""

    server: Site

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        site = self.server
        site.asked.append(dict(self.headers))
        turn = site.turns.pop(0) if site.turns else ""
        if turn.isdecimal():
            self.send_error(int(turn))
        elif turn == "redirect":
            self.send(302, {"Location": "/elsewhere"}, b"")
        elif turn == "silent":
            site.over.wait(60)
        elif turn == "html":
            self.send(200, {"Content-Type": "text/html; charset=utf-8"}, b"<html>Sign in</html>")
        else:
            self.file(turn)

    def file(self, turn: str) -> None:
        content, headers = self.server.content, dict(self.server.headers)
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        same = turn == "deaf" or self.headers.get("If-Range") in headers.values()
        start = int(asked[1]) if asked and same and turn != "whole" else 0
        if turn == "elsewhere":
            start += 7
        status = 206 if start else 200
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if turn == "corrupt":
            content = content[:HALF] + bytes([content[HALF] ^ 1]) + content[HALF + 1 :]
        if turn != "endless":
            headers["Content-Length"] = str(len(content) - start)
        cut = {"stall": HALF, "truncate": HALF, "reset": HALF, "drip": start + 1000}.get(turn, len(content))
        self.send(status, headers, content[start:cut])
        if turn == "stall":
            self.server.over.wait(60)
        if turn == "reset":
            self.wfile.flush()
            time.sleep(0.1)  # what was sent should arrive before the reset
            linger = b"\1\0\0\0\0\0\0\0"
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            os.close(self.connection.detach())

    def send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as site:
        threading.Thread(target=site.serve_forever, args=(0.01,), daemon=True).start()
        yield site
        site.over.set()
        site.shutdown()


@pytest.fixture(autouse=True)
def network(monkeypatch, caplog):
    """Allows downloads, and makes waiting short."""
    monkeypatch.delenv("HYDREC_OFFLINE")
    monkeypatch.delenv("HYDREC_DATA", raising=False)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download, "TIMEOUT", 0.7)
    monkeypatch.setattr(download, "DELAYS", (0, 0.01, 0.01))
    caplog.set_level(logging.INFO, "hydrec")


@pytest.fixture
def into(tmp_path) -> Path:
    return tmp_path / "data" / "set"


def missing() -> None:
    raise MissingData("no files")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


# One file ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checksum", [sha256(CONTENT), f"md5:{hashlib.md5(CONTENT).hexdigest()}", None])
def test_a_file_arrives_and_nothing_else(site, into, caplog, checksum):
    source = site.source(checksum)
    fetch([source], into, missing)
    assert (into / "log.gz").read_bytes() == CONTENT and names(into) == ["log.gz"]
    assert site.ranges == [None]
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == f"downloading {source.url} (0.3 MB) into {into}" and lines[-1] == f"{source.url}: done"
    assert any(sha256(CONTENT)[7:] in line for line in lines) == (checksum is None)


@pytest.mark.parametrize("turn", ["stall", "truncate", "reset"])
@pytest.mark.parametrize("headers", [{"ETag": '"one"'}, {"ETag": 'W/"one"', "Last-Modified": "Monday"}])
def test_what_broke_off_is_continued(site, into, turn, headers):
    site.headers, site.turns = headers, [turn]
    fetch([site.source(sha256(CONTENT))], into, missing)
    assert (into / "log.gz").read_bytes() == CONTENT and names(into) == ["log.gz"]
    assert site.ranges == [None, f"bytes={HALF}-"]


@pytest.mark.parametrize("turn", ["silent", "500", "503", "429"])
def test_a_server_in_trouble_is_asked_again(site, into, turn):
    site.turns = [turn, turn]
    fetch([site.source(sha256(CONTENT))], into, missing)
    assert names(into) == ["log.gz"] and site.ranges == [None] * 3


@pytest.mark.parametrize("turn", ["whole", "416", "elsewhere"])
def test_a_server_without_the_rest_is_asked_for_all(site, into, turn):
    site.turns = ["truncate", turn]
    fetch([site.source(sha256(CONTENT))], into, missing)
    assert (into / "log.gz").read_bytes() == CONTENT and names(into) == ["log.gz"]
    assert site.ranges == [None, f"bytes={HALF}-", None][: 2 if turn == "whole" else 3]


@pytest.mark.parametrize("headers", [{}, {"ETag": 'W/"one"'}])
def test_a_file_that_nothing_identifies_is_not_continued(site, into, headers):
    site.headers, site.turns = headers, ["truncate"]
    fetch([site.source(sha256(CONTENT))], into, missing)
    assert names(into) == ["log.gz"] and site.ranges == [None, None]


@pytest.mark.parametrize(
    ("turn", "content", "tag"), [("", OTHER, "two"), ("deaf", OTHER, "two"), ("deaf", OTHER[:-9], "one")]
)
def test_a_changed_file_is_not_glued_to_an_old_head(site, into, turn, content, tag):
    site.turns = ["truncate"] * 4
    with pytest.raises(MissingData):
        fetch([site.source()], into, missing)
    site.content, site.headers, site.turns = content, {"ETag": f'"{tag}"'}, [turn]
    fetch([site.source()], into, missing)
    assert (into / "log.gz").read_bytes() == content


def test_a_download_continues_in_the_next_run(site, into):
    site.turns = ["truncate"] * 4
    with pytest.raises(MissingData, match=f"broke off after {HALF:,} of {len(CONTENT):,} bytes"):
        fetch([site.source()], into, missing)
    assert names(into) == [".log.gz.part", ".log.gz.part.json"]
    site.asked.clear()
    fetch([site.source()], into, missing)
    assert (into / "log.gz").read_bytes() == CONTENT and site.ranges == [f"bytes={HALF}-"]


def test_a_part_that_is_whole_is_not_asked_for_again(site, into):
    site.turns = ["truncate"] * 4
    with pytest.raises(MissingData):
        fetch([site.source()], into, missing)
    with (into / ".log.gz.part").open("ab") as file:
        file.write(CONTENT[HALF:])
    site.asked.clear()
    fetch([site.source(sha256(CONTENT))], into, missing)
    assert names(into) == ["log.gz"] and site.asked == []


ELSEWHERE = json.dumps({"url": "http://other/log.gz", "state": '"one"', "size": 100})


@pytest.mark.parametrize("note", ["{", ELSEWHERE])
def test_a_part_of_unknown_origin_is_not_used(site, into, note):
    into.mkdir(parents=True)
    (into / ".log.gz.part").write_bytes(OTHER[:100])
    (into / ".log.gz.part.json").write_text(note)
    fetch([site.source()], into, missing)
    assert (into / "log.gz").read_bytes() == CONTENT and site.ranges == [None]


@pytest.mark.parametrize("enough", [True, False])
def test_tries_that_bring_enough_do_not_count(site, into, monkeypatch, enough):
    monkeypatch.setattr(download, "STEP", 1000 if enough else 1001)
    site.turns = ["drip"] * 6
    if enough:
        fetch([site.source(sha256(CONTENT))], into, missing)
        assert names(into) == ["log.gz"] and site.ranges[-1] == "bytes=6000-"
    else:
        with pytest.raises(MissingData, match="broke off after 4,000 of"):
            fetch([site.source()], into, missing)


def test_a_file_without_a_length_arrives(site, into):
    site.turns = ["endless"]
    fetch([site.source(sha256(CONTENT))], into, missing)
    assert names(into) == ["log.gz"]


def test_redirects_are_followed_with_the_range(site, into):
    site.turns = ["redirect", "truncate", "redirect"]
    fetch([site.source(sha256(CONTENT))], into, missing)
    assert names(into) == ["log.gz"] and site.ranges == [None, None, f"bytes={HALF}-", f"bytes={HALF}-"]


def test_a_wrong_file_is_deleted(site, into):
    site.turns, source = ["corrupt"], site.source(sha256(CONTENT))
    with pytest.raises(MissingData) as error:
        fetch([source], into, missing)
    wrong = CONTENT[:HALF] + bytes([CONTENT[HALF] ^ 1]) + CONTENT[HALF + 1 :]
    assert sha256(CONTENT)[7:] in str(error.value) and sha256(wrong)[7:] in str(error.value)
    assert not into.exists() and len(site.asked) == 1
    fetch([source], into, missing)
    assert (into / "log.gz").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        ("404", "HTTP 404 Not Found"),
        ("403", "HTTP 403 Forbidden"),
        ("html", "the server answers with a web page"),
        ("500", "HTTP 500 Internal Server Error"),
        ("silent", "timed out"),
        ("redirect", "redirect"),
    ],
)
def test_failures_say_what_to_do_in_one_line(site, into, turn, reason):
    site.turns, source = [turn] * 40, site.source()
    with pytest.raises(MissingData) as error:
        fetch([source], into, missing)
    line = str(error.value)
    assert line.startswith(f"{source.url}: cannot be downloaded (") and reason in line
    assert line.endswith(f"; get it in another way and put it into {into}") and "\n" not in line
    assert not into.exists()


def test_without_a_server_nothing_is_waited_for(site, into, monkeypatch):
    monkeypatch.setattr(download, "DELAYS", (60,))
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        source = Source(f"http://127.0.0.1:{unused.getsockname()[1]}/a.zip", None, True)
        started = time.monotonic()
        with pytest.raises(MissingData, match=r"Connection refused.* put its files into"):
            fetch([source], into, missing)
    assert time.monotonic() - started < 1 and not into.exists()


def test_a_server_that_vanishes_is_waited_for(site, into, monkeypatch):
    site.turns, seen = ["truncate"], []
    monkeypatch.setattr(time, "sleep", lambda seconds: (seen.append(seconds), site.server_close()))
    with pytest.raises(MissingData, match="Connection refused"):
        fetch([site.source()], into, missing)
    assert seen == list(download.DELAYS) and names(into) == [".log.gz.part", ".log.gz.part.json"]


@pytest.mark.parametrize(("value", "allowed"), [("1", False), ("true", False), ("0", True), ("", True)])
def test_offline_means_offline(site, into, monkeypatch, value, allowed):
    monkeypatch.setenv("HYDREC_OFFLINE", value)
    if allowed:
        fetch([site.source()], into, missing)
    else:
        with pytest.raises(MissingData, match="HYDREC_OFFLINE is set"):
            fetch([site.source()], into, missing)
    assert bool(site.asked) == into.exists() == allowed


def test_a_folder_that_cannot_be_written_is_named(site, into):
    into.parent.mkdir()
    into.write_text("a file")
    with pytest.raises(MissingData, match=rf"File exists.* {into}$"):
        fetch([site.source()], into, missing)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_is_for_terminals(site, into, monkeypatch, capfd):
    fetch([site.source(name="a.gz")], into, missing)
    assert capfd.readouterr() == ("", "")
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    fetch([site.source(name="b.gz")], into, missing)
    assert "300.0/300.0 kB" in sys.stderr.getvalue()
    assert capfd.readouterr().out == ""


# Several files, several processes ---------------------------------------------------------------------------


def test_files_that_are_there_stay(site, into):
    into.mkdir(parents=True)
    (into / "one.gz").write_text("the user's own")
    fetch([site.source(name="one.gz"), site.source(name="two%20.gz?v=1")], into, missing)
    assert (into / "one.gz").read_text() == "the user's own"
    assert (into / "two .gz").read_bytes() == CONTENT and len(site.asked) == 1


def test_an_earlier_file_stays_where_a_later_one_fails(site, into):
    site.turns, files = ["", "404"], [site.source(name="one.gz"), site.source(name="two.gz")]
    with pytest.raises(MissingData, match=r"two\.gz: cannot be downloaded"):
        fetch(files, into, missing)
    assert names(into) == ["one.gz"]


CODE = """
import sys
from pathlib import Path
from hydrec.data import download
from hydrec.errors import MissingData
download.TIMEOUT = 60
url, into = sys.argv[1], Path(sys.argv[2])
def look():
    if not (into / "ratings.dat").exists():
        raise MissingData("no files")
print(flush=True)
download.fetch([download.Source(url, None, True)], into, look)
"""


def start(site: Site, into: Path) -> subprocess.Popen:
    source = site.source(unpack=True, name="a.zip")
    return subprocess.Popen([sys.executable, "-c", CODE, source.url, str(into)], stdout=subprocess.PIPE)


def wait(condition) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_processes_take_turns_and_one_downloads(site, into):
    site.content, site.turns = zipped({"ratings.dat": CONTENT}), ["stall"]
    first = start(site, into)
    wait(lambda: site.asked)
    others = [start(site, into) for _ in range(2)]
    for other in others:
        other.stdout.readline()
    time.sleep(0.3)
    assert len(site.asked) == 1 and all(process.poll() is None for process in [first, *others])
    site.over.set()
    assert [process.wait(60) for process in [first, *others]] == [0, 0, 0]
    assert len(site.asked) == 2  # the first, and its second try
    assert names(into) == ["ratings.dat"]


def test_a_killed_process_leaves_a_part_that_is_continued(site, into):
    site.content, site.turns = zipped({"ratings.dat": CONTENT}), ["stall"]
    process = start(site, into)
    part = into / ".a.zip.part"
    wait(lambda: part.exists() and part.stat().st_size == HALF)
    process.send_signal(signal.SIGKILL)
    process.wait()
    fetch([site.source(sha256(site.content), unpack=True, name="a.zip")], into, missing)
    assert names(into) == ["ratings.dat"] and site.ranges == [None, f"bytes={HALF}-"]


# Archives ---------------------------------------------------------------------------------------------------


def zipped(members: dict[str, bytes], kind: int = 0) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (kind or stat.S_IFREG) << 16
            archive.writestr(info, content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def test_an_archive_is_unpacked_without_its_folders(site, into):
    site.content = zipped(
        {
            "ml-1m/": b"",
            "ml-1m/ratings.dat": CONTENT,
            "ml-1m/more/README": b"r",
            "ml-1m/.lock": b"",
            "top": b"t",
        }
    )
    into.mkdir(parents=True)
    (into / "README").write_text("an older one")
    (into / ".a.zip.part.unpacked").mkdir()
    (into / ".a.zip.part.unpacked" / "torn").write_text("of an interrupted one")
    fetch([site.source(sha256(site.content), unpack=True, name="a.zip")], into, missing)
    assert names(into) == ["README", "ratings.dat", "top"]
    assert (into / "README").read_text() == "r" and (into / "ratings.dat").read_bytes() == CONTENT


BROKEN = bytearray(zipped({"a/one": b"1", "a/two": CONTENT}))
BROKEN[len(BROKEN) // 2] ^= 1
LOCKED = zipped({"a/one": b"1"}).replace(b"PK\1\2\x14\3\x14\0\0\0", b"PK\1\2\x14\3\x14\0\1\0")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (zipped({"a/one": b"1", "/etc/two": b"2"}), "'/etc/two' is outside of it"),
        (zipped({"a/one": b"1", "a/../../two": b"2"}), "'a/../../two' is outside of it"),
        (zipped({"a/one": b"1", "a\\..\\two": b"2"}), r"'a\\..\\two' is outside of it"),
        (zipped({"a/one": b"/etc/passwd"}, kind=stat.S_IFLNK), "'a/one' is no regular file"),
        (zipped({"a/one": b"1", "b/ONE": b"2"}), "two files are called 'ONE'"),
        (zipped({f"a/{n}": b"" for n in range(11)}), "it holds 11 files of 0 bytes"),
        (zipped({"a/one": bytes(10**6)}), "it holds 1 files of 1,000,000 bytes"),
        (zipped({"a/": b"", "a/.hidden": b""}), "it holds no files"),
        (bytes(BROKEN), "Bad CRC-32 for file 'a/two'"),
        (LOCKED, "is encrypted"),
        (CONTENT, "File is not a zip file"),
        (zipped({"a/one": CONTENT})[:-9], "File is not a zip file"),
    ],
)
def test_what_no_publisher_packs_is_refused(site, into, monkeypatch, content, reason):
    monkeypatch.setattr(download, "MEMBERS", 10)
    site.content = content
    with pytest.raises(MissingData) as error:
        fetch([site.source(unpack=True)], into, missing)
    assert reason in str(error.value)
    assert not into.exists() and names(into.parent) == []


def test_the_largest_file_of_an_archive_appears_last(site, into):
    site.content = zipped(
        {"a/ratings.dat": CONTENT, "a/users.dat": CONTENT[:99], "a/movies.dat": CONTENT[:9]}
    )
    (into / "ratings.dat" / "in the way").mkdir(parents=True)
    with pytest.raises(MissingData, match="directory"):
        fetch([site.source(unpack=True, name="a.zip")], into, missing)
    assert names(into) == [".a.zip.part", ".a.zip.part.json", "movies.dat", "ratings.dat", "users.dat"]
    (into / "ratings.dat" / "in the way").rmdir()
    (into / "ratings.dat").rmdir()
    fetch([site.source(unpack=True, name="a.zip")], into, missing)
    assert (into / "ratings.dat").read_bytes() == CONTENT and len(site.asked) == 1


# From the configuration -------------------------------------------------------------------------------------


def entry(**changes: object) -> dict[str, object]:
    return {"url": "https://host/a/b.zip", "checksum": None, "unpack": True} | changes


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (False, r"^dataset.download=False: must be a list"),
        (
            ["https://host/a"],
            r"^dataset.download\[0\]=https://host/a: must have the keys url, checksum, unpack",
        ),
        ([entry(), entry(md5="")], r"^dataset.download\[1\]=.*: must have the keys"),
        ([{"url": "https://host/a"}], r"must have the keys"),
        ([entry(url="file:///etc/passwd")], r"^dataset.download\[0\].url=file:///etc/passwd: must be http"),
        ([entry(url="https://host/")], r"url=https://host/: must be"),
        ([entry(url="https://host")], r"url=https://host: must be"),
        ([entry(url="https://host/a b.zip")], r"url=https://host/a b.zip: must be"),
        ([entry(url="https://host/a/..")], r"must be http"),
        ([entry(url="https://host/a%2Fb")], r"must be http"),
        ([entry(url=3)], r"url=3: must be"),
        ([entry(checksum="md5:0")], r"^dataset.download\[0\].checksum=md5:0: must be md5: with 32"),
        ([entry(checksum=f"sha256:{'0' * 32}")], r"checksum="),
        ([entry(checksum="0" * 32)], r"checksum="),
        ([entry(checksum=0)], r"checksum=0"),
        ([entry(unpack="yes")], r"^dataset.download\[0\].unpack=yes: must be true or false"),
    ],
)
def test_wrong_entries_name_the_key(entries, message):
    with pytest.raises(InputError, match=message):
        sources(entries)


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "dataset").glob("[a-z]*.yaml")))
def test_each_dataset_says_what_to_download_and_where_to(name):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        dataset = OmegaConf.to_container(compose("train", [f"dataset={name}"]), resolve=True)["dataset"]
    files = sources(dataset["download"])
    assert len({file.name for file in files}) == len(files)
    assert not files or (Path(dataset["reader"]["root"]) == Path("data") and dataset["reader"]["folder"])


def movielens(tmp_path: Path, site: Site, checksum: str | None = None, **changes: object) -> LogData:
    source = site.source(checksum, unpack=True, name="ml-1m.zip")
    shape = {"shape": "tiny", "seed": 0, "factors": 2, "preference": 1.0, "timespan": 0.0}
    dials = {"intensity": 0.0, "fields": 0.0, "popularity": 0.0}
    given = {
        "reader": MovieLens(
            name="small", folder="ml-1m", root=str(tmp_path / "data"), k_core=0, duplicates="error"
        ),
        "download": [source._asdict()],
        "stand_in": Simulator(name="made-up", **shape, **dials),
        "fields": {},
        "protocol": LeaveOneOut(
            window=2,
            mask_history=False,
            cold="keep",
            shuffle_ties=None,
            candidates="full",
            sampled={"count": 1, "exponent": 0.0, "exclude": "user", "replace": False, "seed": 0},
            metrics=RankMetrics(at=[5], ties="expected"),
        ),
        "samples": "prefixes",
        "batch_size": 8,
        "eval_batch_size": 8,
        "cache": str(tmp_path / "cache"),
        "seed": 0,
        "verify": False,
    }
    return LogData(**(given | changes))


RATINGS = b"".join(b"%d::%d::5::%d\n" % (user, item, item) for user in (1, 2, 3) for item in range(1, 7))
RELEASE = zipped(
    {
        "ml-1m/movies.dat": b"".join(b"%d::A (1999)::Drama\n" % item for item in range(1, 7)),
        "ml-1m/users.dat": b"".join(b"%d::F::25::1::12345\n" % user for user in (1, 2, 3)),
        "ml-1m/ratings.dat": RATINGS,
    }
)


def test_data_that_is_nowhere_is_downloaded_once(site, tmp_path):
    site.content = RELEASE
    for _ in range(2):
        data = movielens(tmp_path, site, sha256(RELEASE))
        data.prepare()
        assert data.name == "small" and not data.stood_in and len(data.log) == 18 and len(site.asked) == 1


def test_the_stand_in_steps_in_where_a_download_fails(site, tmp_path, caplog):
    site.turns = ["404", "404"]
    data = movielens(tmp_path, site)
    data.prepare()
    assert data.stood_in and data.name == "made-up"
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert line.endswith(
        f"(HTTP 404 Not Found); get it in another way and put its files into {tmp_path}/data/ml-1m"
    )
    with pytest.raises(MissingData, match=r"^ml-1m: no .*; http://127.*/ml-1m.zip: cannot be downloaded"):
        movielens(tmp_path, site, stand_in=False).prepare()


def test_an_archive_of_something_else_is_not_the_data(site, tmp_path):
    site.content = zipped({"ml-1m/README": b"moved"})
    with pytest.raises(MissingData, match=r"^ml-1m: no ratings.dat, u.data or ratings.csv"):
        movielens(tmp_path, site, stand_in=False).prepare()


def test_without_downloads_missing_data_is_missing(site, tmp_path, caplog):
    with pytest.raises(MissingData, match=r"^ml-1m: no ratings.dat, u.data or ratings.csv"):
        movielens(tmp_path, site, stand_in=False, download=[]).prepare()
    data = movielens(tmp_path, site, download=[])
    data.prepare()
    assert data.stood_in and not caplog.records and not site.asked


def test_a_wrong_entry_is_refused_at_the_door(site, tmp_path):
    with pytest.raises(InputError, match=r"dataset.download\[0\].checksum=none"):
        movielens(tmp_path, site, "none")

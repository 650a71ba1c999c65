"""The site builds without warnings, opens without a network, and says what the sources say."""

import html
import importlib.util
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

from hydrec.overrides import defaults, options

config = pytest.importorskip("mkdocs.config", reason="the extra docs is not installed")
build = pytest.importorskip("mkdocs.commands.build")

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"


class Links(HTMLParser):
    """What a page links to, what it fetches, and its anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids |= {given["id"]} if given.get("id") else set()
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if tag in ("script", "img", "iframe", "source") and given.get("src"):
            self.fetched.append(given["src"])
        if tag == "link" and given.get("href"):
            self.fetched.append(given["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory, request):
    """The built site: a strict build ends at the first warning."""
    folder = tmp_path_factory.mktemp("site")
    patch = pytest.MonkeyPatch()
    request.addfinalizer(patch.undo)
    patch.setenv("NO_MKDOCS_2_WARNING", "1")
    build.build(config.load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))
    return folder


@pytest.fixture(scope="module")
def pages(site):
    """Each page by its path."""
    return {path: Links(path.read_text()) for path in sorted(site.rglob("*.html"))}


@pytest.mark.slow
def test_every_link_leads_somewhere(site, pages):
    lost = []
    for path, page in pages.items():
        for link in (*page.links, *page.fetched):
            where = urlsplit(link)
            if where.scheme or link.startswith("//"):
                continue
            target = path if not where.path else (path.parent / unquote(where.path)).resolve()
            if path.name == "404.html":  # served from anywhere, so its links begin at the root
                target = site / unquote(where.path).lstrip("/")
            if target.is_dir():
                target /= "index.html"
            known = pages[target].ids if target in pages else set()
            if not target.exists() or (where.fragment and target in pages and where.fragment not in known):
                lost.append(f"{path.relative_to(site)}: {link}")
    assert not lost


@pytest.mark.slow
def test_nothing_is_fetched_from_a_network(site, pages):
    assert len(pages) > 30
    for path, page in pages.items():
        assert not [each for each in page.fetched if re.match(r"(https?:)?//", each)], path
    for path in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//|@import", path.read_text()), path
    index = (site / "search/search_index.js").read_text()  # a script, which also file:// may load
    assert index.startswith("var __index") and "detectable effect" in index


@pytest.mark.slow
def test_every_option_stands_on_its_page_with_its_comments(site):
    for root in ("train", "sweep"):
        for group in defaults(CONF, root):
            text = (site / f"config/{group}.html").read_text()
            plain = html.unescape(re.sub(r"<[^>]+>", "", text))
            for name in options(CONF, group):
                assert f'id="{name}"' in text, f"{group}={name}"
                for line in (CONF / group / f"{name}.yaml").read_text().splitlines():
                    assert line.lstrip("# ").replace("`", "") in plain.replace("`", ""), (
                        f"{group}={name}: {line}"
                    )


@pytest.mark.slow
def test_every_public_module_is_in_the_api(pages):
    anchors = set().union(*(page.ids for path, page in pages.items() if path.parent.name == "api"))
    modules = {
        ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
        for path in (ROOT / "src").rglob("*.py")
        if not path.name.startswith("__")
    }
    assert modules <= anchors


@pytest.mark.slow
def test_every_page_can_be_reached(site, pages):
    docs = ROOT / "docs"
    for path in docs.rglob("*.md"):
        built = site / path.relative_to(docs).with_suffix(".html")
        others = [page for other, page in pages.items() if other != built]
        assert any(link.split("#")[0].endswith(built.name) for page in others for link in page.links), path


def test_pictures_are_drawn_from_the_protocols_and_always_the_same():
    spec = importlib.util.spec_from_file_location("pictures", ROOT / "docs/pictures.py")
    pictures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pictures)
    named = set(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"][1]["Learn"][3].values())
    text = (ROOT / "docs" / named.pop()).read_text()
    for name in pictures.PICTURES:
        assert f"figures/protocols/{name}.svg" in text
        assert pictures.svg(name) == pictures.svg(name)
    log = pictures.small_log()
    last = set(log.offsets[2:] - 1)  # of each user
    assert set(pictures.split_by("leave_one_out", log).test.target) == last

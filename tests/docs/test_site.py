"""The site as it is served: built strictly, whole, and with nothing to fetch (extra docs)."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import icl_jax

pytestmark = pytest.mark.docs

ROOT = Path(__file__).parents[2]
#: Attributes by which a page asks for a file at once; a link to click is no request.
ASKS = {
    "script": "src",
    "img": "src",
    "link": "href",
    "iframe": "src",
    "source": "src",
    "video": "src",
}


class Reader(HTMLParser):
    """The requests, the links and the anchors of a page."""

    def __init__(self, text):
        super().__init__()
        self.requests, self.links, self.anchors = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.anchors |= {values[name] for name in ("id", "name") if values.get(name)}
        if tag in ASKS and values.get(ASKS[tag]):
            self.requests.append(values[ASKS[tag]])
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def read(site):
    pages = site.rglob("*.html")
    return {page: Reader(page.read_text()) for page in pages if page.name != "404.html"}


def test_no_page_asks_another_machine_for_anything(site, read):
    assert len(read) > 20
    for page, reader in read.items():
        assert not [one for one in reader.requests if re.match(r"(https?:)?//", one)], page
    for style in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//|@import", style.read_text()), style


def test_every_link_and_every_anchor_is_there(site, read):
    broken = []
    for page, reader in read.items():
        for link in [*reader.links, *reader.requests]:
            if re.match(r"[a-z]+:|//", link):
                continue
            file, _, anchor = link.partition("#")
            target = (page.parent / file).resolve() if file else page
            if target.is_dir():
                target = target / "index.html"
            known = target.is_file() and (
                not anchor or target not in read or anchor in read[target].anchors
            )
            if not known and anchor != "__skip":
                broken.append(f"{page.relative_to(site)}: {link}")
    assert not broken


def test_every_public_name_is_in_the_reference(site, read):
    anchors = {
        one for page, reader in read.items() if "api" in page.parts for one in reader.anchors
    }
    defined = {f"{module}.{name}" for name, module in icl_jax._MODULES.items()}
    assert len(defined) == len(icl_jax.__all__)
    assert not defined - anchors


def test_formulas_are_mathml(site):
    text = (site / "theory.html").read_text()
    source = re.sub(
        r"```.*?```|`[^`]*`", "", (ROOT / "docs/theory.md").read_text(), flags=re.DOTALL
    )
    formulas = re.findall(r"\$\$.+?\$\$|\$[^$]+\$", source, re.DOTALL)
    assert text.count("<math") == len(formulas) > 50
    assert "arithmatex" not in text and not re.search(r"\\\\(frac|top|mathrm)", text)


def test_every_example_stands_in_the_reference(site):
    pages = "".join(page.read_text() for page in (site / "api").glob("*.html"))
    assert pages.count("Examples:") > 25

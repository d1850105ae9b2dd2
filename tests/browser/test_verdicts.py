"""Every section of every report says what was found, beside what it has to be compared with.

Reads the reports below the folder ``REPORTS``, like the browser does; without one, only itself.
"""

import html
import os
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.browser

REPORTS = (
    sorted(Path(os.environ["REPORTS"]).rglob("report.html")) if "REPORTS" in os.environ else []
)
#: How a verdict names a null, a rival or an awkward baseline, or where a value stands among others.
BESIDE = re.compile(
    r"\bnull\b|\bbaseline\b|\brival\b|\bbest\b|\bmedian\b|\beven\b|\brandom\b|\bshuffled\b|\banother\b"
    r"|\bunpatched\b|\buntrained\b|\bbefore training\b|\bwithout\b|\bno (context|weights|patch)\b"
    r"|\boriginal weights\b|\bfull rank\b|\bzeros?\b|\baveraging\b|\bbeside\b|\bagainst\b"
    r"|\b(more|less|better|worse|closer) than\b"
)
#: Sections that show and claim nothing: the title, and why there is nothing beside it.
SHOWS = {
    "What it writes": "texts to read; their loss stands in the section before",
    "Calibration texts": "what both sides learn from, the same for either",
}


def sections(page: str) -> list[tuple[str, str]]:
    """(title, verdict) of every section of a page; no verdict is an empty one."""
    found = []
    for body in re.findall(r"<section.*?</section>", page, re.DOTALL):
        title = re.search(r"<h[23][^>]*>(.*?)</h[23]>", body, re.DOTALL)
        verdict = re.search(r'<p class="verdict">(.*?)</p>', body, re.DOTALL)
        texts = (plain(one.group(1)) if one else "" for one in (title, verdict))
        found.append((next(texts), next(texts)))
    return found


def plain(markup: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", markup)).strip()


@pytest.mark.parametrize("path", REPORTS, ids=str)
def test_a_verdict_names_what_it_is_compared_with(path):
    # A page to look into has steps, which show what they show; every section of a report says
    # what was found (tests/experiments/test_rooms.py).
    told = [one for one in sections(path.read_text(encoding="utf-8")) if one[1]]
    bare = [(title, verdict) for title, verdict in told if not BESIDE.search(verdict)]
    assert [one for one in bare if one[0] not in SHOWS] == []


def test_a_verdict_without_a_rival_is_seen():
    page = (
        '<section><h2 id="a">A</h2><p class="verdict">The error is 1e-7.</p></section>'
        '<section><h2>B</h2><p class="verdict">It is 1e-7 (untrained: 0.3).</p></section>'
        "<section><h2>C</h2></section>"
    )
    assert [bool(BESIDE.search(verdict)) for _, verdict in sections(page)] == [False, True, False]

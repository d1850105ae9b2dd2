"""Reports in a real browser: wide, on a phone and on paper, light and dark; nothing is cut off.

Needs Chromium (Debian: apt-get install chromium); run by its own command, pytest -m browser. With
``REPORTS`` set to a folder, every ``report.html`` below it is looked at as well.
"""

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from icl_jax.report.figures import Curve, Panel, curves, dots, heatmaps
from icl_jax.report.page import Highlight, Section, Table, write_page
from tests.browser.devtools import browser
from tests.browser.paper import bare, sheets

pytestmark = pytest.mark.browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or "chromium"
#: Widths in CSS pixels; paper is A4 without its margins of 2 cm.
WIDTHS = {"wide": 1400, "phone": 420, "paper": 642}
#: No report is longer, and points that a CSS pixel has on paper: fewer where a page does not fit.
MOST_SHEETS, POINTS = 60, 0.75
#: What has to stand on paper, letter by letter.
PRINTED = re.compile(r"<(h1|h2|h3|p|caption|th|td|dt|dd)\b[^>]*>(.*?)</\1>", re.DOTALL)
FOUND = re.compile(r'<(p) class="verdict">(.*?)</p>', re.DOTALL)
X = np.arange(1.0, 21.0)


def everything():
    """A page with all that a report can have, and rather much of it."""
    lines = [Curve("in context", X, 1 / X, 0.8 / X, 1.2 / X)]
    lines += [Curve(f"control {i}", X, (i + 2) / X, role="control") for i in range(9)]
    title = "A title that is longer than a panel of three is wide, and is whole"
    panels = [Panel(title, lines, "examples", "loss", log_y=True)] * 3
    wide = Table(
        ("measure", "value", *("untrained", "shuffled labels", "another task", "random update"))
        + ("margin over the nearest null", "peel_off_output_gap_of_the_patched_kernel"),
        [
            ("relative difference of the sensitivities", "0.253 (0.241 to 0.265)")
            + (1.02, 0.98, 0.97, 1.41, "0.712 (0.69 to 0.734)", 1.2e-7)
        ]
        * 3,
        "Means over prompts. " + "Nulls: the learner before training; on shuffled labels. " * 3,
    )
    text = Table(
        ("prompt", "run", "text", "tokens"),
        [("line 1", "patched", "word" * 60, 20), ("line 2", "unpatched", "a b c " * 40, 20)],
    )
    measures = (
        "KL divergence (nats)",
        "angle of the leading directions (degrees)",
        "effective rank",
    )
    broad = Table(
        ("run", *(f"{one}, {side}" for one in measures for side in ("trained", "before training"))),
        [("patched", "0.253 (0.241 to 0.265)", 1.02, 41.7, 89.9, 3.25, 1.2e-7)] * 2,
    )
    few = Table(
        ("run", "relative error of the last logits", "of those at earlier kept positions")
        + ("same of the next 12 greedy tokens",),
        [("patched", 7.8e-7, 0.73, 10), ("original weights", 0.39, 0.89, 0)],
    )
    return [
        Section(
            "Curves",
            "Words.",
            curves(panels),
            [wide, broad, few],
            verdict="Worse than averaging (0.1).",
        ),
        Section("Text", "Words with `code` and ``more``.", None, [text], verdict="Found."),
        Section(
            "Dots",
            "Words.",
            dots(["skip", "none"], ["patched", "random"], [[1e-7, 1], [0, 2]], x_label="error"),
            part="Another part",
        ),
        Section(
            "Matrices",
            "Words.",
            heatmaps([np.eye(4) - 0.5] * 2, ["a", "b"], x_label="x", y_label="y", annotate=True),
            part="Another part",
        ),
    ]


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    return write_page(
        path,
        title="What a report can hold",
        introduction="A lead.",
        sections=everything(),
        highlights=[Highlight("a number of something", 0.5, "1.0 untrained")] * 4,
        footer="`python -m experiments.descent --workdir=" + "long/" * 40 + "`",
        settings={f"--learner.training.option_{i}": "1.0" for i in range(20)},
    )


REPORTS = (
    sorted(Path(os.environ["REPORTS"]).rglob("report.html")) if "REPORTS" in os.environ else []
)


@pytest.fixture(params=[None, *REPORTS], ids=lambda path: str(path) if path else "synthetic")
def page(request, synthetic):
    return request.param or synthetic


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as one:
        yield one


def chromium(*arguments):
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += ["--enable-logging=stderr", "--virtual-time-budget=8000", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert "CONSOLE" not in done.stderr, done.stderr
    return done.stdout


#: Counts, in the page inside the frame, what does not fit its box, and what was fetched. A figure
#: may be wider than a phone, where it is moved to and fro; its words are inside it everywhere.
LOOK = """
<script>onload = () => {
  const page = document.querySelector('iframe').contentWindow, inside = page.document;
  const clipped = [...inside.querySelectorAll('.wide, table, caption, p, h1, h2, h3, dl, nav')]
    .filter(e => e.scrollWidth > e.clientWidth + 1 && page.getComputedStyle(e).display != 'table')
    .concat([...inside.querySelectorAll('table, caption')].filter(e => {
      const box = e.getBoundingClientRect();
      return box.left < -0.5 || box.right > page.innerWidth + 0.5; }))
    .concat([...inside.querySelectorAll('.plate')].filter(e =>
      e.scrollWidth > e.clientWidth + 1 &&
      (page.innerWidth > 600 || page.getComputedStyle(e).overflowX != 'auto')))
    .concat([...inside.querySelectorAll('svg text')].filter(e => {
      const box = e.getBoundingClientRect(), all = e.closest('svg').getBoundingClientRect();
      const above = 0.3 * box.height;  // Of a line's box, where no letter is.
      return box.left < all.left - 1 || box.right > all.right + 1 || box.top < all.top - above
        || box.bottom > all.bottom + above; }))
    .map(e => e.tagName + '.' + e.getAttribute('class') + ' ' + e.textContent.slice(0, 40));
  document.title = JSON.stringify({clipped, width: page.innerWidth,
    whole: inside.documentElement.scrollWidth,
    requests: page.performance.getEntriesByType('resource').map(e => e.name)});
}</script>"""


def framed(text, width, folder):
    """A page at a width in a frame: a window of the browser is 500 pixels wide at least."""
    frame = folder / "frame.html"
    size = f"width:{width}px;height:2900px;border:0"
    source = html.escape(text, quote=True)
    frame.write_text(
        f'<meta charset="utf-8"><iframe style="{size}" srcdoc="{source}"></iframe>{LOOK}'
    )
    return frame


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_clipped_and_nothing_is_fetched(page, width, tmp_path):
    text = page.read_text()
    if width == "paper":  # As on paper, but on a screen, where it can be measured.
        text = text.replace("@media print", "@media all").replace("@media screen", "@media none")
    frame = framed(text, WIDTHS[width], tmp_path)
    dom = chromium("--window-size=1500,1000", "--dump-dom", frame.as_uri())
    found = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", dom)[1]))
    assert found["width"] == WIDTHS[width]
    assert found["clipped"] == [] and found["requests"] == []
    assert found["whole"] <= WIDTHS[width]


def test_figures_are_light_in_the_light_and_dark_in_the_dark(page, tab):
    # Cells of a matrix keep their colours, and so do the words in them.
    words = ".plate svg text:not([style*='fill: #'])"
    for dark in (False, True):
        tab.open(page, width=WIDTHS["wide"], dark=dark)
        grounds = tab.luminances("body, .plate", "backgroundColor")
        assert all(one is not None and (one < 0.05 if dark else one > 0.9) for one in grounds)
        letters = tab.luminances(words, "fill")
        assert all(one > 0.25 if dark else one < 0.25 for one in letters)
        assert letters or len(grounds) == 1  # A page to look into has no plates.


def test_nothing_scrolls_on_paper(page, tab):
    tab.open(page)
    assert tab.cut_on_paper(WIDTHS["paper"]) == []


def test_what_would_scroll_or_is_cut_on_paper_is_seen(tab, tmp_path):
    cut = ("overflow: auto", "overflow: hidden; text-overflow: ellipsis", "")
    whole = "white-space: pre-wrap; overflow-wrap: anywhere"
    texts = [f"<pre style='{style}'>{'word' * 60}</pre>" for style in (*cut, whole)]
    (tmp_path / "page.html").write_text("".join(texts))
    tab.open(tmp_path / "page.html")
    assert len(tab.cut_on_paper(WIDTHS["paper"])) == len(cut)


def test_every_column_has_a_name(page):
    names = re.findall(r"<th\b[^>]*>(.*?)</th>", page.read_text(), re.DOTALL)
    assert [name for name in names if not name.strip()] == []


def test_a_page_can_be_photographed_and_printed(page, tmp_path):
    shots = Path(os.environ.get("SHOTS", tmp_path))
    phone = framed(page.read_text(), WIDTHS["phone"], tmp_path)
    for name, source, size, more in (
        ("wide", page, WIDTHS["wide"], ()),
        ("phone", phone, 500, ()),
        ("dark", page, WIDTHS["wide"], ("--blink-settings=preferredColorScheme=0",)),
    ):
        shot = shots / f"{page.parent.name}-{name}.png"
        chromium(f"--window-size={size},3000", *more, f"--screenshot={shot}", source.as_uri())
        assert shot.read_bytes().startswith(b"\x89PNG")
    paper = shots / f"{page.parent.name}.pdf"
    chromium("--no-pdf-header-footer", f"--print-to-pdf={paper}", page.as_uri())
    assert_whole(sheets(paper), page.read_text())


def assert_whole(printed, page):
    """All words of a page are on its sheets, none of which is empty or was made smaller to fit."""
    assert 0 < len(printed) <= MOST_SHEETS and all(sheet.text for sheet in printed)
    assert [sheet.scale for sheet in printed] == [pytest.approx(POINTS, rel=1e-3)] * len(printed)
    text = "".join(sheet.text for sheet in printed)
    # Of a page that its script draws: what was found.
    asked, least = (FOUND, 2) if "<noscript" in page else (PRINTED, 11)
    page = re.sub(r"<(svg|style|script)\b.*?</\1>", "", page, flags=re.DOTALL)
    words = [bare(html.unescape(re.sub(r"<[^>]+>", "", one))) for _, one in asked.findall(page)]
    # What a small model writes may hold bytes that are no letters, which no font has.
    readable = [one for one in words if "\ufffd" not in one and one.isprintable()]
    assert len(readable) >= least and [one for one in readable if one not in text] == []


def test_paper_that_is_too_wide_or_lacks_words_is_seen(tmp_path):
    page = "".join(f"<p>Paragraph {i}.</p>" for i in range(12))
    for name, text in (("good", page), ("wide", f"{page}<div style='width:900px'>a</div>")):
        (tmp_path / f"{name}.html").write_text(text)
        source = (tmp_path / f"{name}.html").as_uri()
        chromium("--no-pdf-header-footer", f"--print-to-pdf={tmp_path / name}.pdf", source)
    good, wide = (sheets(tmp_path / f"{name}.pdf") for name in ("good", "wide"))
    assert_whole(good, page)
    with pytest.raises(AssertionError, match=r"== \[0.75"):
        assert_whole(wide, page)
    with pytest.raises(AssertionError, match="Paragraph12"):
        assert_whole(good, page + "<p>Paragraph 12.</p>")

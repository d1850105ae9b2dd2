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

pytestmark = pytest.mark.browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or "chromium"
#: Widths in CSS pixels; paper is A4 without its margins of 2 cm.
WIDTHS = {"wide": 1400, "phone": 420, "paper": 642}
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


def chromium(*arguments):
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += ["--enable-logging=stderr", "--virtual-time-budget=8000", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert "CONSOLE" not in done.stderr, done.stderr
    return done.stdout


#: Counts, in the page inside the frame, what does not fit its box, and what was fetched.
LOOK = """
<script>onload = () => {
  const page = document.querySelector('iframe').contentWindow, inside = page.document;
  const clipped = [...inside.querySelectorAll('.wide, table, caption, p, h1, h2, h3, dl, nav')]
    .filter(e => e.scrollWidth > e.clientWidth + 1 && page.getComputedStyle(e).display != 'table')
    .concat([...inside.querySelectorAll('table, caption')].filter(e => {
      const box = e.getBoundingClientRect();
      return box.left < -0.5 || box.right > page.innerWidth + 0.5; }))
    .map(e => e.tagName + '.' + e.className + ' ' + e.textContent.slice(0, 40));
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
    assert paper.read_bytes().startswith(b"%PDF")

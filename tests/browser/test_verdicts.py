"""Every section of every report says what was found, beside what it has to be compared with.

Reads the reports below the folder ``REPORTS``, like the browser does; without one, only itself.
"""

import html
import os
import re
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.browser

REPORTS = (
    sorted(Path(os.environ["REPORTS"]).rglob("report.html")) if "REPORTS" in os.environ else []
)
#: What tables and legends call a null, a baseline or a rival. One that is met has the word behind
#: "another" in it: another order's patch is not another context's.
NAMES = re.compile(
    # Nulls.
    r"\buntrained\b|\bbefore training\b|\bshuffled\b|\brandom\b|\banother \w+|\bunpatched\b"
    r"|\bnearest null\b|\bno context\b|\bwithout a (?:context|patch)\b|\bquery alone\b"
    r"|\bzero shot\b|\bnothing\b"
    r"|\ba kernel of zeros\b|\bzero predictor\b|\bplain model\b|\btwo facts'"
    # Baselines.
    r"|\bleast squares\b|\bridge regression\b|\baveraging\b|\bnearest neighbours\b|\bgreedy tree\b"
    r"|\bfitted network\b|\blasso\b|\bcounts of \w+|\buniform\b|\bgradient descent\b|\bgd\+\+"
    r"|\bone step of descent\b|\bwithout the remainder\b|\bif all wrote the same\b"
    # Rivals.
    r"|\blora\b|\bthought vector\b|\bleave one out\b|\battention\b|\bgradient times\b"
    r"|\bnearest to the answer\b"
)
#: Sections that show and claim nothing that could fail: the title, and why there is none beside it.
SHOWS = {
    "How hard the patches work": "how far patches go, whatever comes of it",
    "Which prompt changes which layer": "the same, prompt by prompt",
    "Calibration texts": "what both sides learn from, the same for either",
    "Every result": "the least of each number of a sweep, beside the median of its runs",
}


class Told(NamedTuple):
    """A section: its title, what was found, and the words of its tables and figures."""

    title: str
    verdict: str
    shown: tuple[str, ...]

    @property
    def beside(self) -> set[str]:
        """What the verdict names, with a number behind it, that tables or legends name, too."""
        shown = {name for label in self.shown for name in NAMES.findall(label.lower())}
        verdict = self.verdict.lower()
        # What a page to look into shows is drawn by its script: there the names themselves count.
        found = [one for one in NAMES.finditer(verdict) if one.group() in shown or not self.shown]
        return {one.group() for one in found if re.search(r"\d", _sentence(verdict, one.start()))}


def _sentence(text: str, start: int) -> str:
    """The rest of the sentence from ``start`` on; a point between digits ends none."""
    return re.split(r"\.(?:\s|$)", text[start:])[0]


def sections(page: str) -> list[Told]:
    """Every section of a page; no verdict is an empty one."""
    found = []
    for body in re.findall(r"<section.*?</section>", page, re.DOTALL):
        title = re.search(r"<h[23][^>]*>(.*?)</h[23]>", body, re.DOTALL)
        verdict = re.search(r'<p class="verdict">(.*?)</p>', body, re.DOTALL)
        texts = (plain(one.group(1)) if one else "" for one in (title, verdict))
        shown = re.findall(r"<(th|td|caption|text)\b[^>]*>(.*?)</\1>", body, re.DOTALL)
        found.append(Told(next(texts), next(texts), tuple(plain(one) for _, one in shown)))
    return found


def plain(markup: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", markup)).split())


@pytest.mark.parametrize("path", REPORTS, ids=str)
def test_a_verdict_names_what_it_is_compared_with_as_tables_or_legends_do(path):
    # A page to look into has steps, which show what they show; every section of a report says
    # what was found (tests/experiments/test_rooms.py).
    told = [one for one in sections(path.read_text(encoding="utf-8")) if one.verdict]
    bare = [(one.title, one.verdict) for one in told if not one.beside]
    assert [one for one in bare if one[0] not in SHOWS] == []


ROWS = (
    "<table><caption>Means.</caption><tr><th>run</th></tr><tr><td>untrained, in context</td></tr>"
)


@pytest.mark.parametrize(
    ("verdict", "named"),
    [
        ("The error is 1e-7.", set()),
        ("Training finds the closed form of the best layer: the ratio is 1.04.", set()),
        ("It is even better than 1.04, without more.", set()),
        ("It is 1e-7, averaging 0.3.", set()),
        ("It is 1e-7, better than untrained.", set()),
        ("It is better than untrained. The ratio is 1.04.", set()),
        ("It is 1e-7 (untrained: 0.3).", {"untrained"}),
    ],
)
def test_only_a_name_of_the_table_with_its_number_is_a_comparison(verdict, named):
    page = f'<section><h2 id="a">A</h2><p class="verdict">{verdict}</p>{ROWS}</table></section>'
    (told,) = sections(page)
    assert told.title == "A" and told.beside == named


def test_a_legend_names_and_another_is_not_any_other():
    legend = "<svg><text x='1'>another context&#x27;s</text></svg>"
    page = f'<section><h2>B</h2><p class="verdict">{{}}</p>{legend}</section><section></section>'
    verdicts = ("The null is another context's with 0.2.", "In another order it is 0.2.")
    told = [sections(page.format(verdict))[0].beside for verdict in verdicts]
    assert told == [{"another context"}, set()]

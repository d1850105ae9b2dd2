"""The page: one valid file, nothing fetched, ids unique, text escaped, written whole or not."""

import html.parser
import os
import re
import stat

import numpy as np
import pytest

from icl_jax.report import figures, page
from icl_jax.report.page import Section, Table, number, render_page, write_page

VOID = {"meta", "br", "img", "link", "hr", "input"}


class _Reader(html.parser.HTMLParser):
    """Collects what the tests ask about and fails on tags that do not nest."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.targets, self.outside, self.tags = [], [], [], []
        self.open, self.text = [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self._look(tag, attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self._look(tag, attributes)

    def _look(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            value = value or ""
            if name == "id":
                self.ids.append(value)
            if name in ("href", "xlink:href", "src"):
                (self.targets if value.startswith("#") else self.outside).append(value.lstrip("#"))
            self.targets.extend(re.findall(r"url\(#([^)]*)\)", value))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text += data


def _figure(kind=0):
    x = np.arange(5.0)
    if kind:
        return figures.heatmaps([np.eye(2)], ["t"], x_label="x", y_label="y")
    return figures.curves(
        [figures.Panel("a", [figures.Curve("c", x, x, x, x + 1)], "step", "loss")]
    )


def _table():
    return Table(["wiring", "error"], [["skip", 1.2345e-7], ["<none>", None]], "Errors & more.")


def _page(**changes):
    settings = {
        "title": "A < B",
        "introduction": "First & foremost.\n\nSecond, with `code <x>`.",
        "sections": [
            Section("Same title", "One.\n\nTwo.", _figure(), [_table()]),
            Section("Same title", "Three <script>alert(1)</script>.", _figure()),
            Section("Heat", "Four.", _figure(1), anchor="heat"),
            Section("123 & Ünicode", "No figure here.", None, [_table()]),
        ],
        "footer": "version 0 < 1",
        "highlights": [("error", 1.2345e-7, "unpatched: 0.353"), ("runs", 100, "")],
    }
    return settings | changes


def test_a_page_is_well_formed_with_unique_ids_and_no_dangling_reference():
    reader = _Reader(render_page(**_page()))
    assert reader.tags.count("svg") == 3
    assert len(reader.ids) == len(set(reader.ids))
    assert set(reader.targets) <= set(reader.ids)
    assert len(reader.targets) > 20


def test_a_page_fetches_nothing_and_runs_nothing():
    text = render_page(**_page())
    reader = _Reader(text)
    assert all(target.startswith("data:") for target in reader.outside)
    assert not {"script", "link", "iframe", "img"} & set(reader.tags)
    assert "@import" not in text and not re.search(r"url\((?!#)", text)


def test_text_is_escaped():
    text = render_page(**_page())
    assert "<script>" not in text and "&lt;script&gt;" in text
    assert "<code>code &lt;x&gt;</code>" in text
    assert "<title>A &lt; B</title>" in text
    reader = _Reader(text)
    for shown in ("First & foremost.", "<none>", "Errors & more.", "version 0 < 1"):
        assert shown in reader.text


def test_every_figure_is_followed_by_its_text():
    text = render_page(**_page())
    assert len(re.findall(r"</svg></div>\n<figcaption>\n<p>", text)) == 3


def test_highlights_stand_beside_their_control():
    reader = _Reader(render_page(**_page()))
    assert re.search(r"error\s*1\.2e-07\s*unpatched: 0\.353", reader.text)


def test_contents_link_to_every_section_in_order():
    text = render_page(**_page())
    links = re.findall(r'<li><a href="#([^"]*)">', text)
    assert links == ["same-title", "same-title-2", "heat", "section-123-nicode"]
    assert re.findall(r'<section id="([^"]*)">', text) == links


def test_text_of_a_figure_that_looks_like_an_id_stays():
    label = 'say id="x" and url(#y)'
    svg = figures.curves([figures.Panel(label, [figures.Curve("c", [0, 1], [0, 1])], "x", "y")])
    assert label in _Reader(render_page(**_page(sections=[Section("s", "t", svg)]))).text


def test_the_same_page_gives_the_same_bytes():
    assert render_page(**_page()) == render_page(**_page())


def test_a_page_is_written_whole_and_readable_by_others(tmp_path):
    path = write_page(tmp_path / "report.html", **_page())
    assert path.read_text(encoding="utf-8") == render_page(**_page())
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert os.listdir(tmp_path) == ["report.html"]


def test_a_page_that_fails_leaves_the_old_one_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")

    def refuse(*_):
        raise OSError("disk full")

    monkeypatch.setattr(page.os, "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        write_page(path, **_page())
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.html"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1.234e-7, "1.2e-07"),
        (0.35312, "0.353"),
        (0.5, "0.500"),
        (12, "12"),
        (np.int64(12), "12"),
        (12.0, "12.0"),
        (99.96, "100"),
        (1234.5, "1234"),
        (123456.0, "1.2e+05"),
        (-0.02, "-0.0200"),
        (0.0, "0"),
        (np.float32(0.25), "0.250"),
        (None, "–"),
        (float("nan"), "–"),
        (float("inf"), "inf"),
        (True, "yes"),
        ("n/a", "n/a"),
    ],
)
def test_numbers_are_written_in_one_way(value, shown):
    assert number(value) == shown


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Table([], []), "header must not be empty"),
        (lambda: Table(["a", "b"], [[1, 2], [1]]), r"rows\[1\] must have 2 cells.*got 1"),
        (lambda: Section(" ", "text"), "title must not be empty"),
        (lambda: Section("t", "text", anchor="Not one"), "anchor must consist of"),
        (lambda: Section("t", "text", "figure.png"), "figure of 't' must be SVG text"),
        (lambda: render_page(**_page(sections=[])), "sections must not be empty"),
        (lambda: render_page(**_page(highlights=[("a", 1)])), r"highlights\[0\] must be"),
        (
            lambda: render_page(**_page(sections=[Section("t", "x", anchor="a")] * 2)),
            "two sections have the anchor 'a'",
        ),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_configuration_is_printed_though_nobody_unfolded_it():
    settings = {"--num_prompts": "100", "--learner.task": "linear"}
    page = render_page(
        title="T", introduction="", sections=[Section("A", "Words.")], settings=settings
    )
    footer = page[page.index("<footer>") :]
    fold = footer[footer.index("<details>") : footer.index("</details>")]
    assert "Configuration" in fold and "--num_prompts" not in fold  # A closed fold is not printed.
    assert re.search(r"</details>\s*<dl>.*--num_prompts.*--learner.task.*</dl>", footer, re.DOTALL)
    styles = page[page.index("<style>") : page.index("</style>")]
    hidden = re.findall(r"@media (\w+)[^{]*{ (footer details:not[^}]*display: none)", styles)
    assert [medium for medium, _ in hidden] == ["screen"]
    printed = styles[styles.index("@media print") :]
    assert not re.search(r"(details|dl)[^{}]*{[^}]*display: none", printed)

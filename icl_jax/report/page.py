"""A report as one self-contained HTML file: text, figures and tables, nothing fetched.

The page is built for reading: first what was found, claim by claim; then one column, system fonts,
figures as inline SVG with the paragraph that explains each one right below it. It prints, fits a
phone (tables become lists), and follows the reader's dark mode, figures included. There is no
script in it.
"""

import dataclasses
import html
import math
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from icl_jax.report.sheet import STYLE_SHEET

#: What a table cell or a key number may be; None and NaN are shown as a dash.
Cell = str | int | float | bool | None

_NAME_LENGTH = 60  # Characters of a cell; longer ones are texts.
_PARTS = re.compile(r"(_|(?<=\w)\.(?=[a-z]))")
_ANCHOR = re.compile(r"[a-z][a-z0-9-]*")


def number(x: Cell) -> str:
    """The one way in which reports write a number.

    Integers in full; other numbers with three significant digits, or as 1.2e-07 below 1e-3 and
    from 1e4 on; exact zero as 0; a dash where nothing was measured (None, NaN); text unchanged.

    Examples:
      >>> from icl_jax.report.page import number
      >>> [number(x) for x in (1.234e-7, 0.35312, 0.5, 12, 12.0, 1234.5, 0.0, None, "n/a")]
      ['1.2e-07', '0.353', '0.500', '12', '12.0', '1234', '0', '–', 'n/a']
    """
    if isinstance(x, str):
        return x
    if x is None:
        return "–"
    if isinstance(x, bool | np.bool_):
        return "yes" if x else "no"
    if isinstance(x, int | np.integer):
        return str(int(x))
    value = float(x)
    if math.isnan(value):
        return "–"
    if value == 0.0 or math.isinf(value):
        return "0" if value == 0.0 else str(value)
    if not 1e-3 <= abs(value) < 1e4:
        return f"{value:.1e}"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:#.3g}".rstrip(".")


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of cells.

    Attributes:
      header: the names of the columns.
      rows: one cell per column each; numbers are written by ``number``.
      caption: one line that says what is shown; may be empty.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""

    def __post_init__(self) -> None:
        if not self.header:
            raise ValueError("Table: header must not be empty.")
        for i, row in enumerate(self.rows):
            if len(row) != len(self.header):
                raise ValueError(
                    f"Table: rows[{i}] must have {len(self.header)} cells, one per header, got "
                    f"{len(row)}."
                )

    def is_numeric(self, column: int) -> bool:
        """Whether a column holds numbers only, and is therefore set flush right."""
        cells = [row[column] for row in self.rows]
        return bool(cells) and not any(isinstance(cell, str) for cell in cells)


@dataclasses.dataclass(frozen=True)
class Section:
    """One claim of a report: its figure, the words for it, its tables.

    Attributes:
      title: the heading.
      text: plain words; a blank line starts a new paragraph, `backticks` set code.
      verdict: what was found, in a sentence or two: stands below the heading and at the page's
        head, and says against what (the best baseline, the nearest null).
      figure: SVG text as the functions of ``figures`` return it, or None.
      tables: shown after the text.
      anchor: the id that links point to (a-z, 0-9, -); empty takes one from the title.
      part: the heading of the part of the page that the section is in; empty in a page of one part.
    """

    title: str
    text: str
    figure: str | None = None
    tables: Sequence[Table] = ()
    anchor: str = ""
    verdict: str = ""
    part: str = ""

    def __post_init__(self) -> None:
        if not self.title.strip():
            raise ValueError("Section: title must not be empty.")
        if self.anchor and not _ANCHOR.fullmatch(self.anchor):
            raise ValueError(
                f"Section: anchor must consist of a-z, 0-9 and -, and start with a letter, got "
                f"{self.anchor!r}."
            )
        if self.figure is not None and "<svg" not in self.figure:
            raise ValueError(
                f"Section: figure of {self.title!r} must be SVG text, got "
                f"{self.figure[:40]!r}. The functions of icl_jax.report.figures return it."
            )


class Highlight(NamedTuple):
    """A key number in the strip at the head of a page.

    Attributes:
      label: what was measured.
      value: the number.
      control: what to compare it with, in words or as a number; empty for nothing.
    """

    label: str
    value: Cell
    control: Cell = ""


def write_page(
    path: str | os.PathLike[str],
    *,
    title: str,
    introduction: str,
    sections: Sequence[Section],
    footer: str = "",
    highlights: Sequence[tuple[str, Cell, Cell]] = (),
    settings: Mapping[str, str] = MappingProxyType({}),
) -> Path:
    """Writes a page to ``path``, all of it or nothing.

    Args:
      path: the HTML file; its folder must exist.
      title: the heading of the page.
      introduction: paragraphs below it, written like ``Section.text``.
      sections: at least one.
      footer: small print: versions, the command, the commit.
      highlights: key numbers (label, value, control), each beside its control.
      settings: names and values of the whole configuration, unfolded at the end on demand.

    Returns:
      The path.

    Raises:
      ValueError: no sections, two sections with one anchor, or a highlight that is not a triple.
    """
    path = Path(path)
    text = render_page(
        title=title,
        introduction=introduction,
        sections=sections,
        footer=footer,
        highlights=highlights,
        settings=settings,
    )
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        # mkstemp makes files that only their owner can read; a report is there to be shared.
        os.fchmod(handle, 0o644)
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return path


def render_page(
    *,
    title: str,
    introduction: str,
    sections: Sequence[Section],
    footer: str = "",
    highlights: Sequence[tuple[str, Cell, Cell]] = (),
    settings: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """The HTML text that ``write_page`` writes; the same arguments."""
    if not sections:
        raise ValueError("write_page: sections must not be empty.")
    for i, highlight in enumerate(highlights):
        if isinstance(highlight, str) or len(highlight) != 3:
            raise ValueError(
                f"write_page: highlights[{i}] must be (label, value, control), got {highlight!r}."
            )
    anchors = _anchors(sections)
    body = [f"<header>\n<h1>{_inline(title)}</h1>", _paragraphs(introduction, "lead"), "</header>"]
    body.append(_strip(highlights))
    body.append(_contents(anchors, sections))
    body.append("<main>")
    part = ""
    for i, (anchor, section) in enumerate(zip(anchors, sections, strict=True)):
        if section.part and section.part != part:
            body.append(f"<h2>{_inline(section.part)}</h2>")
        part = section.part
        body.append(render_section(anchor, i + 1, section))
    body.append("</main>")
    body.append(render_footer(footer, settings))
    content = "\n".join(part for part in body if part)
    return (
        "<!DOCTYPE html>\n"
        '<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{STYLE_SHEET}</style>\n</head>\n"
        f"<body>\n{content}\n</body>\n</html>\n"
    )


def _contents(anchors: Sequence[str], sections: Sequence[Section]) -> str:
    """What was found, section by section; a page of one section without a verdict needs none."""
    if len(sections) == 1 and not sections[0].verdict:
        return ""
    entries = []
    part = ""
    for anchor, section in zip(anchors, sections, strict=True):
        if section.part and section.part != part:
            entries.append(f'<li class="part">{_inline(section.part)}</li>')
        part = section.part
        verdict = f"<p>{_inline(section.verdict)}</p>" if section.verdict else ""
        entries.append(f'<li><a href="#{anchor}">{_inline(section.title)}</a>{verdict}</li>')
    listed = "\n".join(entries)
    return f'<nav aria-label="What was found">\n<ul>\n{listed}\n</ul>\n</nav>'


def render_footer(text: str, settings: Mapping[str, str]) -> str:
    """The small print of a page, and its configuration, as HTML; nothing where there is none."""
    if not text and not settings:
        return ""
    return f"<footer>\n{_paragraphs(text)}\n{_settings(settings)}</footer>"


def _settings(settings: Mapping[str, str]) -> str:
    if not settings:
        return ""
    rows = "\n".join(
        f"<div><dt>{_inline(name)}</dt><dd>{html.escape(value)}</dd></div>"
        for name, value in settings.items()
    )
    # Beside the fold and not in it: what is inside a closed one is not printed.
    return f"<details>\n<summary>Configuration</summary>\n</details>\n<dl>\n{rows}\n</dl>\n"


def render_section(anchor: str, index: int, section: Section) -> str:
    """A section as HTML: the id that links point to, and its place on the page."""
    level = "h3" if section.part else "h2"
    parts = [f'<section id="{anchor}">', f"<{level}>{_inline(section.title)}</{level}>"]
    if section.verdict:
        parts.append(f'<p class="verdict">{_inline(section.verdict)}</p>')
    text = _paragraphs(section.text)
    if section.figure is None:
        parts.append(text)
    else:
        figure = _inline_svg(section.figure, f"svg{index}_", section.title)
        parts.append(
            f'<figure>\n<div class="plate">{figure}</div>\n<figcaption>\n{text}\n</figcaption>\n'
            "</figure>"
        )
    parts.extend(_table(table) for table in section.tables)
    parts.append("</section>")
    return "\n".join(part for part in parts if part)


def _table(table: Table) -> str:
    css = [' class="n"' if table.is_numeric(i) else "" for i in range(len(table.header))]
    head = "".join(
        f'<th scope="col"{kind}>{_breakable(_inline(name))}</th>'
        for name, kind in zip(table.header, css, strict=True)
    )
    rows = "\n".join(
        "<tr>"
        + "".join(
            f'<td{_long(cell) or kind} data-label="{html.escape(name)}">'
            f"{_inline(number(cell))}</td>"
            for name, cell, kind in zip(table.header, row, css, strict=True)
        )
        + "</tr>"
        for row in table.rows
    )
    caption = f"<caption>{_inline(table.caption)}</caption>\n" if table.caption else ""
    # Few columns fit a phone, seven fit the column of the text.
    many = len(table.header)
    size = " broad" if many > 6 else " many" if many > 3 else ""
    return (
        f'<div class="wide{size}"><table>\n{caption}<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody>\n</table></div>"
    )


def _breakable(name: str) -> str:
    """The name of a field may be broken at its parts, a word never."""
    return _PARTS.sub(r"\1<wbr>", name)


def _long(cell: Cell) -> str:
    """Marks a cell whose words may be broken: a text, not a name."""
    return ' class="long"' if isinstance(cell, str) and len(cell) > _NAME_LENGTH else ""


def _strip(highlights: Sequence[tuple[str, Cell, Cell]]) -> str:
    if not highlights:
        return ""
    cards = []
    for label, value, control in highlights:
        cards.append(
            f"<div><dt>{_breakable(_inline(label))}</dt>"
            f'<dd class="value">{_inline(number(value))}</dd>'
            f'<dd class="control">{_inline(number(control))}</dd></div>'
        )
    return '<dl class="strip">\n' + "\n".join(cards) + "\n</dl>"


def _paragraphs(text: str, css: str = "") -> str:
    kind = f' class="{css}"' if css else ""
    parts = [part.strip() for part in re.split(r"\n\s*\n", text)]
    return "\n".join(f"<p{kind}>{_inline(part)}</p>" for part in parts if part)


def _inline(text: str) -> str:
    """Escaped text, with `backticks` as code, in ones or in twos."""
    return re.sub(
        r"``(.+?)``|`([^`]+)`", lambda m: f"<code>{m[1] or m[2]}</code>", html.escape(text)
    )


def _anchors(sections: Sequence[Section]) -> list[str]:
    """One id per section: the given ones, else from the title with a number where it repeats."""
    given = [section.anchor for section in sections if section.anchor]
    repeated = sorted({anchor for anchor in given if given.count(anchor) > 1})
    if repeated:
        raise ValueError(
            f"write_page: two sections have the anchor {repeated[0]!r}. Anchors must differ."
        )
    taken, anchors = set(given), []
    for section in sections:
        anchor = section.anchor
        if not anchor:
            words = re.sub(r"[^a-z0-9]+", "-", section.title.lower()).strip("-")
            base = words if _ANCHOR.fullmatch(words) else f"section-{words}".rstrip("-")
            anchor, i = base, 2
            while anchor in taken:
                anchor, i = f"{base}-{i}", i + 1
            taken.add(anchor)
        anchors.append(anchor)
    return anchors


def _inline_svg(svg: str, prefix: str, label: str) -> str:
    """An SVG element fit for a page: ids of its own, a name for screen readers, no fixed size."""
    svg = svg[svg.index("<svg") :].strip()
    # Anchors have no underscore and each prefix has one, so no id can meet another.
    names = re.compile(r"""(\sid="|href="\#|url\(\s*['"]?\#)""")
    svg = re.sub(r"<[^>]*>", lambda tag: names.sub(rf"\g<1>{prefix}", tag[0]), svg)
    end = svg.index(">")
    root = re.sub(r'\s(?:width|height)="[^"]*"', "", svg[:end])
    return f'{root} role="img" aria-label="{html.escape(label)}"{svg[end:]}'

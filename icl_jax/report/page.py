"""A report as one self-contained HTML file: text, figures and tables, nothing fetched.

The page is built for reading: one column, system fonts, figures as inline SVG with the paragraph
that explains each one right below it. It prints, fits a phone, and follows the reader's dark mode
(figures keep their light ground). There is no script in it.
"""

import dataclasses
import html
import math
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

#: What a table cell or a key number may be; None and NaN are shown as a dash.
Cell = str | int | float | bool | None

_ANCHOR = re.compile(r"[a-z][a-z0-9-]*")


def number(x: Cell) -> str:
    """The one way in which reports write a number.

    Integers in full; other numbers with three significant digits, or as 1.2e-07 below 1e-3 and
    from 1e4 on; exact zero as 0; a dash where nothing was measured (None, NaN); text unchanged.

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
      figure: SVG text as the functions of ``figures`` return it, or None.
      tables: shown after the text.
      anchor: the id that links point to (a-z, 0-9, -); empty takes one from the title.
    """

    title: str
    text: str
    figure: str | None = None
    tables: Sequence[Table] = ()
    anchor: str = ""

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
) -> Path:
    """Writes a page to ``path``, all of it or nothing.

    Args:
      path: the HTML file; its folder must exist.
      title: the heading of the page.
      introduction: paragraphs below it, written like ``Section.text``.
      sections: at least one.
      footer: small print: versions, the command, the commit.
      highlights: key numbers (label, value, control), each beside its control.

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
    if len(sections) > 1:
        links = "\n".join(
            f'<li><a href="#{anchor}">{_inline(section.title)}</a></li>'
            for anchor, section in zip(anchors, sections, strict=True)
        )
        body.append(f'<nav aria-label="Contents">\n<ol>\n{links}\n</ol>\n</nav>')
    body.append("<main>")
    for i, (anchor, section) in enumerate(zip(anchors, sections, strict=True)):
        body.append(_section(anchor, i + 1, section))
    body.append("</main>")
    if footer:
        body.append(f"<footer>\n{_paragraphs(footer)}\n</footer>")
    content = "\n".join(part for part in body if part)
    return (
        "<!DOCTYPE html>\n"
        '<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{_CSS}</style>\n</head>\n"
        f"<body>\n{content}\n</body>\n</html>\n"
    )


def _section(anchor: str, index: int, section: Section) -> str:
    parts = [f'<section id="{anchor}">', f"<h2>{_inline(section.title)}</h2>"]
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
        f'<th scope="col"{kind}>{_inline(name)}</th>'
        for name, kind in zip(table.header, css, strict=True)
    )
    rows = "\n".join(
        "<tr>"
        + "".join(
            f"<td{kind}>{_inline(number(cell))}</td>" for cell, kind in zip(row, css, strict=True)
        )
        + "</tr>"
        for row in table.rows
    )
    caption = f"<caption>{_inline(table.caption)}</caption>\n" if table.caption else ""
    return (
        f'<div class="wide"><table>\n{caption}<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody>\n</table></div>"
    )


def _strip(highlights: Sequence[tuple[str, Cell, Cell]]) -> str:
    if not highlights:
        return ""
    cards = []
    for label, value, control in highlights:
        cards.append(
            f'<div><dt>{_inline(label)}</dt><dd class="value">{_inline(number(value))}</dd>'
            f'<dd class="control">{_inline(number(control))}</dd></div>'
        )
    return '<dl class="strip">\n' + "\n".join(cards) + "\n</dl>"


def _paragraphs(text: str, css: str = "") -> str:
    kind = f' class="{css}"' if css else ""
    parts = [part.strip() for part in re.split(r"\n\s*\n", text)]
    return "\n".join(f"<p{kind}>{_inline(part)}</p>" for part in parts if part)


def _inline(text: str) -> str:
    """Escaped text, with `backticks` as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


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


_CSS = """\
:root {
  color-scheme: light dark;
  --paper: #ffffff; --ink: #1d2126; --quiet: #5a626b; --line: #dfe3e7; --accent: #0b5c94;
  --tint: #f6f8fa;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15181b; --ink: #e3e6e9; --quiet: #9ea7b0; --line: #343a40; --accent: #7cb8e4;
    --tint: #1d2125;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body {
  margin: 0 auto; padding: 4.5rem 1.5rem 5rem; max-width: 48rem;
  background: var(--paper); color: var(--ink);
  font: 1.09rem/1.62 Charter, "Bitstream Charter", "Iowan Old Style", "Source Serif 4",
    "Palatino Linotype", Georgia, serif;
  text-rendering: optimizeLegibility; hyphens: manual;
}
h1, h2, nav, dl, table, footer {
  font-family: system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif;
}
h1 { margin: 0 0 1.25rem; font-size: 2.1rem; line-height: 1.2; letter-spacing: -0.015em;
  font-weight: 680; text-wrap: balance; }
h2 { margin: 0 0 1.1rem; font-size: 1.3rem; line-height: 1.3; letter-spacing: -0.005em;
  font-weight: 650; text-wrap: balance; }
p { margin: 0 0 1rem; overflow-wrap: break-word; }
a { color: var(--accent); text-underline-offset: 0.15em; text-decoration-thickness: 1px; }
code { font: 0.86em/1.4 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  background: var(--tint); padding: 0.1em 0.3em; border-radius: 3px; overflow-wrap: anywhere; }
.strip { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr));
  gap: 1.5rem 2rem; margin: 2.5rem 0; padding: 1.5rem 0; border: solid var(--line);
  border-width: 1px 0; }
.strip div { display: flex; flex-direction: column; }
.strip dt { font-size: 0.82rem; line-height: 1.4; color: var(--quiet); }
.strip dd { margin: 0; font-variant-numeric: tabular-nums; }
.strip .value { margin-top: auto; padding-top: 0.3rem; font-size: 1.65rem; line-height: 1.3;
  font-weight: 600; letter-spacing: -0.01em; }
.strip .control { min-height: 1.4em; font-size: 0.82rem; line-height: 1.4; color: var(--quiet); }
nav { margin: 2.5rem 0; font-size: 0.95rem; }
nav ol { margin: 0; padding-left: 1.4rem; columns: 18rem 2; column-gap: 2.5rem; }
nav li { padding-left: 0.25rem; margin-bottom: 0.3rem; break-inside: avoid; }
nav li::marker { color: var(--quiet); font-variant-numeric: tabular-nums; }
nav a { text-decoration: none; }
nav a:hover, nav a:focus-visible { text-decoration: underline; }
section { margin-top: 4rem; scroll-margin-top: 1.5rem; }
figure { margin: 0; }
.plate { background: #ffffff; color: #222222; border: 1px solid var(--line); border-radius: 4px;
  padding: 0.9rem; margin-bottom: 1.25rem; overflow-x: auto; color-scheme: light; }
.plate svg { display: block; width: 100%; min-width: 34rem; max-width: 46rem; height: auto;
  margin: 0 auto; }
.wide { overflow-x: auto; margin: 1.75rem 0; }
table { border-collapse: collapse; min-width: 55%; font-size: 0.88rem; line-height: 1.45;
  font-variant-numeric: tabular-nums lining-nums; }
caption { caption-side: top; text-align: left; color: var(--quiet); padding-bottom: 0.6rem; }
th, td { padding: 0.38rem 1.4rem 0.38rem 0; text-align: left; vertical-align: baseline; }
th:last-child, td:last-child { padding-right: 0; }
th { font-weight: 600; border-bottom: 1px solid var(--ink); }
td { border-bottom: 1px solid var(--line); }
.n { text-align: right; white-space: nowrap; }
footer { margin-top: 5rem; padding-top: 1.25rem; border-top: 1px solid var(--line);
  font-size: 0.82rem; line-height: 1.55; color: var(--quiet); }
footer p { margin-bottom: 0.5rem; }
@media (min-width: 50rem) {
  .plate { margin-left: -1rem; margin-right: -1rem; }
}
@media (max-width: 36rem) {
  body { padding: 2.25rem 1.1rem 3rem; font-size: 1rem; }
  h1 { font-size: 1.65rem; }
  section { margin-top: 3rem; }
  .plate { padding: 0.5rem; }
  .strip { grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: 1.25rem; }
}
@media print {
  :root { --paper: #ffffff; --ink: #000000; --quiet: #444444; --line: #cccccc;
    --accent: #000000; --tint: #ffffff; }
  @page { margin: 2cm; }
  body { padding: 0; max-width: none; font-size: 10.5pt; }
  nav { display: none; }
  section { margin-top: 2rem; }
  .plate { border: 0; padding: 0; margin-left: 0; margin-right: 0; overflow: visible; }
  .plate svg { min-width: 0; }
  h2, caption, .plate { break-after: avoid; }
  figure .plate, tr, .strip { break-inside: avoid; }
}
"""

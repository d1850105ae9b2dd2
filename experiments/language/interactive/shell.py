"""A page that answers to mouse and keys, as one HTML file: nothing is fetched, nothing is needed.

Styles, scripts and numbers stand in the file. Arrays are float32 as they were measured, bit for
bit, in base64: what the page shows is what the library gave, rounded where it is written.
"""

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from experiments.tools.conduct import configuration, footer
from icl_jax.records import Run, atomic_file
from icl_jax.report.page import Section, render_footer, render_section
from icl_jax.report.sheet import STYLE_SHEET

_HERE = Path(__file__).parent


def packed(values: ArrayLike) -> dict[str, Any]:
    """An array as JSON: its shape, and its entries as little-endian float32 in base64."""
    array = np.ascontiguousarray(values, "<f4")
    return {"shape": list(array.shape), "f32": base64.b64encode(array.tobytes()).decode()}


def unpacked(entry: dict[str, Any]) -> np.ndarray:
    """The array of ``packed`` again."""
    return np.frombuffer(base64.b64decode(entry["f32"]), "<f4").reshape(entry["shape"])


def write_interactive(
    run: Run,
    *,
    title: str,
    lead: str,
    claims: Sequence[Section],
    body: str,
    data: dict[str, Any],
    script: Path,
) -> Path:
    """Writes ``report.html`` of a run, all of it or nothing; the foot is that of other reports.

    Args:
      run: whose page it is.
      title: its heading.
      lead: a paragraph below it, plain text.
      claims: what was found, a section each, with its verdict.
      body: HTML, the places that the script fills.
      data: what the script reads as ``DATA``: JSON, with arrays as ``packed`` gives them.
      script: a file of JavaScript that runs after ``common.js``.

    Raises:
      ValueError: ``data`` has a number that JSON has not.
      WorkdirError: the file cannot be written.
    """
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    styles = STYLE_SHEET + (_HERE / "common.css").read_text(encoding="utf-8")
    scripts = (_HERE / "common.js").read_text(encoding="utf-8") + script.read_text(encoding="utf-8")
    found = "\n".join(
        render_section(f"found-{index}", index, claim) for index, claim in enumerate(claims)
    )
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{styles}</style>\n</head>\n<body>\n"
        f'<header>\n<h1>{html.escape(title)}</h1>\n<p class="lead">{html.escape(lead)}</p>\n'
        f'</header>\n<div class="found">\n{found}\n</div>\n'
        "<noscript><p>The numbers of this page are drawn by its own script, which is "
        f"switched off.</p></noscript>\n<main>\n{body}\n</main>\n"
        f"{render_footer(footer(run), configuration(run))}\n"
        '<p id="told" role="status" aria-live="polite" hidden></p>\n'
        # A "<" in the data could end the element.
        f'<script type="application/json" id="data">{text.replace("<", chr(92) + "u003c")}</script>'
        f'\n<script>\n"use strict";\n{scripts}</script>\n</body>\n</html>\n'
    )
    path = run.path("report.html")
    with atomic_file(path) as file:
        file.write(page.encode())
    return path

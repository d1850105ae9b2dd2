"""What stands on the pages of a PDF that Chromium printed: read with the standard library."""

import re
import unicodedata
import zlib
from dataclasses import dataclass
from pathlib import Path

_OBJECT = re.compile(rb"(?:^|\n)(\d+) 0 obj\n(.*?)\nendobj", re.DOTALL)
_SHOWN = re.compile(rb"/(F\d+) [\d.]+ Tf|<([0-9A-F]+)> Tj")
#: Of a page: from units of the drawing to points, and from CSS pixels to these units.
_SCALES = re.compile(
    rb"^([\d.]+) 0 0 -[\d.]+ 0 [\d.]+ cm\n.*?\n([\d.]+) 0 0 [\d.]+ [\d. ]+ cm\n", re.DOTALL
)


@dataclass(frozen=True)
class Sheet:
    """A page: its text without spaces, and the points that a CSS pixel has (0.75, or shrunk)."""

    text: str
    scale: float


def bare(text: str) -> str:
    """Without spaces and ligatures, which fonts make of letters."""
    return re.sub(r"\s", "", unicodedata.normalize("NFKC", text))


def sheets(file: Path) -> list[Sheet]:
    """The pages of a PDF."""
    objects = dict(_OBJECT.findall(file.read_bytes()))
    pages = [body for body in objects.values() if b"/Type /Page\n" in body]
    return [_sheet(body, objects) for body in pages]


def _sheet(page: bytes, objects: dict[bytes, bytes]) -> Sheet:
    drawing = _stream(objects[_named(page, b"Contents")])
    fonts = {
        name: _letters(_stream(objects[_named(objects[number], b"ToUnicode")]))
        for name, number in re.findall(rb"/(F\d+) (\d+) 0 R", page)
        if b"/ToUnicode" in objects[number]
    }
    text, letters = [], {}
    for font, glyphs in _SHOWN.findall(drawing):
        if font:
            letters = fonts.get(font, {})
        text += [letters.get(glyphs[i : i + 4], "") for i in range(0, len(glyphs), 4)]
    scales = _SCALES.match(drawing)
    assert scales, drawing[:80]
    return Sheet(bare("".join(text)), float(scales[1]) * float(scales[2]))


def _named(body: bytes, name: bytes) -> bytes:
    found = re.search(rb"/" + name + rb" (\d+) 0 R", body)
    assert found, body[:200]
    return found[1]


def _stream(body: bytes) -> bytes:
    return zlib.decompress(body.split(b"stream\n", 1)[1].rsplit(b"\nendstream", 1)[0])


def _letters(table: bytes) -> dict[bytes, str]:
    """Glyph -> its letters, from a font's ToUnicode table."""
    found = {}
    for part in re.findall(rb"beginbfchar\n(.*?)endbfchar", table, re.DOTALL):
        for glyph, letters in re.findall(rb"<(\w+)> <(\w+)>", part):
            found[glyph] = bytes.fromhex(letters.decode()).decode("utf-16-be")
    for part in re.findall(rb"beginbfrange\n(.*?)endbfrange", table, re.DOTALL):
        for first, last, letter in re.findall(rb"<(\w+)> <(\w+)> <(\w+)>", part):
            for i in range(int(last, 16) - int(first, 16) + 1):
                found[b"%04X" % (int(first, 16) + i)] = chr(int(letter, 16) + i)
    return found

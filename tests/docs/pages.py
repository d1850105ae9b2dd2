"""Runs the Python of a page as a reader pastes it, block after block, and compares what it prints.

    python -m tests.docs.pages docs/tour.md            exit code 1 where an output differs
    python -m tests.docs.pages --write docs/tour.md    writes the outputs into the page

The output of a block is the ``text`` block right after it; a block without one prints nothing.
Words and whole numbers have to agree. Of fractions a tenth may differ, or a unit of the last digit;
two that are both below 1e-5 are rounding and agree.
"""

import contextlib
import io
import re
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

BLOCK = re.compile(
    r"^```python\n(?P<code>.*?)^```\n(?:\n```text\n(?P<output>.*?)^```\n)?",
    re.DOTALL | re.MULTILINE,
)
FRACTION = re.compile(r"[-+]?(?:\d+\.\d*(?:e[-+]?\d+)?|\d+e[-+]?\d+)")
ROUNDING = 1e-5


@dataclass(frozen=True)
class Block:
    """A block of code, the output that the page shows, and the line where it begins."""

    code: str
    output: str
    line: int


def blocks(text: str) -> list[Block]:
    """The Python blocks of a page, in order."""
    return [
        Block(found["code"], found["output"] or "", text[: found.start()].count("\n") + 1)
        for found in BLOCK.finditer(text)
    ]


def same(shown: str, printed: str) -> bool:
    """Whether an output agrees with what the page shows."""
    one, other = (" ".join(FRACTION.sub("#", text).split()) for text in (shown, printed))
    numbers = zip(FRACTION.findall(shown), FRACTION.findall(printed), strict=False)
    return one == other and all(near(*pair) for pair in numbers)


def near(shown: str, printed: str) -> bool:
    """Whether two fractions agree."""
    a, b = float(shown), float(printed)
    if max(abs(a), abs(b)) < ROUNDING:
        return True
    mantissa, _, exponent = shown.partition("e")
    unit = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
    return abs(a - b) <= 0.1 * abs(a) + unit


def outputs(page: list[Block], name: str) -> list[str]:
    """What each block prints, all of them run in one namespace."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    found = []
    for block in page:
        began = time.monotonic()
        printed = io.StringIO()
        code = compile("\n" * block.line + block.code, name, "exec")
        with contextlib.redirect_stdout(printed):
            exec(code, namespace)
        seconds = time.monotonic() - began
        print(f"{name}, line {block.line}: {seconds:.1f} s", file=sys.stderr)
        found.append("".join(line.rstrip() + "\n" for line in printed.getvalue().splitlines()))
    return found


def written(text: str, printed: list[str]) -> str:
    """The page with these outputs."""
    rest = iter(printed)

    def block(found: re.Match[str]) -> str:
        output = next(rest)
        shown = f"\n```text\n{output}```\n" if output else ""
        return f"```python\n{found['code']}```\n{shown}"

    return BLOCK.sub(block, text)


def main(arguments: list[str]) -> int:
    """The command."""
    write = "--write" in arguments
    (path,) = (Path(one) for one in arguments if one != "--write")
    text = path.read_text(encoding="utf-8")
    page = blocks(text)
    try:
        printed = outputs(page, str(path))
    except Exception:
        traceback.print_exc()
        return 1
    if write:
        path.write_text(written(text, printed), encoding="utf-8")
        return 0
    wrong = [
        f"{path}, line {block.line}: the page shows\n{block.output}\nbut prints\n{output}"
        for block, output in zip(page, printed, strict=True)
        if not same(block.output, output)
    ]
    print("\n".join(wrong))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

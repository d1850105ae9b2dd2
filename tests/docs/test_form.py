"""The form of what is read: headings go down one step at a time, and code between ticks ends."""

import ast
import inspect
import re
from pathlib import Path

import pytest

import icl_jax

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md")]
    + [
        page
        for folder in ("docs", "launch", "benchmarks")
        for page in (ROOT / folder).rglob("*.md")
    ]
)
#: Where texts of reports, of messages and of ``--help`` stand.
SOURCES = sorted(
    file
    for folder in ("icl_jax", "experiments", "launch", "benchmarks")
    for file in (ROOT / folder).rglob("*.py")
)
FENCE = re.compile(r"^( *)```.*?^\1```$", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"(?<!`)(`+)(?!`)[^`](?:.*?[^`])??\1(?!`)", re.DOTALL)


def named(path):
    return str(path.relative_to(ROOT))


def steps(text):
    """The headings that are more than one level below the one before them."""
    found, last = [], 0
    for marks, title in re.findall(r"^(#+) (.+)$", FENCE.sub("", text), re.MULTILINE):
        if len(marks) > last + 1:
            found.append(title)
        last = len(marks)
    return found


def unclosed(text):
    """The paragraphs (or rows of a table) with a tick that opens nothing or closes nothing."""
    paragraphs = re.split(r"\n\s*\n|\n(?=\|)|\n(?=\s*[-*] )", text)
    return [one for one in paragraphs if "`" in SPAN.sub("", one)]


def texts(tree):
    """The strings of a module, the constant parts of an f-string as one."""
    inside = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            inside |= {id(part) for part in ast.walk(node) if part is not node}
    for node in ast.walk(tree):
        if id(node) in inside:
            continue
        if isinstance(node, ast.JoinedStr):
            # What is filled in stands for one word.
            yield "".join(
                part.value if isinstance(part, ast.Constant) else "x" for part in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_a_step_that_is_missing_and_a_tick_that_is_left_are_found():
    assert steps("# One\n\n### Three\n") == ["Three"] and not steps("# One\n## Two\n# One\n")
    assert not steps("# One\n```bash\n### a comment\n```\n")
    assert unclosed("a ``b`` c `d`\n\n``e` f") == ["``e` f"] and not unclosed(
        "`` a ` b ``, ``x`` and `y`"
    )
    assert unclosed("| `a` |\n| `b |") == ["| `b |"]


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_headings_of_a_page_go_down_one_step_at_a_time(page):
    text = page.read_text()
    assert not steps(text)
    assert len(re.findall(r"^# ", FENCE.sub("", text), re.MULTILINE)) == 1


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_code_in_a_page_ends(page):
    assert not unclosed(FENCE.sub("", page.read_text()))


def test_code_in_the_docstrings_of_public_names_ends():
    wrong = {}
    for name in icl_jax.__all__:
        one = getattr(icl_jax, name)
        if inspect.isroutine(one) or inspect.isclass(one):
            wrong[name] = unclosed(inspect.getdoc(one) or "")
    assert len(wrong) > 200 and not {name: found for name, found in wrong.items() if found}


@pytest.mark.parametrize("file", SOURCES, ids=named)
def test_code_in_the_texts_of_a_file_ends(file):
    # Words, that is: a separator or a pattern has no space.
    strings = [text for text in texts(ast.parse(file.read_text())) if "`" in text and " " in text]
    assert not [found for text in strings for found in unclosed(text)]

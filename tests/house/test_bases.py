"""Layers, blocks and heads are counted from 0 wherever they are shown, as in flags and patches."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: What is read by people: reports, pages and their scripts, documents, notebooks, docstrings.
PATTERNS = ("README.md", "docs/**/*.md", "docs/**/*.ipynb", "experiments/**/*.py",
            "experiments/**/*.js", "icl_jax/**/*.py", "launch/**/*.py")  # fmt: skip
#: Formulas of the models' own configurations, which count as those do.
THEIRS = ROOT / "icl_jax" / "interop" / "families"
SHOWN = sorted(
    path for pattern in PATTERNS for path in ROOT.glob(pattern) if THEIRS not in path.parents
)
#: One more than an index, or a range of them that begins at 1. (``L + 1`` is a size.)
ONE_MORE = re.compile(
    r"\b(?:layer|block|head|strongest|depth)\)? \+ 1\b"
    r"|\b(?:[Ll]ayer|[Bb]lock|[Hh]ead|feature) \$?\{[^}]*\+ 1\}"
    r"|\b(?:layers?|blocks?|heads?), from 1\b"
    r"|\ba?ranges?\(1, (?:len\()?(?:depth|num_layers|num_heads|layers|heads)\b"
)
#: A name with its number: "Block 1" stands for the second one, so there is a "Block 0" beside it.
NAMED = re.compile(r"\b(layer|block|head) ([01])\b", re.IGNORECASE)


def counted_from_1(text):
    """The places of a text that count from 1."""
    found = ONE_MORE.findall(text)
    numbers = {}
    for name, number in NAMED.findall(text):
        numbers.setdefault(name.lower(), set()).add(number)
    return found + [f"{name} 1" for name, those in numbers.items() if those == {"1"}]


@pytest.mark.parametrize("path", SHOWN, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_shown_counts_from_0(path):
    assert counted_from_1(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "text",
    [
        "`Layer ${layer + 1}: size`",
        "`layer ${state.layer + 1} of ${layers}`",
        "`, head ${state.head + 1}`",
        'name: "Block 1", "Block 2", "Block 3"',
        "<span>layer 1</span>",
        "axis.plot(range(1, depth + 1), change)",
        "np.arange(1, len(heads) + 1)",
        'axis.set(xlabel="layer, from 1")',
        "headFeature = c => `head ${Math.floor(c / features) + 1}`",
    ],
)
def test_counting_from_1_is_seen(text):
    assert counted_from_1(text)


@pytest.mark.parametrize(
    "text", ["layer 0: 1.12\nlayer 1: 0.26", "layers: (B, L + 1)", "layers 1, 3"]
)
def test_counting_from_0_and_sizes_are_left_alone(text):
    assert not counted_from_1(text)

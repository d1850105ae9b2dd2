"""The page: what the script is told, and the places that it fills."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.language.interactive.shell import packed, write_interactive
from experiments.language.sorting.measure import Arrays
from experiments.language.sorting.model import LAYERS, LETTERS, build, initial, sequences
from icl_jax.records import Run
from icl_jax.report.page import Section, number

BODY = """
<div class="controls stay" role="group" aria-label="What is shown">
<label>Input<select id="input"></select></label>
<label><span>Step <span class="value" id="step-name"></span></span>
<input type="range" id="step" min="0" step="1"></label>
<div class="buttons screen"><button type="button" id="back">Back</button>
<button type="button" id="next">Next step</button></div>
<div class="letters" id="letters" role="listbox" aria-label="Tokens, and what is said behind each">
</div>
</div>
<p class="hint">Six letters, and behind them the same letters in order: below each token from the
sixth on stands what the model says next. Every picture has a row per token, the chosen one framed;
blue is above zero, orange below, each on the scale of its picture. <span class="screen">Click a row
or a letter to choose a token; left and right arrows move among the letters. In a picture the arrow
keys and the mouse tell the numbers.</span></p>
""" + "\n".join(
    f'<section id="block-{block}" class="block"><h2>{name}</h2><div class="walk"></div></section>'
    for block, name in (
        ("in", "Into the residual stream"),
        *((layer, f"Block {layer}") for layer in range(LAYERS)),
        ("out", "Out of it"),
    )
)


def summarise(arrays: Arrays) -> dict[str, Any]:
    """How well it sorts, and the errors behind the first token: the largest, controls the least."""
    changes = arrays.changes
    sums = changes.shares.sum(axis=(-2, -1), dtype=np.float64) + changes.remainder
    return {
        "num_parameters": num_parameters(),
        "final_loss": arrays.loss[-50:].mean(),
        "held_out_sorted": arrays.held_out,
        "untrained_sorted": arrays.untrained,
        "patched_error": changes.patched_error.max(),
        "alone_error": changes.alone_error[:, 1:].min(),
        "other_error": np.median(changes.other_error[:, 1:]),
        "sum_error": np.abs(sums[:, 1:] - 1).max(),
        "remainder": np.median(np.abs(changes.remainder[:, 1:])),
    }


def num_parameters() -> int:
    """How many numbers the model learns."""
    shapes = jax.eval_shape(lambda: initial(build(), jax.random.key(0)))
    return sum(int(leaf.size) for leaf in jax.tree.leaves(shapes))


def page_data(arrays: Arrays) -> dict[str, Any]:
    """What the script reads."""
    read = np.asarray(sequences(arrays.letters)[0])
    return {
        "inputs": ["".join(LETTERS[one] for one in row) for row in arrays.letters],
        "tokens": [[LETTERS[one] for one in row] for row in read],
        "letters": list(LETTERS),
        "steps": {name: packed(values) for name, values in _fields(arrays.steps)},
        "changes": {name: packed(values) for name, values in _fields(arrays.changes)},
    }


def _fields(record: Any) -> list[tuple[str, np.ndarray]]:
    return [(field.name, getattr(record, field.name)) for field in dataclasses.fields(record)]


def claims(summary: dict[str, Any]) -> list[Section]:
    """What was found, beside its nulls."""
    return [
        Section(
            "It sorts what it never saw",
            "",
            verdict=f"Of the inputs held out it sorts {100 * summary['held_out_sorted']:.1f} %, "
            f"before training {100 * summary['untrained_sorted']:.1f} %.",
        ),
        Section(
            "The tokens so far are a change of weights",
            "",
            verdict="A token alone, with the weights that those before it amount to, gives the "
            f"output of every block to {number(summary['patched_error'])}, relative, at worst; "
            f"with the weights as they are it is at least {number(summary['alone_error'])} off, "
            "and with the change that another input makes, the nearest null, "
            f"{number(summary['other_error'])} (median).",
        ),
        Section(
            "Heads and tokens wrote all of it",
            "",
            verdict=f"Their shares and the norm's remainder add up to 1 to "
            f"{number(summary['sum_error'])}; without the remainder "
            f"{number(summary['remainder'])} is missing (median).",
        ),
    ]


def write(run: Run, arrays: Arrays) -> Path:
    """Writes ``report.html``."""
    summary = summarise(arrays)
    return write_interactive(
        run,
        title="A small GPT sorts letters, step by step",
        lead=f"Three blocks, three heads, width 48, {summary['num_parameters']:,} parameters. "
        "Beside each block: what the tokens so far amount to as a change of its weights. Tokens, "
        "blocks, heads and features are counted from 0.",
        claims=claims(summary),
        body=BODY,
        data=page_data(arrays),
        script=Path(__file__).with_name("page.js"),
    )

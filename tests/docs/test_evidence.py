"""README's numbers of two trained models are those of a run of it: docs/real.json.

And those of the theory that are in it: the errors of SmolLM2's loops (the largest of the prompts).
"""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODELS = ("smollm2", "gemma3-270m")
DTYPES = ("float32", "bfloat16")
TASKS = ("context", "patched", "nothing")


def table(summary):
    """The rows of README's table: what stands first in each, and its four cells."""

    def cells(of):
        return [of(summary["models"][name], dtype) for name in MODELS for dtype in DTYPES]

    def error(value):
        return f"{value:.1e}".replace("e-0", "e-") if value else "0"

    def right(model, dtype, side):
        tasks = model["tasks"][dtype].values()
        return round(sum(task[side] * task["questions"] for task in tasks))

    def written(model, dtype):
        return model["generation"][dtype]["auto"]

    return {
        "parity": cells(
            lambda model, dtype: (
                error(model["parity"]["largest_relative_error"]) if dtype == "float32" else ""
            )
        ),
        "patched run, closed loop": cells(
            lambda model, dtype: error(model["exactness"][dtype]["closed"]["auto"])
        ),
        "open loop": cells(lambda model, dtype: error(model["exactness"][dtype]["open"]["auto"])),
        "texts of 100 tokens": cells(
            lambda model, dtype: (
                f"{written(model, dtype)['agreement']:.0%} "
                f"({model['generation'][dtype]['unpatched']:.0%})"
            )
        ),
        "ordinary decoding": cells(
            lambda model, dtype: f"{model['generation'][dtype]['twice']:.0%}"
        ),
        "the same most probable": cells(
            lambda model, dtype: f"{written(model, dtype)['same_top1']:.0%}"
        ),
        "four tasks": cells(
            lambda model, dtype: ", ".join(str(right(model, dtype, side)) for side in TASKS)
        ),
    }


def test_the_numbers_of_two_trained_models_are_measured():
    summary = json.loads((ROOT / "docs/real.json").read_text())
    text = (ROOT / "README.md").read_text()
    after = text[text.index("What two trained models say") :]
    lines = after[after.index("\n|") :].strip().partition("\n\n")[0].splitlines()
    shown = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    wanted = table(summary)
    assert len(shown) == len(wanted)
    for (title, *cells), (begins, want) in zip(shown, wanted.items(), strict=True):
        assert title.startswith(begins) and cells == want, (title, cells, want)


def test_the_errors_of_open_loops_in_the_theory_are_measured():
    summary = json.loads((ROOT / "docs/real.json").read_text())
    found = summary["models"]["smollm2"]["exactness"]
    text = (ROOT / "docs/theory.md").read_text()
    rows = re.findall(r"^\| first token (?:kept|removed), 29 / 339 tokens \|(.+)\|$", text, re.M)
    cells = [[cell.split("/") for cell in row.split("|")] for row in rows]
    assert len(cells) == 2 and all(len(row) == 3 for row in cells)
    for column, dtype in enumerate(DTYPES, start=1):
        largest = max(float(one) for row in cells for one in row[column])
        assert f"{largest:.1e}" == f"{found[dtype]['open']['auto']:.1e}", dtype
    (said,) = re.findall(r"growth never comes in: below (\S+) in float32, 0 in bfloat16", text)
    assert found["float32"]["closed"]["auto"] < float(said)
    assert found["bfloat16"]["closed"]["auto"] == 0


def test_no_policy_is_better_than_auto_in_the_run_that_is_shown():
    summary = json.loads((ROOT / "docs/real.json").read_text())
    for name in MODELS:
        for dtype in DTYPES:
            found = summary["models"][name]["exactness"][dtype]
            for loop in ("closed", "open"):
                assert found[loop]["auto"] <= 1.2 * min(found[loop].values()), (name, dtype, loop)
            # Beside what it is without patches, and with those of another context.
            assert 0.2 < min(found["unpatched"], found["shuffled"])

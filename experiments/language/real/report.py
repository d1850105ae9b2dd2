"""The numbers of ``experiments.real`` as a summary, and as a page."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.language.real.measure import means
from icl_jax.report.figures import Curve, Panel, Role, curves
from icl_jax.report.page import Section, Table, number

Found = Mapping[str, Mapping[str, Mapping[str, Any]]]

#: Steps of bfloat16 generation that agree with ordinary decoding, as published for Gemma 3.
PUBLISHED = "87.5%, 98% and 100%"


def summarise(found: Found) -> dict[str, Any]:
    """``models.NAME.{parity,exactness,generation,tasks}``, per precision and policy."""
    models = {}
    for name, by_dtype in found.items():
        models[name] = {
            "parity": _first(by_dtype, "parity"),
            "exactness": {dtype: _worst(parts["exactness"]) for dtype, parts in by_dtype.items()},
            "generation": {
                dtype: {policy: means(parts["generation"], policy) for policy in _written(parts)}
                | {"alone": _alone(parts)}
                for dtype, parts in by_dtype.items()
            },
            "tasks": {dtype: parts["tasks"] for dtype, parts in by_dtype.items()},
            "growth": _first(by_dtype, "growth"),
            "attribution": _first(by_dtype, "attribution"),
        }
    return {"models": models}


def sections(found: Found) -> list[Section]:
    """A section for every question."""
    return [_exactness(found), _layers(found), _generation(found), _tasks(found), _growth(found)]


def _first(by_dtype: Mapping[str, Mapping[str, Any]], part: str) -> Any:
    return next((parts[part] for parts in by_dtype.values() if part in parts), None)


def _worst(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """loop -> policy -> the largest error of all prompts, how many open loops are refused, and the
    smallest errors of the controls."""
    worst: dict[str, Any] = {
        "alone": min(row["alone"] for row in rows),
        "another_context": min(row["another_context"] for row in rows),
    }
    for loop in ("closed", "open"):
        here = [row for row in rows if row["loop"] == loop]
        worst[loop] = {
            policy: max(row["relative_error"] for row in here if row["policy"] == policy)
            for policy in dict.fromkeys(row["policy"] for row in here)
        }
    opened = [row for row in rows if row["loop"] == "open"]
    worst["refused"] = {
        policy: sum(row["refused"] for row in opened if row["policy"] == policy)
        for policy in worst["open"]
    }
    return worst


def _written(parts: Mapping[str, Any]) -> list[str]:
    return [policy for policy, value in parts["generation"][0].items() if isinstance(value, dict)]


def _alone(parts: Mapping[str, Any]) -> float:
    return float(np.mean([row["alone_agreement"] for row in parts["generation"]]))


def _exactness(found: Found) -> Section:
    asked = ("model", "dtype", "tokens", "BOS", "loop", "policy")
    columns = (*asked, "error", "growth", "", "top-1", "alone")
    rows = [
        (
            name,
            dtype,
            row["tokens"],
            "kept" if row["bos_kept"] else "removed",
            row["loop"],
            row["policy"],
            row["relative_error"],
            "" if row["growth"] is None else row["growth"],
            "refused" if row["refused"] else "",
            f"{row['same_top1']:.0%}",
            row["alone"],
        )
        for name, by_dtype in found.items()
        for dtype, parts in by_dtype.items()
        for row in parts["exactness"]
    ]
    text = (
        "The kept tokens with patched weights against the run with everything. `auto` is what the "
        "library takes. In open loop no patch repairs the ones before it: what a rounding may grow "
        "to is told beforehand, and where it is as large as the output the library refuses "
        "(measured here all the same). The reasons are in docs/theory.md."
    )
    caption = (
        "Relative error of the logits at the kept positions; growth: how many times larger a "
        "rounding of the first layer may leave the last one in open loop."
    )
    return Section(
        "Is the patched run the full one?",
        text,
        verdict=" ".join(_exact(name, by_dtype) for name, by_dtype in found.items()),
        tables=[Table(columns, rows, caption)],
    )


def _exact(name: str, by_dtype: Mapping[str, Any]) -> str:
    """The largest error in closed loop beside the least of the controls, which is named."""
    said = []
    for dtype, parts in by_dtype.items():
        worst = _worst(parts["exactness"])
        null = min(("alone", "another_context"), key=lambda control: worst[control])
        words = {"alone": "without a patch", "another_context": "with another context's patches"}
        said.append(
            f"in {dtype} by {number(worst['closed']['auto'])} at most ({words[null]} by at least "
            f"{number(worst[null])})"
        )
    return f"{name}: in closed loop patched logits are off {', '.join(said)}."


def _layers(found: Found) -> Section:
    panels, worst = [], []
    for name, by_dtype in found.items():
        for dtype, parts in by_dtype.items():
            rows = parts["layers"]
            most = max(rows, key=lambda row: row["auto"])
            worst.append(
                f"{name} in {dtype}: the largest error, {number(most['auto'])}, is after "
                f"{most['layers']} layers, where without a patch it is {number(most['alone'])}."
            )
            depth = [row["layers"] for row in rows]
            lines = [
                Curve(
                    policy,
                    depth,
                    [row[policy] for row in rows],
                    role="main"
                    if policy == "auto"
                    else "second"
                    if policy == "scale"
                    else "control"
                    if policy == "alone"
                    else "reference",
                )
                for policy in rows[0]
                if policy in ("auto", "scale", "alone")
            ]
            panels.append(Panel(f"{name}, {dtype}", lines, "layers", "relative error", log_y=True))
    text = (
        "The same through the first layers only, read out as logits, in closed loop. An error of "
        "exactly zero is drawn at the lower edge."
    )
    return Section("Layer by layer", text, verdict=" ".join(worst), figure=curves(panels))


def _generation(found: Found) -> Section:
    rows = []
    for name, by_dtype in found.items():
        for dtype, parts in by_dtype.items():
            for policy in _written(parts):
                one = means(parts["generation"], policy)
                rows.append(
                    (
                        name,
                        dtype,
                        policy,
                        f"{one['agreement']:.1%}",
                        f"{one['identical_texts']:.0%}",
                        f"{one['same_top1']:.1%}",
                        one["largest_relative_error"],
                        f"{_alone(parts):.1%}",
                    )
                )
    columns = (
        "model", "dtype", "policy", "same tokens", "same texts", "same top-1", "largest error",
        "same tokens, no patch",
    )  # fmt: skip
    text = (
        "Greedy texts after the question alone, with a new patch for every new token, against "
        "ordinary decoding after everything. One other token makes another text, so the share of "
        "same tokens depends on where the first tie falls; the share of steps whose most probable "
        f"token is the same does not. Published for Gemma 3 in bfloat16: {PUBLISHED} of the tokens."
    )
    caption = "Over all prompts; errors are of the logits of a step, over the same tokens."
    said = [
        f"{name} in {dtype}: {means(parts['generation'], 'auto')['agreement']:.1%} of the tokens "
        f"are the same ({_alone(parts):.1%} without a patch); beside the run with everything over "
        f"the same tokens the most probable one is the same at "
        f"{means(parts['generation'], 'auto')['same_top1']:.1%} of the steps."
        for name, by_dtype in found.items()
        for dtype, parts in by_dtype.items()
    ]
    return Section(
        "Is the text the same?",
        text,
        verdict=" ".join(said),
        tables=[Table(columns, rows, caption)],
    )


def _tasks(found: Found) -> Section:
    rows = [
        (name, dtype, task, *(one[key] for key in ("context", "patched", "nothing", "questions")))
        for name, by_dtype in found.items()
        for dtype, parts in by_dtype.items()
        for task, one in parts["tasks"].items()
    ]
    columns = ("model", "dtype", "task", "context", "patched", "nothing", "questions")
    text = (
        "Demonstrations are the context; the question alone stays. Right is an answer whose first "
        "token is the most probable one."
    )
    caption = "Share of right answers."
    tasks = [
        (task, one)
        for by_dtype in found.values()
        for parts in by_dtype.values()
        for task, one in parts["tasks"].items()
    ]
    lost = sum(abs(one["patched"] - one["context"]) * one["questions"] for _, one in tasks)
    gained = min(tasks, key=lambda task: task[1]["context"] - task[1]["nothing"])
    return Section(
        "What the context teaches",
        text,
        verdict=f"Patches and context differ by {lost:.0f} right answers in all "
        f"{sum(one['questions'] for _, one in tasks)}. The context gives the least to "
        f"{gained[0]}: {gained[1]['nothing']:.0%} without it, {gained[1]['context']:.0%} with it.",
        tables=[Table(columns, rows, caption)],
    )


def _growth(found: Found) -> Section:
    names = [name for name, by_dtype in found.items() if _first(by_dtype, "growth")]
    tables, lines = [], []
    roles: tuple[Role, ...] = ("main", "second")
    for name, role in zip(names, roles, strict=False):
        rows = _first(found[name], "growth")
        sizes = [row["mean_relative_change"] for row in rows]
        lines.append(Curve(name, [row["context"] for row in rows], sizes, role=role))
        told = _first(found[name], "attribution")
        tables.append(
            Table(
                ("token", "share of the update"),
                [(repr(one["token"]), one["share"]) for one in told["tokens"]]
                + [("(change of the norm's denominator)", told["remainder_share"])],
                f"{name}, layer {told['layer']} from 0: who wrote the update of the last token of "
                f"{told['question']!r}; all shares add up to {number(told['sum'])}.",
            )
        )
    panel = Panel("", lines, "removed tokens", "|z with - z without| / |z without|", log_x=True)
    text = (
        "How far the context moves the input of the last token's MLPs, mean over the layers, and "
        "which tokens of a context did it."
    )
    figure = curves([panel]) if lines else None
    said = []
    for name in names:
        told = _first(found[name], "attribution")
        first = max(told["tokens"], key=lambda one: abs(one["share"]))
        said.append(
            f"{name}: {first['token']!r} has the largest share, {number(first['share'])}; what no "
            f"token wrote alone is {number(told['remainder_share'])}."
        )
    title = "How large is an update, and who wrote it?"
    return Section(title, text, verdict=" ".join(said), figure=figure, tables=tables)

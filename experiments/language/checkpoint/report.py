"""Numbers, tables and pictures of ``experiments.checkpoint``, from its saved arrays only."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.language.checkpoint.arrays import (
    Answered,
    Arrays,
    Exported,
    Generation,
    Measured,
)
from experiments.language.checkpoint.export import FOLLOWING
from experiments.language.checkpoint.layers import by_layer, by_prompt, conditioning
from experiments.language.runs import LABELS, NULLS, nearest_null
from experiments.tools.shares import or_none
from icl_jax.report.figures import Curve, Panel, Reference, Role, curves, dots
from icl_jax.report.page import Section, Table, number

#: Relative error that a patched run may have; bfloat16 and float16 round every layer's output.
BOUNDS = {"float32": 1e-5, "float64": 1e-11, "bfloat16": 2e-2, "float16": 5e-3}
MOST_ROWS = 24


def summarise(
    about: Mapping[str, Any],
    names: Sequence[str],
    measured: Measured,
    exported: Sequence[Exported],
) -> dict[str, Any]:
    """``prompts.NAME`` in the first precision, and the worst over all prompts in every one."""
    summary: dict[str, Any] = dict(about)
    first = next(iter(measured.values()))
    summary["prompts"] = {
        name: _one_prompt(arrays) for name, arrays in zip(names, first, strict=True)
    }
    summary["dtypes"] = {dtype: _worst(prompts) for dtype, prompts in measured.items()}
    if exported:
        summary["exports"] = {one.format: one.told() for one in exported}
    return summary


def _one_prompt(arrays: Arrays) -> dict[str, Any]:
    patched, unpatched = arrays.compared.patched, arrays.compared.unpatched
    found: dict[str, Any] = {
        "relative_error": {name: or_none(run.relative_error) for name, run in arrays.runs.items()},
        "kl": or_none(patched.kl),
        "top1": or_none(patched.top1),
        "unpatched_kl": or_none(unpatched.kl),
        "unpatched_top1": or_none(unpatched.top1),
        "conditioning": vars(conditioning([patched])),
    }
    if arrays.generation is not None:
        found["generation"] = _generation([arrays.generation])
    return found


def _worst(prompts: Sequence[Arrays]) -> dict[str, Any]:
    """Errors of patched runs: the largest; of their nulls: the smallest."""
    found: dict[str, Any] = {"relative_error": {}}
    for name in prompts[0].runs:
        pick = np.fmin if name in NULLS else np.fmax
        errors = [arrays.runs[name].relative_error for arrays in prompts]
        found["relative_error"][name] = or_none(pick.reduce(errors))

    def over_prompts(pick: Any, values: Sequence[np.ndarray | None]) -> float | None:
        there = [value for value in values if value is not None]
        return or_none(pick(there)) if there else None

    patched = [arrays.compared.patched for arrays in prompts]
    found["kl"] = over_prompts(np.max, [run.kl for run in patched])
    found["top1"] = over_prompts(np.mean, [run.top1 for run in patched])
    alone = [arrays.compared.unpatched.top1 for arrays in prompts]
    found["unpatched_top1"] = over_prompts(np.mean, alone)
    found["conditioning"] = vars(conditioning(patched))
    if written := _generations(prompts):
        found["generation"] = _generation(written)
    return found


def _generations(prompts: Sequence[Arrays]) -> list[Generation]:
    return [one.generation for one in prompts if one.generation is not None]


def _generation(written: Sequence[Generation]) -> dict[str, Any]:
    """Means over prompts, the largest error, and the number of tokens written in all."""
    return {
        "agreement": float(np.mean([one.agreement for one in written])),
        "unpatched_agreement": float(np.mean([one.unpatched_agreement for one in written])),
        "top1": float(np.mean([np.mean(one.top1) for one in written])),
        "relative_error": max(float(one.relative_error.max()) for one in written),
        "tokens": sum(len(one.patched_tokens) for one in written),
    }


def _told(measured: Measured) -> str:
    """What a model without a head gives instead of logits."""
    has_head = next(iter(measured.values()))[0].compared.patched.kl is not None
    return "logits" if has_head else "last states"


def sections(
    names: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    texts: Sequence[Mapping[str, str]],
    measured: Measured,
    exported: Sequence[Exported],
) -> list[Section]:
    """The report: logits, layers, generated text, exported weights.

    Args:
      names: of the prompts.
      sizes: tokens of each prompt, and how many of them are kept.
      texts: of each prompt, what each run wrote; empty without generation.
      measured: dtype -> every prompt.
      exported: the weights on disk, a section each.
    """
    found = [
        _logits(names, sizes, measured),
        by_layer(measured),
        by_prompt(names[:MOST_ROWS], measured),
    ]
    if texts:
        found.append(_texts(names, texts, measured))
    found += [_export(one) for one in exported]
    return found


def _logits(names: Sequence[str], sizes: Sequence[tuple[int, int]], measured: Measured) -> Section:
    runs = list(next(iter(measured.values()))[0].runs)
    labels = [LABELS[run] for run in runs]
    shown = list(names)[:MOST_ROWS]
    values = [
        [[float(run.relative_error) for run in arrays.runs.values()] for arrays in prompts]
        for prompts in (prompts[:MOST_ROWS] for prompts in measured.values())
    ]
    roles: dict[str, Role] = {"patched": "main", "scale": "second"}
    worst = {dtype: _worst(prompts) for dtype, prompts in measured.items()}

    def choices(worst: Mapping[str, Any]) -> str:
        if worst["top1"] is None:
            return ""
        return f" (most probable token the same at {worst['top1']:.1%} of the kept positions)"

    spoken = "; ".join(
        f"{dtype}: {number(w['relative_error']['patched'])} at most{choices(w)}, against at least "
        f"{_nulls(w['relative_error'])}"
        for dtype, w in worst.items()
    )
    what = _told(measured)
    text = (
        f"Relative error of the {what} at all kept positions, the kept tokens alone against the "
        f"whole prompt."
    )
    if "scale" in runs:
        text += (
            " A norm follows the MLP, and two patches get through it: the balanced one (patched) "
            "and the change of the norm's scale alone (scale), which divides by entries near zero."
        )
    labelled = [
        (dtype, name, size, arrays)
        for dtype, prompts in measured.items()
        for name, size, arrays in zip(names, sizes, prompts, strict=True)
    ]
    errors: list[tuple[Any, ...]] = [
        (dtype, name, *size, *(float(run.relative_error) for run in arrays.runs.values()))
        for dtype, name, size, arrays in labelled
    ]
    tables = [
        Table(
            ("dtype", "prompt", "tokens", "kept", *labels),
            errors,
            f"Relative error of the {what} at the kept positions.",
        )
    ]
    likely: list[tuple[Any, ...]] = [
        (dtype, name, *_likely(arrays.compared.patched, arrays.compared.unpatched))
        for dtype, name, _, arrays in labelled
        if arrays.compared.patched.kl is not None
    ]
    if likely:
        without = LABELS["unpatched"]
        tables.append(
            Table(
                ("dtype", "prompt", "KL", f"KL {without}", "top-1", f"top-1 {without}"),
                likely,
                "KL divergence in nats and share of the same most probable token, over the kept "
                "positions.",
            )
        )
    return Section(
        f"The same {what} without the context",
        text,
        figure=dots(
            shown,
            labels,
            values,
            x_label=f"relative error of the {what}",
            titles=list(measured),
            roles=[roles.get(run, "control") for run in runs],
            references=[
                Reference(BOUNDS[dtype], "bound", panel) for panel, dtype in enumerate(measured)
            ],
        ),
        tables=tables,
        anchor="logits",
        verdict=f"{spoken[0].upper()}{spoken[1:]}.",
    )


def _nulls(errors: Mapping[str, float]) -> str:
    """The nearest null by name, and the other behind it."""
    others = sorted(NULLS, key=lambda null: errors[null])[1:]
    rest = ", ".join(f"{LABELS[null]} {number(errors[null])}" for null in others)
    return f"{nearest_null(errors)} (nearest null; {rest})"


def _likely(patched: Answered, unpatched: Answered) -> list[Any]:
    return [patched.kl, unpatched.kl, patched.top1, unpatched.top1]


def _texts(names: Sequence[str], texts: Sequence[Mapping[str, str]], measured: Measured) -> Section:
    spoken = []
    for dtype, prompts in measured.items():
        found = _generation(_generations(prompts))
        spoken.append(
            f"{dtype}: {found['agreement']:.1%} of {found['tokens']} tokens agree "
            f"({LABELS['unpatched']}: {found['unpatched_agreement']:.1%}); the same most probable "
            f"token at {found['top1']:.1%} of the steps"
        )
    panels = []
    for dtype, prompts in measured.items():
        errors = [one.relative_error for one in _generations(prompts)]
        steps = min(len(error) for error in errors)
        largest_N = np.max([error[:steps] for error in errors], axis=0)
        lines = [Curve(LABELS["patched"], np.arange(1, steps + 1), largest_N)]
        panels.append(Panel(dtype, lines, "new token", "relative error of the logits", log_y=True))
    rows = [
        (name, run, text)
        for name, runs in zip(names, texts, strict=True)
        for run, text in runs.items()
    ]
    return Section(
        "The same text without the context",
        "Each new token gets a patch of its own in every layer.",
        verdict="; ".join(spoken) + ".",
        figure=curves(panels),
        tables=[Table(("prompt", "run", "text"), rows, "What the first precision wrote.")],
        anchor="generation",
    )


def _export(exported: Exported) -> Section:
    program, error = exported.program, exported.other_logit_error
    if error is None:
        asked = f"`{program}` was not asked: it is not installed (or the model has no head)."
    else:
        asked = f"`{program}` alone computes them to {number(error)}."
    adapter = exported.format == "peft"
    what = "a LoRA adapter of rank 1" if adapter else "a whole checkpoint"
    rows = [
        (
            "this library",
            exported.logit_error,
            exported.earlier_logit_error,
            _same(exported.following_agreement),
        ),
        (program, "not asked" if error is None else error, None, None),
        (
            LABELS["unpatched"],
            exported.unpatched_logit_error,
            exported.unpatched_earlier_logit_error,
            _same(exported.unpatched_following_agreement),
        ),
    ]
    columns = (
        "computed by",
        "relative error of the last logits",
        "of those at earlier kept positions",
        f"same of the next {FOLLOWING} greedy tokens",
    )
    return Section(
        f"The context as {'an adapter' if adapter else 'a checkpoint'}",
        f"The last position of `{exported.prompt}` as {what}, in `{exported.folder}`. "
        f"{asked} A file has one set of weights, made for the last kept token: it is exact for the "
        "next token, and neither for earlier positions nor for what follows.",
        verdict="On the kept tokens alone the file gives the last logits of the whole prompt to "
        f"{number(exported.logit_error)}; {LABELS['unpatched']}, the original weights miss them "
        f"by {number(exported.unpatched_logit_error)}.{_reach(exported)}",
        tables=[Table(columns, rows)],
        anchor=f"export-{exported.format}",
    )


def _same(share: float | None) -> int | None:
    """How many of the following tokens a share is."""
    return None if share is None else round(FOLLOWING * share)


def _reach(exported: Exported) -> str:
    """What the file does where it is not exact; nothing where there is nothing to ask."""
    said = ""
    if (earlier := exported.earlier_logit_error) is not None:
        said += (
            f" At the earlier kept positions it misses by {number(earlier)} "
            f"({LABELS['unpatched']}: {number(exported.unpatched_earlier_logit_error)})."
        )
    if (same := _same(exported.following_agreement)) is not None:
        said += (
            f" Of the next {FOLLOWING} greedy tokens {same} agree "
            f"({LABELS['unpatched']}: {_same(exported.unpatched_following_agreement)})."
        )
    return said

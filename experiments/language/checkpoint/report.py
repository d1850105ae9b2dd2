"""Numbers, tables and pictures of ``experiments.checkpoint``, from its saved arrays only."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.language.checkpoint.arrays import Arrays
from experiments.language.checkpoint.export import FOLLOWING
from experiments.language.checkpoint.layers import by_layer, by_prompt, conditioning, number_or_none
from icl_jax.report.figures import Curve, Panel, Reference, Role, curves, dots
from icl_jax.report.page import Section, Table, number

#: Relative error that a patched run may have; bfloat16 and float16 round every layer's output.
BOUNDS = {"float32": 1e-5, "float64": 1e-11, "bfloat16": 2e-2, "float16": 5e-3}
RUNS = ("patched", "scale", "unpatched", "shuffled")
MOST_ROWS = 24

Measured = Mapping[str, Sequence[Arrays]]


def summarise(
    about: Mapping[str, Any],
    names: Sequence[str],
    measured: Measured,
    exported: Mapping[str, Any],
) -> dict[str, Any]:
    """``prompts.NAME`` in the first precision, and the worst over all prompts in every one."""
    summary: dict[str, Any] = dict(about)
    first = next(iter(measured.values()))
    summary["prompts"] = {
        name: _one_prompt(arrays) for name, arrays in zip(names, first, strict=True)
    }
    summary["dtypes"] = {dtype: _worst(prompts) for dtype, prompts in measured.items()}
    if exported:
        summary["export"] = dict(exported)
    return summary


def _one_prompt(arrays: Arrays) -> dict[str, Any]:
    found: dict[str, Any] = {
        "relative_error": {
            run: number_or_none(arrays[f"{run}.relative_error"]) for run in _runs(arrays)
        },
        "kl": number_or_none(arrays.get("patched.kl")),
        "top1": number_or_none(arrays.get("patched.top1")),
        "unpatched_kl": number_or_none(arrays.get("unpatched.kl")),
        "unpatched_top1": number_or_none(arrays.get("unpatched.top1")),
        "conditioning": conditioning([arrays]),
    }
    if "generation.agreement" in arrays:
        found["generation"] = _generation([arrays])
    return found


def _worst(prompts: Sequence[Arrays]) -> dict[str, Any]:
    """Errors of patched runs: the largest; of their controls: the smallest."""
    found: dict[str, Any] = {"relative_error": {}}
    for run in _runs(prompts[0]):
        pick = np.fmax if run in ("patched", "scale") else np.fmin
        errors = [arrays[f"{run}.relative_error"] for arrays in prompts]
        found["relative_error"][run] = number_or_none(pick.reduce(errors))

    def over_prompts(pick: Any, name: str) -> float | None:
        values = [arrays[name] for arrays in prompts if name in arrays]
        return number_or_none(pick(values)) if values else None

    found["kl"] = over_prompts(np.max, "patched.kl")
    found["top1"] = over_prompts(np.mean, "patched.top1")
    found["unpatched_top1"] = over_prompts(np.mean, "unpatched.top1")
    found["conditioning"] = conditioning(prompts)
    if "generation.agreement" in prompts[0]:
        found["generation"] = _generation(prompts)
    return found


def _generation(prompts: Sequence[Arrays]) -> dict[str, Any]:
    """Means over prompts, the largest error, and the number of tokens written in all."""

    def mean(name: str) -> float:
        return float(np.mean([np.mean(arrays[f"generation.{name}"]) for arrays in prompts]))

    return {
        "agreement": mean("agreement"),
        "unpatched_agreement": mean("unpatched_agreement"),
        "top1": mean("top1"),
        "relative_error": max(float(a["generation.relative_error"].max()) for a in prompts),
        "tokens": sum(len(arrays["generation.patched_tokens"]) for arrays in prompts),
    }


def _runs(arrays: Arrays) -> list[str]:
    return [run for run in RUNS if f"{run}.relative_error" in arrays]


def _told(measured: Measured) -> str:
    """What a model without a head gives instead of logits."""
    has_head = "patched.kl" in next(iter(measured.values()))[0]
    return "logits" if has_head else "last states"


def sections(
    names: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    texts: Sequence[Mapping[str, str]],
    measured: Measured,
    exported: Mapping[str, Any],
) -> list[Section]:
    """The report: logits, layers, generated text, exported weights.

    Args:
      names: of the prompts.
      sizes: tokens of each prompt, and how many of them are kept.
      texts: of each prompt, what each run wrote; empty without generation.
      measured: dtype -> arrays of each prompt.
      exported: what ``export`` returned.
    """
    found = [
        _logits(names, sizes, measured),
        by_layer(measured),
        by_prompt(names[:MOST_ROWS], measured),
    ]
    if texts:
        found.append(_texts(names, texts, measured))
    if exported:
        found.append(_export(exported))
    return found


def _logits(names: Sequence[str], sizes: Sequence[tuple[int, int]], measured: Measured) -> Section:
    runs = _runs(next(iter(measured.values()))[0])
    shown = list(names)[:MOST_ROWS]
    values = [
        [[float(arrays[f"{run}.relative_error"]) for run in runs] for arrays in prompts[:MOST_ROWS]]
        for prompts in measured.values()
    ]
    roles: dict[str, Role] = {"patched": "main", "scale": "second"}
    worst = {dtype: _worst(prompts) for dtype, prompts in measured.items()}

    def choices(worst: Mapping[str, Any]) -> str:
        if worst["top1"] is None:
            return ""
        return f" (most probable token the same at {worst['top1']:.1%} of the kept positions)"

    spoken = "; ".join(
        f"{dtype}: {number(w['relative_error']['patched'])} at most{choices(w)}, against at least "
        f"{number(w['relative_error']['unpatched'])} without a patch and "
        f"{number(w['relative_error']['shuffled'])} with another prompt's"
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
        (dtype, name, *size, *(float(arrays[f"{run}.relative_error"]) for run in runs))
        for dtype, name, size, arrays in labelled
    ]
    tables = [
        Table(
            ("dtype", "prompt", "tokens", "kept", *runs),
            errors,
            f"Relative error of the {what} at the kept positions.",
        )
    ]
    likely: list[tuple[Any, ...]] = [
        (dtype, name, *(float(arrays[f"{run}.{key}"]) for key in ("kl", "top1") for run in pair))
        for dtype, name, _, arrays in labelled
        for pair in [("patched", "unpatched")]
        if "patched.kl" in arrays
    ]
    if likely:
        tables.append(
            Table(
                ("dtype", "prompt", "KL", "KL unpatched", "top-1", "top-1 unpatched"),
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
            runs,
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


def _texts(names: Sequence[str], texts: Sequence[Mapping[str, str]], measured: Measured) -> Section:
    spoken = []
    for dtype, prompts in measured.items():
        found = _generation(prompts)
        spoken.append(
            f"{dtype}: {found['agreement']:.1%} of {found['tokens']} tokens agree "
            f"({found['unpatched_agreement']:.1%} without a patch); the same most probable token "
            f"at {found['top1']:.1%} of the steps"
        )
    panels = []
    for dtype, prompts in measured.items():
        errors = [arrays["generation.relative_error"] for arrays in prompts]
        steps = min(len(error) for error in errors)
        largest_N = np.max([error[:steps] for error in errors], axis=0)
        lines = [Curve("patched", np.arange(1, steps + 1), largest_N)]
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


def _export(exported: Mapping[str, Any]) -> Section:
    theirs = {
        k: v for k, v in exported.items() if k in ("peft_logit_error", "transformers_logit_error")
    }
    name, error = next(iter(theirs.items()))
    program = "peft" if name.startswith("peft") else "transformers"
    if error is None:
        asked = f"`{program}` was not asked: it is not installed (or the model has no head)."
    else:
        asked = f"`{program}` alone computes them to {number(error)}."
    what = "a LoRA adapter of rank 1" if exported["format"] == "peft" else "a whole checkpoint"
    rows = [
        ("this library", exported["logit_error"]),
        (program, "not asked" if error is None else error),
        ("original weights", exported["unpatched_logit_error"]),
    ]
    return Section(
        "The context as a file",
        f"The last position of `{exported['prompt']}` as {what}, in `{exported['folder']}`. "
        f"{asked} A file has one set of weights, made for the last kept token: it is exact for the "
        "next token, and neither for earlier positions nor for what follows.",
        verdict="On the kept tokens alone the file gives the last logits of the whole prompt to "
        f"{number(exported['logit_error'])}; the original weights miss them by "
        f"{number(exported['unpatched_logit_error'])}.{_reach(exported)}",
        tables=[Table(("computed by", "relative error of the last logits"), rows)],
        anchor="export",
    )


def _reach(exported: Mapping[str, Any]) -> str:
    """What the file does where it is not exact; nothing where that was not measured."""
    said = ""
    if (earlier := exported.get("earlier_logit_error")) is not None:
        said += (
            f" At the earlier kept positions it misses by {number(earlier)} (original weights: "
            f"{number(exported['unpatched_earlier_logit_error'])})."
        )
    if (share := exported.get("following_agreement")) is not None:
        said += (
            f" Of the next {FOLLOWING} greedy tokens {round(FOLLOWING * share)} agree (original "
            f"weights: {round(FOLLOWING * exported['unpatched_following_agreement'])})."
        )
    return said

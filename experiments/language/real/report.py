"""The numbers of ``experiments.real`` as a summary, and as a page."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.language.real.arrays import Arrays, Exactness, Found, Generation, Right, Texts
from experiments.language.runs import LABELS, NULLS, nearest_null
from icl_jax.report.figures import Curve, Panel, Role, curves
from icl_jax.report.page import Section, Table, number

#: Steps of bfloat16 generation that agree with ordinary decoding, as published for Gemma 3.
PUBLISHED = (0.875, 0.98, 1.0)
#: The null of how an update grows.
SHUFFLED = "shuffled tokens"


def summarise(found: Found) -> dict[str, Any]:
    """``models.NAME.{parity,exactness,generation,tasks}``, per precision and policy."""
    models = {}
    for name, by_dtype in found.items():
        once = by_dtype.get("float32")
        models[name] = {
            "parity": _parity(once),
            "exactness": {dtype: worst(one.exactness) for dtype, one in by_dtype.items()},
            "generation": {
                dtype: {policy: means(texts) for policy, texts in one.generation.policies.items()}
                | {
                    "unpatched": _unpatched(one.generation),
                    "twice": float(one.generation.twice_agreement.mean()),
                }
                for dtype, one in by_dtype.items()
            },
            "tasks": {
                dtype: {task: shares(right) for task, right in one.tasks.tasks.items()}
                for dtype, one in by_dtype.items()
            },
            "growth": None if once is None else once.growth,
            "attribution": None if once is None else once.attribution,
        }
    return {"models": models, "published_agreement": PUBLISHED}


def _parity(once: Arrays | None) -> dict[str, Any] | None:
    """None where ``transformers`` was not asked."""
    if once is None or once.parity is None or not once.parity.relative_error.size:
        return None
    errors_P = once.parity.relative_error
    return {"largest_relative_error": errors_P.max(), "prompts": len(errors_P)}


def sections(found: Found) -> list[Section]:
    """A section for every question."""
    return [_exactness(found), _layers(found), _generation(found), _tasks(found), _growth(found)]


def worst(rows: Exactness) -> dict[str, Any]:
    """loop -> policy -> the largest error of all prompts, how many open loops are refused, and the
    smallest errors of the nulls."""
    found: dict[str, Any] = {"unpatched": rows.unpatched.min(), "shuffled": rows.shuffled.min()}
    policies = list(dict.fromkeys(rows.policy.tolist()))
    for loop in ("closed", "open"):
        found[loop] = {
            policy: rows.relative_error[(rows.loop == loop) & (rows.policy == policy)].max()
            for policy in policies
        }
    found["refused"] = {
        policy: rows.refused[(rows.loop == "open") & (rows.policy == policy)].sum()
        for policy in policies
    }
    return found


def means(texts: Texts) -> dict[str, Any]:
    """What generation found, over the prompts; errors over those that have patches."""
    errors = texts.largest_relative_error[~np.isnan(texts.largest_relative_error)]
    return {
        "agreement": texts.agreement.mean(),
        "identical_texts": (texts.agreement == 1).mean(),
        "twice_agreement": texts.twice_agreement.mean(),
        "same_top1": texts.same_top1.mean(),
        "largest_relative_error": errors.max() if errors.size else None,
        "without_patches": int(np.isnan(texts.largest_relative_error).sum()),
    }


def shares(right: Right) -> dict[str, Any]:
    """Of right answers, and how many questions there were."""
    return {
        "context": right.context.mean(),
        "patched": right.patched.mean(),
        "nothing": right.nothing.mean(),
        "questions": len(right.context),
    }


def _unpatched(generation: Generation) -> float:
    return float(generation.unpatched_agreement.mean())


def _exactness(found: Found) -> Section:
    asked = ("model", "dtype", "tokens", "BOS", "loop", "policy")
    columns = (*asked, "error", "growth", "open loop", "top-1", *(LABELS[null] for null in NULLS))
    rows = [
        (
            name,
            dtype,
            int(one.tokens[row]),
            "kept" if one.bos_kept[row] else "removed",
            str(one.loop[row]),
            LABELS[str(one.policy[row])],
            one.relative_error[row],
            "" if np.isnan(one.growth[row]) else one.growth[row],
            "refused" if one.refused[row] else "",
            f"{one.same_top1[row]:.0%}",
            one.unpatched[row],
            one.shuffled[row],
        )
        for name, by_dtype in found.items()
        for dtype, one in ((dtype, arrays.exactness) for dtype, arrays in by_dtype.items())
        for row in range(len(one.tokens))
    ]
    text = (
        "The kept tokens with patched weights against the run with everything. The policy called "
        f"{LABELS['auto']} is what the library takes. In open loop no patch repairs the ones "
        "before it: what a rounding may grow "
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


def _exact(name: str, by_dtype: Mapping[str, Arrays]) -> str:
    """The largest error in closed loop beside the least of the nulls, which is named."""
    said = []
    for dtype, arrays in by_dtype.items():
        errors = worst(arrays.exactness)
        said.append(
            f"in {dtype} by {number(errors['closed']['auto'])} at most (nearest null, at least: "
            f"{nearest_null(errors)})"
        )
    return f"{name}: in closed loop patched logits are off {', '.join(said)}."


def _layers(found: Found) -> Section:
    panels, said = [], []
    roles: dict[str, Role] = {"auto": "main", "scale": "second"}
    for name, by_dtype in found.items():
        for dtype, arrays in by_dtype.items():
            one = arrays.layers
            most = int(np.argmax(one.policies["auto"]))
            said.append(
                f"{name} in {dtype}: the largest error, {number(one.policies['auto'][most])}, is "
                f"after {one.layers[most]} layers, where the null ({LABELS['unpatched']}) has "
                f"{number(one.unpatched[most])}."
            )
            lines = [
                Curve(LABELS[policy], one.layers, errors, role=roles[policy])
                for policy, errors in one.policies.items()
                if policy in roles
            ]
            lines.append(Curve(LABELS["unpatched"], one.layers, one.unpatched, role="control"))
            panels.append(Panel(f"{name}, {dtype}", lines, "layers", "relative error", log_y=True))
    text = (
        "The same through the first layers only, read out as logits, in closed loop. An error of "
        "exactly zero is drawn at the lower edge."
    )
    return Section("Layer by layer", text, verdict=" ".join(said), figure=curves(panels))


def _generation(found: Found) -> Section:
    written = [
        (name, dtype, arrays.generation)
        for name, by_dtype in found.items()
        for dtype, arrays in by_dtype.items()
    ]
    rows = []
    for name, dtype, generation in written:
        for policy, texts in generation.policies.items():
            one = means(texts)
            rows.append(
                (
                    name,
                    dtype,
                    LABELS[policy],
                    f"{one['agreement']:.1%}",
                    f"{one['identical_texts']:.0%}",
                    f"{one['same_top1']:.1%}",
                    one["largest_relative_error"],
                    one["without_patches"],
                    f"{one['twice_agreement']:.1%}",
                    f"{generation.twice_agreement.mean():.1%}",
                    f"{_unpatched(generation):.1%}",
                )
            )
    columns = (
        "model", "dtype", "policy", "same tokens", "same texts", "same top-1", "largest error",
        "texts without patches", "same tokens as twice", "same tokens, twice",
        f"same tokens, {LABELS['unpatched']}",
    )  # fmt: skip
    published = ", ".join(f"{share:.1%}" for share in PUBLISHED)
    text = (
        "Greedy texts after the question alone, with a new patch for every new token, against "
        "ordinary decoding after everything. One other token makes another text, so the share of "
        "same tokens depends on where the first tie falls; the share of steps whose most probable "
        "token is the same does not. All prompts are written side by side. Twice: ordinary "
        "decoding of each prompt twice in one batch, without a patch, which may be rounded "
        "otherwise than each once; a patched run has two rows of each, too. A policy that divides "
        f"by an output of zero has no patches. Published for Gemma 3 in bfloat16: {published} of "
        "the tokens."
    )
    caption = (
        "Over all prompts; errors are of the logits of a step, over the same tokens. Same tokens "
        "as twice: of the patched text; same tokens, twice: of the control's, as each once."
    )
    said = []
    for name, dtype, generation in written:
        one = means(generation.policies["auto"])
        said.append(
            f"{name} in {dtype}: {one['agreement']:.1%} of the tokens are the same "
            f"({LABELS['unpatched']}: {_unpatched(generation):.1%}; twice without a patch: "
            f"{generation.twice_agreement.mean():.1%}); beside the run with "
            "everything over the same tokens the most probable one is the same at "
            f"{one['same_top1']:.1%} of the steps."
            + (f" {one['without_patches']} have no patches." if one["without_patches"] else "")
        )
    return Section(
        "Is the text the same?",
        text,
        verdict=" ".join(said),
        tables=[Table(columns, rows, caption)],
    )


def _tasks(found: Found) -> Section:
    tasks = [
        (name, dtype, task, shares(right))
        for name, by_dtype in found.items()
        for dtype, arrays in by_dtype.items()
        for task, right in arrays.tasks.tasks.items()
    ]
    keys = ("context", "patched", "nothing", "questions")
    rows = [(*where, *(one[key] for key in keys)) for *where, one in tasks]
    ends = (LABELS["patched"], LABELS["unpatched"])
    columns = ("model", "dtype", "task", "context", *ends, "questions")
    text = (
        "Demonstrations are the context; the question alone stays. Right is an answer whose first "
        "token is the most probable one."
    )
    caption = "Share of right answers."
    answers = [one for *_, one in tasks]
    lost = sum(abs(one["patched"] - one["context"]) * one["questions"] for one in answers)
    *_, task, least = min(tasks, key=lambda row: row[-1]["context"] - row[-1]["nothing"])
    return Section(
        "What the context teaches",
        text,
        verdict=f"Patches and context differ by {lost:.0f} right answers in all "
        f"{sum(one['questions'] for one in answers)}. The context gives the least to {task}: "
        f"{LABELS['unpatched']} {least['nothing']:.0%}, {least['context']:.0%} with it.",
        tables=[Table(columns, rows, caption)],
    )


def _growth(found: Found) -> Section:
    tables, lines, said = [], [], []
    roles: tuple[Role, ...] = ("main", "second")
    once = {name: by_dtype["float32"] for name, by_dtype in found.items() if "float32" in by_dtype}
    for (name, arrays), role in zip(once.items(), roles, strict=False):
        grown, told = arrays.growth, arrays.attribution
        assert grown is not None and told is not None  # As in every record of float32.
        lines.append(Curve(name, grown.context, grown.relative_change, role=role))
        shuffled = f"{name}, {SHUFFLED}"
        lines.append(Curve(shuffled, grown.context, grown.shuffled_change, role="control"))
        rows = [
            (repr(str(token)), share) for token, share in zip(told.tokens, told.shares, strict=True)
        ]
        tables.append(
            Table(
                ("token", "share of the update"),
                [*rows, ("(change of the norm's denominator)", float(told.remainder))],
                f"{name}, layer {told.layer} from 0: who wrote the update of the last token of "
                f"{str(told.question)!r}; all shares add up to {number(float(told.total))}.",
            )
        )
        first = int(np.argmax(np.abs(told.shares)))
        said.append(
            f"{name}: {grown.context[-1]} tokens move the inputs by "
            f"{number(grown.relative_change[-1])} of their length ({SHUFFLED}: "
            f"{number(grown.shuffled_change[-1])}), {grown.context[0]} by "
            f"{number(grown.relative_change[0])} ({number(grown.shuffled_change[0])}). "
            f"{str(told.tokens[first])!r} has the largest share of an update, "
            f"{number(told.shares[first])}, where an even one is {number(float(told.even))}; what "
            f"no token wrote alone is {number(float(told.remainder))}."
        )
    panel = Panel("", lines, "removed tokens", "|z with - z without| / |z without|", log_x=True)
    text = (
        "How far the context moves the input of the last token's MLPs, mean over the layers, "
        "beside the same tokens in another order, and which tokens of a context did it."
    )
    figure = curves([panel]) if lines else None
    title = "How large is an update, and who wrote it?"
    return Section(title, text, verdict=" ".join(said), figure=figure, tables=tables)

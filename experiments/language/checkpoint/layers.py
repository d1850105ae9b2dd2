"""How hard patches have to work, layer by layer and prompt by prompt."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.language.checkpoint.arrays import Arrays, Measured, Patched
from experiments.language.runs import LABELS
from experiments.tools.shares import or_none
from icl_jax.report.figures import Curve, Panel, Role, curves, heatmaps
from icl_jax.report.page import Section, Table, number


@dataclass(frozen=True)
class Conditioning:
    """Layer by layer, the hardest of all prompts' patches; None where a layer has no number.

    Attributes:
      relative_change, max_scale_change, min_normalised: L numbers, as in ``Patched``.
    """

    relative_change: list[float | None]
    max_scale_change: list[float | None]
    min_normalised: list[float | None]


def conditioning(runs: Sequence[Patched]) -> Conditioning:
    """The hardest patches of the same run on several prompts."""

    def picked(pick: np.ufunc, rows: list[np.ndarray]) -> list[float | None]:
        return [or_none(value) for value in pick.reduce(rows, axis=0)]

    return Conditioning(
        picked(np.fmax, [run.relative_change for run in runs]),
        picked(np.fmax, [run.max_scale_change for run in runs]),
        picked(np.fmin, [run.min_normalised for run in runs]),
    )


def by_layer(measured: Measured) -> Section:
    """How far the patches go in every layer, and how hard a norm makes it."""
    worst = {
        dtype: conditioning([one.compared.patched for one in prompts])
        for dtype, prompts in measured.items()
    }
    first = next(iter(worst.values()))
    layers = np.arange(len(first.relative_change))

    def drawn(
        pick: Callable[[Conditioning], list[float | None]], label: str, role: Role = "main"
    ) -> list[Curve]:
        """A line of each precision; those behind the first in grey, where they differ at all."""
        return [
            Curve(
                f"{label}, {dtype}" if len(worst) > 1 else label,
                layers,
                np.array(pick(found), float),
                role=role if found is first else "control",
            )
            for dtype, found in worst.items()
        ]

    text = "How hard the hardest patch of each layer has to work."
    changes = [value for value in first.relative_change if value is not None]
    median = float(np.median(changes)) if changes else None
    verdict = (
        f"The MLP's input changes by at most {number(_largest(changes))} of its length (in the "
        f"median layer by {number(median)})."
    )
    panels = [
        Panel(
            "change of the MLP's input",
            drawn(lambda found: found.relative_change, "input"),
            "layer, from 0",
            "|z with - z without| / |z without|",
            log_y=True,
        )
    ]
    gain = _largest(first.max_scale_change)
    if gain is not None:
        lines = drawn(lambda found: found.max_scale_change, LABELS["patched"])
        scales = _scales(next(iter(measured.values())))
        if scales:
            scale = conditioning(scales).max_scale_change
            lines.append(Curve(LABELS["scale"], layers, np.array(scale, float), role="second"))
            verdict += (
                f" The patched run changes the scale of a norm by at most {number(gain)} "
                "in one entry, the scale patch by "
                f"{number(_largest(scale))}."
            )
        panels += [
            Panel("change of the norm's scale", lines, "layer, from 0", "max |ds|", log_y=True),
            Panel(
                "smallest entry of an output",
                drawn(
                    lambda found: found.min_normalised,
                    "what a scale patch divides by",
                    "reference",
                ),
                "layer, from 0",
                "min |o / rms(o)|",
                log_y=True,
            ),
        ]
    rows = [
        (dtype, layer, *numbers)
        for dtype, found in worst.items()
        for layer, numbers in enumerate(
            zip(found.relative_change, found.max_scale_change, found.min_normalised, strict=True)
        )
    ]
    columns = ("dtype", "layer", "change of the input", "change of the scale", "smallest output")
    return Section(
        "How hard the patches work",
        text,
        figure=curves(panels),
        tables=[Table(columns, rows, "The hardest of all prompts' patches.")],
        anchor="layers",
        verdict=verdict,
    )


def _scales(prompts: Sequence[Arrays]) -> list[Patched]:
    """The scale patch of every prompt; none of a model without such a norm."""
    return [one.compared.scale for one in prompts if one.compared.scale is not None]


def by_prompt(names: Sequence[str], measured: Measured) -> Section:
    """Prompt by prompt and layer by layer, in the first precision."""
    dtype, prompts = next(iter(measured.items()))
    changes_PL = np.stack([one.compared.patched.relative_change for one in prompts[: len(names)]])
    prompt, layer = np.unravel_index(np.argmax(changes_PL), changes_PL.shape)
    return Section(
        "Which prompt changes which layer",
        f"The largest change of an MLP's input, of all kept positions, in {dtype}: a context that "
        "says much to its question is dark.",
        verdict=f"The largest change of all is that of {names[int(prompt)]} in layer {int(layer)}: "
        f"{number(float(changes_PL.max()))}, beside a median of "
        f"{number(float(np.median(changes_PL)))}.",
        figure=heatmaps(
            [changes_PL],
            [""],
            x_label="layer, from 0",
            y_label="prompt",
            value_label="|z with - z without| / |z without|",
            x_ticks=[str(layer) for layer in range(changes_PL.shape[1])],
            y_ticks=list(names),
        ),
        anchor="prompts",
    )


def _largest(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)

"""How hard patches have to work, layer by layer and prompt by prompt."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.tools.conduct import Arrays
from icl_jax.report.figures import Curve, Panel, Role, curves, heatmaps
from icl_jax.report.page import Section, Table, number


def conditioning(prompts: Sequence[Arrays], run: str = "patched") -> dict[str, list[float | None]]:
    """Layer by layer, the hardest of all prompts' patches; None where a layer has no number."""
    picks = {"relative_change": np.fmax, "max_scale_change": np.fmax, "min_normalised": np.fmin}
    return {
        name: [
            number_or_none(value)
            for value in pick.reduce([arrays[f"{run}.{name}"] for arrays in prompts], axis=0)
        ]
        for name, pick in picks.items()
    }


def number_or_none(value: Any) -> float | None:
    """None for what was not measured or does not exist."""
    return None if value is None or np.isnan(value) else float(value)


def by_layer(measured: Mapping[str, Sequence[Arrays]]) -> Section:
    worst = {dtype: conditioning(prompts) for dtype, prompts in measured.items()}
    first = next(iter(worst.values()))
    layers = np.arange(1, len(first["relative_change"]) + 1)

    def drawn(name: str, label: str, role: Role = "main") -> list[Curve]:
        """A line of each precision; those behind the first in grey, where they differ at all."""
        return [
            Curve(
                f"{label}, {dtype}" if len(worst) > 1 else label,
                layers,
                np.array(found[name], float),
                role=role if found is first else "control",
            )
            for dtype, found in worst.items()
        ]

    text = (
        "How hard the hardest patch of each layer has to work. The MLP's input changes by at most "
        f"{number(_largest(first['relative_change']))} of its length."
    )
    panels = [
        Panel(
            "change of the MLP's input",
            drawn("relative_change", "input"),
            "layer",
            "|z with - z without| / |z without|",
            log_y=True,
        )
    ]
    gain = _largest(first["max_scale_change"])
    if gain is not None:
        lines = drawn("max_scale_change", "patched")
        prompts = next(iter(measured.values()))
        if "scale.max_scale_change" in prompts[0]:
            scale = conditioning(prompts, "scale")["max_scale_change"]
            lines.append(Curve("scale", layers, np.array(scale, float), role="second"))
            text += (
                f" The patched run changes the scale of a norm by at most {number(gain)} "
                "in one entry, the scale patch by "
                f"{number(_largest(scale))}."
            )
        panels += [
            Panel("change of the norm's scale", lines, "layer", "max |ds|", log_y=True),
            Panel(
                "smallest entry of an output",
                drawn("min_normalised", "what a scale patch divides by", "reference"),
                "layer",
                "min |o / rms(o)|",
                log_y=True,
            ),
        ]
    rows = [
        (dtype, layer, *(found[name][layer - 1] for name in found))
        for dtype, found in worst.items()
        for layer in map(int, layers)
    ]
    columns = ("dtype", "layer", "change of the input", "change of the scale", "smallest output")
    return Section(
        "How hard the patches work",
        text,
        figure=curves(panels),
        tables=[Table(columns, rows, "The hardest of all prompts' patches.")],
        anchor="layers",
    )


def by_prompt(names: Sequence[str], measured: Mapping[str, Sequence[Arrays]]) -> Section:
    """Prompt by prompt and layer by layer, in the first precision."""
    dtype, prompts = next(iter(measured.items()))
    changes_PL = np.stack([arrays["patched.relative_change"] for arrays in prompts[: len(names)]])
    prompt, layer = np.unravel_index(np.argmax(changes_PL), changes_PL.shape)
    return Section(
        "Which prompt changes which layer",
        f"The largest change of an MLP's input, of all kept positions, in {dtype}: a context that "
        "says much to its question is dark. The largest of all is that of "
        f"{names[int(prompt)]} in layer {int(layer) + 1}: {number(float(changes_PL.max()))}.",
        figure=heatmaps(
            [changes_PL],
            [""],
            x_label="layer",
            y_label="prompt",
            value_label="|z with - z without| / |z without|",
            x_ticks=[str(layer) for layer in range(1, changes_PL.shape[1] + 1)],
            y_ticks=list(names),
        ),
        anchor="prompts",
    )


def _largest(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)

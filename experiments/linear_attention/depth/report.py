"""What experiments.depth finds, in numbers, words and pictures, from its saved arrays only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.tools.arrays import Names
from experiments.tools.comparisons import (
    MEASURES,
    NULLS,
    Measured,
    against_best,
    compared,
    interval_curve,
    names_of,
    summaries,
    table,
    verdict,
    with_interval,
)
from experiments.tools.predictors import AGAINST, THE_NULLS
from icl_jax.dims import Array
from icl_jax.measures.intervals import bootstrap_mean
from icl_jax.report.figures import Curve, Panel, Role, curves
from icl_jax.report.page import Section, Table, number

#: What a stack is held against: label and role in figures.
STEPPERS: Mapping[str, tuple[str, Role]] = {
    "gd_plus_plus": ("GD++", "second"),
    "descent": ("gradient descent", "reference"),
}


@dataclass(frozen=True)
class Against:
    """A stepper of as many steps as a stack has layers.

    Attributes:
      loss: (B,), squared errors.
      rate, correction: (), what is best for it.
      at_edge: (), whether the rate is an end of its grid.
      measures: of the stack beside it, (B,).
    """

    loss: np.ndarray
    rate: np.ndarray
    correction: np.ndarray
    at_edge: np.ndarray
    measures: Mapping[str, Measured]


@dataclass(frozen=True)
class Deep:
    """A stack of one depth.

    Attributes:
      trained, untrained: (B,), squared errors.
      layers: (B, L + 1), squared errors of what is predicted before and after every layer.
      steppers: what it is held against.
    """

    trained: np.ndarray
    untrained: np.ndarray
    layers: np.ndarray
    steppers: Mapping[str, Against]


@dataclass(frozen=True)
class Arrays:
    """Depth -> its stack; and the squared errors (B,) of what has none."""

    depths: Mapping[str, Deep]
    least_squares: np.ndarray
    zero: np.ndarray

    def losses(self, depth: int) -> dict[str, np.ndarray]:
        """The squared errors (B,) at a depth, by name."""
        deep = self.depths[str(depth)]
        steppers = {name: stepper.loss for name, stepper in deep.steppers.items()}
        return {"trained": deep.trained, "untrained": deep.untrained, **steppers}


def names(config: Any) -> Names:
    """What is measured, as the configuration asks for it."""
    return {
        "depths": tuple(map(str, config.depths)),
        "depths.*.steppers": STEPPERS,
        **names_of(AGAINST, "depths.*.steppers.*.measures"),
    }


def compared_with(config: Any, arrays: Arrays, depth: int, stepper: str) -> dict[str, Any]:
    """The comparisons of the stack of a depth with a stepper."""
    measures = arrays.depths[str(depth)].steppers[stepper].measures
    return compared(jax.random.key(config.seed), measures)


def summarise(config: Any, arrays: Arrays) -> dict[str, Any]:
    """Losses, rates and measures of every depth; ``measures`` are those of the deepest and GD++."""
    depths: dict[str, Any] = {}
    for depth in config.depths:
        deep = arrays.depths[str(depth)]
        depths[str(depth)] = {
            "losses": {name: float(loss.mean()) for name, loss in arrays.losses(depth).items()},
            **{
                name: {
                    "learning_rate": float(stepper.rate),
                    "learning_rate_at_edge": bool(stepper.at_edge),
                    "correction": float(stepper.correction),
                    # No correction at all is an end of the search, but no edge: it is descent.
                    "correction_at_edge": float(stepper.correction) == max(config.corrections) > 0,
                    "measures": summaries(compared_with(config, arrays, depth, name)),
                }
                for name, stepper in deep.steppers.items()
            },
        }
    return {
        "num_prompts": config.num_prompts,
        "least_squares_loss": float(arrays.least_squares.mean()),
        "zero_loss": float(arrays.zero.mean()),
        "depths": depths,
        "measures": depths[str(config.depths[-1])]["gd_plus_plus"]["measures"],
    }


def sections(config: Any, arrays: Arrays) -> list[Section]:
    """Losses against depth, and the measures against depth for both steppers."""
    return [_losses(config, arrays), _measures(config, arrays)]


def _losses(config: Any, arrays: Arrays) -> Section:
    key, depths = jax.random.key(config.seed), config.depths
    summary = summarise(config, arrays)
    roles: dict[str, tuple[str, Role]] = {
        "trained": ("trained stack", "main"),
        **STEPPERS,
        "untrained": ("untrained stack", "control"),
    }
    lines = [
        interval_curve(
            key,
            np.stack([arrays.losses(depth)[name] for depth in depths]),
            depths,
            label,
            role,
        )
        for name, (label, role) in roles.items()
    ]
    zero = np.broadcast_to(arrays.zero, (len(depths), config.num_prompts))
    lines.append(interval_curve(key, zero, depths, "zero predictor", "control"))
    last = summary["depths"][str(depths[-1])]["losses"]
    rows: list[tuple[Any, ...]] = [
        (
            depth,
            *(found["losses"][name] for name in roles),
            found["descent"]["learning_rate"],
            found["gd_plus_plus"]["learning_rate"],
            found["gd_plus_plus"]["correction"],
        )
        for depth, found in summary["depths"].items()
    ]
    deepest = arrays.losses(depths[-1])
    gap = bootstrap_mean(key, jnp.asarray(deepest["trained"] - deepest["gd_plus_plus"]))
    word = "below" if gap.high < 0 else "above" if gap.low > 0 else "where it cannot be told from"
    apart = with_interval(float(gap.mean), (float(gap.low), float(gap.high)))
    edges = [
        f"{label} after {depth}"
        for depth, found in summary["depths"].items()
        for name, (label, _) in STEPPERS.items()
        if found[name]["learning_rate_at_edge"] or found[name]["correction_at_edge"]
    ]
    warning = f" At the edge of its search: {', '.join(edges)}." if edges else ""
    return Section(
        "Losses against depth",
        f"With {depths[-1]} layers the trained stack has a loss of {number(last['trained'])}; as "
        f"many steps of GD++ {number(last['gd_plus_plus'])}, of gradient descent "
        f"{number(last['descent'])}, each at what is best for it on held-out tasks. So the stack "
        f"ends {word} GD++ (difference {apart}).{warning}",
        figure=curves([Panel("", lines, "layers, or steps", "squared error of the label")]),
        tables=[
            Table(
                (
                    "layers",
                    *(label for label, _ in roles.values()),
                    "rate of descent",
                    "rate of GD++",
                    "correction",
                ),
                rows,
                f"Mean squared error over {config.num_prompts} tasks; of least squares "
                f"{number(summary['least_squares_loss'])}, of the zero predictor "
                f"{number(summary['zero_loss'])}.",
            )
        ],
        anchor="losses",
        verdict=against_best(
            f"With {depths[-1]} layers the loss",
            last["trained"],
            {
                **{label: last[name] for name, (label, _) in STEPPERS.items()},
                "least squares": summary["least_squares_loss"],
                "zero predictor": summary["zero_loss"],
            },
            {roles["untrained"][0]: last["untrained"]},
        ),
    )


def _measures(config: Any, arrays: Arrays) -> Section:
    depths = config.depths
    found = {
        (depth, stepper): compared_with(config, arrays, depth, stepper)
        for depth in depths
        for stepper in STEPPERS
    }
    panels = []
    for name in ("sensitivity_cosine", "model_difference"):
        lines = []
        for stepper, (label, _) in STEPPERS.items():
            role: Role = "main" if stepper == "gd_plus_plus" else "second"
            values = [found[depth, stepper][name] for depth in depths]
            lines.append(_curve(label, depths, [(c.value, c.low, c.high) for c in values], role))
        for null in found[depths[0], "gd_plus_plus"][name].nulls:
            intervals = [found[depth, "gd_plus_plus"][name].nulls[null] for depth in depths]
            lines.append(_curve(NULLS[null], depths, intervals, "control"))
        panels.append(Panel("", lines, "layers, or steps", MEASURES[name].label))
    deepest = found[depths[-1], "gd_plus_plus"]
    rows: list[tuple[Any, ...]] = [
        (depth, label, *(with_interval(c.value, (c.low, c.high)) for c in comparisons.values()))
        for (depth, stepper), comparisons in found.items()
        for label in [STEPPERS[stepper][0]]
    ]
    return Section(
        "As functions of the query",
        f"{depths[-1]} layers against as many steps of GD++.",
        verdict=verdict(deepest),
        figure=curves(panels),
        tables=[
            Table(
                ("layers", "against", *(MEASURES[name].label for name in deepest)),
                rows,
                "Means over tasks with 95% intervals.",
            ),
            table(deepest, f"{depths[-1]} layers against GD++. {THE_NULLS}"),
        ],
        anchor="measures",
    )


def _curve(
    label: str, depths: Sequence[int], intervals: Sequence[Sequence[Array]], role: Role
) -> Curve:
    """Means with intervals, one of each depth."""
    mean, low, high = (np.array(part) for part in zip(*intervals, strict=True))
    return Curve(label, np.asarray(depths), mean, low, high, role=role)

"""How two learners compare, measure by measure, each beside its nulls: numbers, tables, words.

An experiment gives one value per task of every measure, ``measures.NAME``, and as many for each
null, ``measures.NAME.NULL``; what becomes of them is the same everywhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from icl_jax.dims import Array
from icl_jax.measures.comparison import Comparison, as_summary, compare_with_nulls
from icl_jax.measures.intervals import bootstrap_mean
from icl_jax.report.figures import Curve, Panel, Role
from icl_jax.report.page import Table

PREFIX = "measures."


@dataclass(frozen=True)
class Measure:
    """What the reader is told of a measure.

    Attributes:
      label: in tables and at axes, with its unit.
      larger_is_closer: whether a large value says that the two learners are alike.
      tied: nulls that have descent's own value by construction, and so no part in the margin.
    """

    label: str
    larger_is_closer: bool
    tied: tuple[str, ...] = ()


MEASURES: Mapping[str, Measure] = {
    "prediction_difference": Measure("prediction difference (units of the label)", False),
    "sensitivity_cosine": Measure("cosine of the sensitivities", True),
    "model_difference": Measure("relative difference of the sensitivities", False),
    "squared_prediction_difference": Measure("SPD (squared units of the label)", False),
    "ilwd": Measure("ILWD (squared units of label / input)", False),
    "update_cosine": Measure("cosine of the weight updates", True),
    "norm_gap": Measure("|log| of the ratio of the updates' norms", False, tied=("random",)),
    "peel_off_cosine": Measure("cosine of peel-off and descent's updates", True),
    "path_angle": Measure("angle between the leading directions of the paths (degrees)", False),
    "path_rank_gap": Measure("|log| of the ratio of the paths' effective ranks", False),
    "kl": Measure("KL divergence (nats)", False),
    "total_variation": Measure("total variation", False),
    "top_k_overlap": Measure("share of common tokens among the most probable", True),
    "update_similarity": Measure("cosine of the changes of attention's output", True),
    "attention_similarity": Measure("cosine of the scores of the query's own tokens", True),
    "attention_rank_correlation": Measure("Kendall's tau of the attention to demonstrations", True),
}


def with_nulls(
    value: Mapping[str, Array], nulls: Mapping[str, Mapping[str, Array]]
) -> dict[str, Array]:
    """The measures of a pair and of its nulls, under the names that ``compared`` reads."""
    named = {f"{PREFIX}{name}": array for name, array in value.items()}
    for null, arrays in nulls.items():
        named |= {f"{PREFIX}{name}.{null}": array for name, array in arrays.items()}
    return named


def compared(
    key: Array, arrays: Mapping[str, np.ndarray], index: tuple[Any, ...] = ()
) -> dict[str, Comparison]:
    """Measure -> its mean over tasks, interval, nulls and margin.

    Args:
      key: of the resampling.
      arrays: values per task, ``(..., B)`` where ``index`` picks from what stands before B.
      index: of the point that is told, such as the last number of examples.
    """
    found = {}
    for name in MEASURES:
        if PREFIX + name not in arrays:
            continue
        start = f"{PREFIX}{name}."
        nulls = {
            n.removeprefix(start): jnp.asarray(arrays[n][index])
            for n in arrays
            if n.startswith(start)
        }
        tied = {null: nulls.pop(null) for null in MEASURES[name].tied if null in nulls}
        compared = compare_with_nulls(
            key,
            jnp.asarray(arrays[PREFIX + name][index]),
            nulls,
            larger_is_closer=MEASURES[name].larger_is_closer,
        )
        shown = {null: bootstrap_mean(key, values_B) for null, values_B in tied.items()}
        found[name] = replace(compared, nulls={**compared.nulls, **shown})
    return found


def summaries(comparisons: Mapping[str, Comparison]) -> dict[str, Any]:
    """What ``summary.json`` says of each."""
    return {name: as_summary(comparison) for name, comparison in comparisons.items()}


def table(comparisons: Mapping[str, Comparison], caption: str) -> Table:
    """A row per measure: value, nulls, and the margin over the nearest of them."""
    names = list(dict.fromkeys(null for c in comparisons.values() for null in c.nulls))
    rows = []
    for name, found in summaries(comparisons).items():
        rows.append(
            (
                MEASURES[name].label,
                with_interval(found["value"], found["interval"]),
                *(found.get(null) for null in names),
                with_interval(found["margin"], found["margin_interval"]),
            )
        )
    return Table(("measure", "value", *names, "margin over the best null"), rows, caption)


def with_interval(value: float, interval: Sequence[float]) -> str:
    """``0.25 (0.24 to 0.26)``."""
    low, high = interval
    return f"{value:.3g} ({low:.3g} to {high:.3g})"


def verdict(comparisons: Mapping[str, Comparison]) -> str:
    """Which measures say more than their nulls, by what margin, and which do not."""
    told: dict[str, list[str]] = {}
    for name, found in summaries(comparisons).items():
        low, high = found["margin_interval"]
        if low > 0:
            kind = "Closer than every null"
        elif high < 0:
            kind = "No closer than the best null"
        else:
            kind = "Not to be told from the best null"
        told.setdefault(kind, []).append(
            f"{MEASURES[name].label} {found['value']:.3g}, margin "
            f"{with_interval(found['margin'], found['margin_interval'])}"
        )
    return " ".join(f"{kind}: {'; '.join(measures)}." for kind, measures in told.items())


def panel(
    key: Array,
    arrays: Mapping[str, np.ndarray],
    name: str,
    x: Sequence[float] | np.ndarray,
    x_label: str,
    *,
    log_y: bool = False,
    label: str = "trained learner",
) -> Panel:
    """A measure against ``x``, (X, B) values, its nulls in grey, all with intervals."""
    start = f"{PREFIX}{name}"
    lines = []
    for full_name in sorted(arrays):
        if full_name != start and not full_name.startswith(start + "."):
            continue
        null = full_name.removeprefix(start).lstrip(".")
        role: Role = "control" if null else "main"
        lines.append(interval_curve(key, arrays[full_name], x, null or label, role))
    return Panel("", lines, x_label, MEASURES[name].label, log_y=log_y)


def interval_curve(
    key: Array, values_XB: np.ndarray, x: Sequence[float] | np.ndarray, label: str, role: Role
) -> Curve:
    """The means of (X, B) values over tasks with their bootstrap intervals."""
    found = bootstrap_mean(key, jnp.asarray(values_XB).T)
    mean, low, high = (np.asarray(jax.device_get(part)) for part in found)
    return Curve(label, np.asarray(x), mean, low, high, role=role)

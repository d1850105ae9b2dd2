"""How two learners compare, measure by measure, each beside its nulls: numbers, tables, words.

An experiment gives one value per task of every measure, and as many for each null; what becomes of
them is the same everywhere. A measure that nobody has described is an error.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.tools.arrays import Names
from icl_jax.dims import Array
from icl_jax.measures.comparison import Comparison, as_summary, compare_with_nulls
from icl_jax.measures.intervals import bootstrap_mean
from icl_jax.report.figures import Curve, Panel, Role
from icl_jax.report.page import Table, number


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Measured:
    """A measure of every task, and of its nulls.

    Attributes:
      value: ``(..., B)``, of the pair.
      nulls: the same by the name of a null.
    """

    value: Any
    nulls: Mapping[str, Any]


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


#: Null -> what tables and legends call it.
NULLS: Mapping[str, str] = {
    "untrained": "untrained",
    "shuffled": "shuffled labels",
    "another": "another task",
    "random": "random update",
}


def names_of(measures: Sequence[str], path: str = "measures") -> Names:
    """What is saved of measures, each with all the nulls."""
    return {path: tuple(measures), f"{path}.*.nulls": tuple(NULLS)}


def with_nulls(
    value: Mapping[str, Array], nulls: Mapping[str, Mapping[str, Array]]
) -> dict[str, Measured]:
    """The measures of a pair, each with those of its nulls.

    Raises:
      ValueError: a measure or a null that is not described above, or nulls of other measures.
    """
    unknown = [name for name in value if name not in MEASURES]
    unknown += [null for null in nulls if null not in NULLS]
    if unknown:
        raise ValueError(
            f"with_nulls: {', '.join(unknown)}: not among {', '.join((*MEASURES, *NULLS))}. "
            "Describe it in experiments/tools/comparisons.py."
        )
    for null, arrays in nulls.items():
        if arrays.keys() != value.keys():
            raise ValueError(
                f"with_nulls: the null {null!r} has {', '.join(arrays)}, the pair "
                f"{', '.join(value)}."
            )
    return {
        name: Measured(array, {null: arrays[name] for null, arrays in nulls.items()})
        for name, array in value.items()
    }


def joined(
    measures: Mapping[str, Measured], null: str, other: Mapping[str, Measured]
) -> dict[str, Measured]:
    """``measures`` with the values of ``other`` as one more null."""
    return with_nulls(
        {name: found.value for name, found in measures.items()},
        {
            **{
                name: {measure: found.nulls[name] for measure, found in measures.items()}
                for name in next(iter(measures.values())).nulls
            },
            null: {name: found.value for name, found in other.items()},
        },
    )


def compared(
    key: Array, measures: Mapping[str, Measured], index: tuple[Any, ...] = ()
) -> dict[str, Comparison]:
    """Measure -> its mean over tasks, interval, nulls and margin.

    Args:
      key: of the resampling.
      measures: values per task, ``(..., B)`` where ``index`` picks from what stands before B.
      index: of the point that is told, such as the last number of examples.
    """
    found = {}
    for name, measured in measures.items():
        described = MEASURES[name]
        nulls = {null: jnp.asarray(values[index]) for null, values in measured.nulls.items()}
        tied = {null: nulls.pop(null) for null in described.tied if null in nulls}
        compared = compare_with_nulls(
            key,
            jnp.asarray(measured.value[index]),
            nulls,
            larger_is_closer=described.larger_is_closer,
        )
        shown = {null: bootstrap_mean(key, values_B) for null, values_B in tied.items()}
        found[name] = replace(compared, nulls={**compared.nulls, **shown})
    return found


def summaries(comparisons: Mapping[str, Comparison]) -> dict[str, Any]:
    """What ``summary.json`` says of each."""
    return {name: as_summary(comparison) for name, comparison in comparisons.items()}


def table(
    comparisons: Mapping[str, Comparison], caption: str, called: Mapping[str, str] = NULLS
) -> Table:
    """A row per measure: value, nulls by what they are ``called``, and the margin over the nearest
    of them."""
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
    headings = [called[name] for name in names]
    return Table(("measure", "value", *headings, "margin over the nearest null"), rows, caption)


def with_interval(value: float, interval: Sequence[float]) -> str:
    """``0.25 (0.24 to 0.26)``."""
    low, high = interval
    return f"{value:.3g} ({low:.3g} to {high:.3g})"


def nearest_null(name: str, comparison: Comparison, called: Mapping[str, str] = NULLS) -> str:
    """The null that a measure's margin is over, and its value: ``untrained, 0.12``."""
    means = {null: float(found.mean) for null, found in comparison.nulls.items()}
    null, value = nearest(name, means, called)
    return f"{null}, {value:.3g}"


def nearest(
    name: str, nulls: Mapping[str, float], called: Mapping[str, str] = NULLS
) -> tuple[str, float]:
    """Of a measure's nulls the one that is hardest to beat, as readers know it, and its value."""
    described = MEASURES[name]
    values = {null: nulls[null] for null in NULLS if null in nulls and null not in described.tied}
    pick = max if described.larger_is_closer else min
    null = pick(values, key=lambda null: values[null])
    return called[null], values[null]


def verdict(comparisons: Mapping[str, Comparison], called: Mapping[str, str] = NULLS) -> str:
    """Which measures say more than their nulls, by what margin, and which do not."""
    told: dict[str, list[str]] = {}
    for name, found in summaries(comparisons).items():
        low, high = found["margin_interval"]
        if low > 0:
            kind = "Closer than every null"
        elif high < 0:
            kind = "No closer than the nearest null"
        else:
            kind = "Not to be told from the nearest null"
        told.setdefault(kind, []).append(
            f"{MEASURES[name].label} {found['value']:.3g} (nearest null: "
            f"{nearest_null(name, comparisons[name], called)}; margin "
            f"{with_interval(found['margin'], found['margin_interval'])})"
        )
    return " ".join(f"{kind}: {'; '.join(measures)}." for kind, measures in told.items())


def against_best(
    what: str,
    value: float,
    baselines: Mapping[str, float],
    nulls: Mapping[str, float] = MappingProxyType({}),
) -> str:
    """A loss in words beside the best of its baselines, all that beat it, and its nearest null.

    Args:
      what: has the loss.
      value: of it.
      baselines: losses by what tables and legends call them.
      nulls: likewise; those that beat it, too, are named.

    >>> against_best("In context", 0.2, {"zero predictor": 1.0, "averaging": 0.1})
    'In context 0.200 is worse than averaging, the best of 2 baselines, at 0.100.'
    >>> against_best("It", 0.2, {"ridge": 0.1, "averaging": 0.15}, {"untrained": 0.9})[-66:]
    'at 0.100, and than averaging (0.150). The null: untrained (0.900).'
    """
    best, *others = sorted(baselines, key=baselines.__getitem__)
    word = "better than" if value < baselines[best] else "worse than"
    if value == baselines[best]:
        word = "the same as"
    count = f"the best of {len(baselines)} baselines, " if others else ""
    ahead = [name for name in others if baselines[name] < value]
    rest = f", and than {_listed(ahead, baselines)}" if ahead else ""
    said = f"{what} {number(value)} is {word} {best}, {count}at {number(baselines[best])}{rest}."
    return f"{said} {_beside_nulls(value, nulls)}" if nulls else said


def _beside_nulls(value: float, nulls: Mapping[str, float]) -> str:
    nearest, *others = sorted(nulls, key=nulls.__getitem__)
    which = f"Nearest of {len(nulls)} nulls" if others else "The null"
    told = f"{which}: {_listed([nearest], nulls)}"
    if nulls[nearest] < value:
        told += ", which beats it"
    ahead = [name for name in others if nulls[name] < value]
    if ahead:
        told += f", as {'do' if len(ahead) > 1 else 'does'} {_listed(ahead, nulls)}"
    return f"{told}."


def _listed(names: Sequence[str], losses: Mapping[str, float]) -> str:
    """``ridge (0.1), averaging (0.2) and zero (1)``."""
    *first, last = [f"{name} ({number(losses[name])})" for name in names]
    return f"{', '.join(first)} and {last}" if first else last


def panel(
    key: Array,
    measures: Mapping[str, Measured],
    name: str,
    x: Sequence[float] | np.ndarray,
    x_label: str,
    *,
    log_y: bool = False,
    label: str = "trained learner",
) -> Panel:
    """A measure against ``x``, (X, B) values, its nulls in grey, all with intervals."""
    found = measures[name]
    lines = [interval_curve(key, found.value, x, label, "main")]
    for null, values in found.nulls.items():
        lines.append(interval_curve(key, values, x, NULLS[null], "control"))
    return Panel("", lines, x_label, MEASURES[name].label, log_y=log_y)


def interval_curve(
    key: Array, values_XB: np.ndarray, x: Sequence[float] | np.ndarray, label: str, role: Role
) -> Curve:
    """The means of (X, B) values over tasks with their bootstrap intervals."""
    found = bootstrap_mean(key, jnp.asarray(values_XB).T)
    mean, low, high = (np.asarray(jax.device_get(part)) for part in found)
    return Curve(label, np.asarray(x), mean, low, high, role=role)

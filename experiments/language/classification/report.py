"""What experiments.classification finds, in numbers, words and pictures."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.language.classification.sides import (
    BY_ORDER,
    FIRST_REACHED,
    MEASURED,
)
from experiments.tools.arrays import Names
from experiments.tools.comparisons import (
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
from icl_jax.measures.intervals import bootstrap_mean
from icl_jax.report.figures import Panel, curves
from icl_jax.report.page import Section, Table, number

#: What is held against the context: descent, and three of its nulls.
WALKS = ("descent", "shuffled", "another", "random")
#: Every run of the query, and what it is called.
RUNS: Mapping[str, str] = {
    "zero_shot": "zero shot",
    "in_context": "in context",
    "descent": "fine-tuned",
    "shuffled": "fine-tuned, shuffled labels",
    "another": "fine-tuned on another prompt's",
    "random": "random update",
    "untrained_in_context": "untrained, in context",
    "untrained_descent": "untrained, fine-tuned",
}
#: Of one task are all prompts; null -> what tables, legends and verdicts call it.
CALLED: Mapping[str, str] = {**NULLS, "another": "another prompt's"}
NULL_RUNS = ("shuffled", "another", "random", "untrained_in_context", "untrained_descent")
THE_NULLS = (
    "Nulls: the same architecture before any training, at its own best rate; descent on shuffled "
    "labels; on another prompt's demonstrations; a random update of descent's norm."
)


@dataclass(frozen=True)
class Answered:
    """A run's answers to B prompts.

    Attributes:
      loss: (B,), the cross entropy of the answer's word, in nats.
      accuracy: (B,), whether it beats the other labels.
    """

    loss: np.ndarray
    accuracy: np.ndarray


@dataclass(frozen=True)
class Arrays:
    """What is measured of B prompts.

    Attributes:
      context_tokens: (B,).
      rates_X: (X,), of the search.
      rate, untrained_rate: (), the best.
      rate_at_edge: (), whether the first lies at an end.
      runs: by name, of ``RUNS``.
      measures: (B,) each.
      layers: (B, L), the cosine of what attention adds, of descent and every null.
    """

    context_tokens: np.ndarray
    rates_X: np.ndarray
    rate: np.ndarray
    rate_at_edge: np.ndarray
    untrained_rate: np.ndarray
    runs: Mapping[str, Answered]
    measures: Mapping[str, Measured]
    layers: Mapping[str, np.ndarray]


def names(compares_kernels: bool) -> Names:
    """What is measured, of kernels too or not."""
    measures = (*MEASURED, "update_cosine") if compares_kernels else MEASURED
    layers = (*WALKS, "untrained")
    return {"runs": RUNS, **names_of(measures), "layers": layers}


def told(arrays: Arrays) -> dict[str, Measured]:
    """The measures that say something."""
    found = dict(arrays.measures)
    # Where no layer sees the demonstrations, they have no order by attention.
    if not np.all(np.isfinite(found[BY_ORDER].value)):
        del found[BY_ORDER]
    return found


def summarise(config: Any, arrays: Arrays) -> dict[str, Any]:
    """Losses, accuracies, and the measures with nulls, margin and intervals."""
    key = jax.random.key(config.seed)
    return {
        "checkpoint": config.checkpoint,
        "data": config.data,
        "num_prompts": config.num_prompts,
        "context_tokens": float(arrays.context_tokens.mean()),
        "learning_rate": arrays.rate,
        "learning_rate_at_edge": bool(arrays.rate_at_edge),
        "untrained_learning_rate": arrays.untrained_rate,
        "losses": {name: float(run.loss.mean()) for name, run in arrays.runs.items()},
        "accuracies": {name: float(run.accuracy.mean()) for name, run in arrays.runs.items()},
        "chance": 1 / len(config.words),
        "measures": summaries(compared(key, told(arrays))),
    }


def sections(config: Any, arrays: Arrays) -> list[Section]:
    """Losses and accuracies, the measures, and attention's update layer by layer."""
    summary = summarise(config, arrays)
    key = jax.random.key(config.seed)
    comparisons = compared(key, told(arrays))
    losses, accuracies = summary["losses"], summary["accuracies"]
    help_B = arrays.runs["zero_shot"].loss - arrays.runs["in_context"].loss
    gain = bootstrap_mean(key, jnp.asarray(help_B))
    saved = with_interval(float(gain.mean), (float(gain.low), float(gain.high)))
    helps = "helps" if gain.low > 0 else "harms" if gain.high < 0 else "makes no clear difference"
    first = FIRST_REACHED.get(config.explicit.trains, 0)

    def shown(values: np.ndarray) -> str:
        found = bootstrap_mean(key, jnp.asarray(values))
        return with_interval(float(found.mean), (float(found.low), float(found.high)))

    lines = [
        interval_curve(
            key,
            arrays.layers[walk].T,
            np.arange(first, first + arrays.layers[walk].shape[1]),
            RUNS["descent"] if walk == "descent" else CALLED[walk],
            "main" if walk == "descent" else "control",
        )
        for walk in (*WALKS, "untrained")
    ]
    edge = " (at the edge of the search)" if summary["learning_rate_at_edge"] else ""
    return [
        Section(
            "What the demonstrations do to the answer",
            f"With {config.num_examples} demonstrations in the context the answer's word costs "
            f"{number(losses['in_context'])} nats, alone {number(losses['zero_shot'])}, and "
            f"{number(losses['descent'])} when the model is fine-tuned on them "
            f"({config.explicit.trains.replace('_', ' ')}, {config.explicit.optimizer.name}, "
            f"learning rate {number(summary['learning_rate'])}{edge}). "
            "Among the labels the answer is first in "
            f"{accuracies['in_context']:.0%} of the prompts with it, and in "
            f"{accuracies['zero_shot']:.0%} without (chance: {summary['chance']:.0%}).",
            tables=[
                Table(
                    ("run", "loss in nats", "accuracy"),
                    [
                        (
                            RUNS[name],
                            shown(run.loss),
                            shown(run.accuracy),
                        )
                        for name, run in arrays.runs.items()
                    ],
                    f"Means over {config.num_prompts} prompts ({config.data}) with 95% intervals.",
                )
            ],
            verdict=f"The context {helps}: it saves {saved} nats. "
            + against_best(
                "Its loss",
                losses["in_context"],
                {RUNS[name]: losses[name] for name in ("zero_shot", "descent")},
                {RUNS[name]: losses[name] for name in NULL_RUNS},
            ),
            anchor="answers",
        ),
        Section(
            "Distributions and attention: in context beside fine-tuned",
            "The model in context beside the model fine-tuned on the same demonstrations.",
            verdict=verdict(comparisons, CALLED),
            tables=[
                table(
                    comparisons,
                    "Means over prompts. Divergences have a scale: a model that hardly moves, as "
                    "the untrained one, is near to itself whatever is done to it; overlaps and "
                    f"cosines do not have that advantage. {THE_NULLS}",
                    CALLED,
                )
            ],
            anchor="measures",
        ),
        Section(
            "What attention adds, layer by layer",
            "The cosine of what the context and the descent change in the attention output of the "
            "query's last token. In grey the nulls, which need not be zero: what an update of any "
            "kind changes has directions that it prefers.",
            verdict=_layers_verdict(arrays),
            figure=curves(
                [Panel("", lines, "layer, from 0", "cosine of the changes of attention")]
            ),
            anchor="layers",
        ),
    ]


def _layers_verdict(arrays: Arrays) -> str:
    """In how many layers the cosine is above that of every null."""
    means = {walk: values.mean(axis=0) for walk, values in arrays.layers.items()}
    mine_L = means.pop("descent")
    above = int(np.sum(mine_L > np.max(list(means.values()), axis=0)))
    nearest = max(means, key=lambda walk: float(means[walk].mean()))
    return (
        f"Above every null in {above} of {len(mine_L)} layers; over all layers "
        f"{number(float(mine_L.mean()))}, the nearest null ({CALLED[nearest]}) "
        f"{number(float(means[nearest].mean()))}."
    )

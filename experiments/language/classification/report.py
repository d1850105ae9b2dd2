"""What experiments.classification finds, in numbers, words and pictures."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.language.classification.sides import (
    FIRST_REACHED,
)
from experiments.tools.comparisons import (
    compared,
    interval_curve,
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
RUNS = ("zero_shot", "in_context", *WALKS)
NULLS = (
    "Nulls: the same architecture before any training, at its own best rate; descent on shuffled "
    "labels; on another prompt's demonstrations; a random update of descent's norm."
)


def summarise(config: Any, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Losses, accuracies, and the measures with nulls, margin and intervals."""
    key = jax.random.key(config.seed)
    return {
        "checkpoint": config.checkpoint,
        "data": config.data,
        "num_prompts": config.num_prompts,
        "context_tokens": float(arrays["context_tokens"].mean()),
        "learning_rate": arrays["rate"],
        "learning_rate_at_edge": bool(arrays["rate_at_edge"]),
        "untrained_learning_rate": arrays["untrained_rate"],
        "losses": {n[:-5]: float(v.mean()) for n, v in arrays.items() if n.endswith("_loss")},
        "accuracies": {
            n[:-9]: float(v.mean()) for n, v in arrays.items() if n.endswith("_accuracy")
        },
        "chance": 1 / len(config.words),
        "measures": summaries(compared(key, arrays)),
    }


def sections(config: Any, arrays: Mapping[str, np.ndarray]) -> list[Section]:
    """Losses and accuracies, the measures, and attention's update layer by layer."""
    summary = summarise(config, arrays)
    key = jax.random.key(config.seed)
    comparisons = compared(key, arrays)
    losses, accuracies = summary["losses"], summary["accuracies"]
    help_B = arrays["zero_shot_loss"] - arrays["in_context_loss"]
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
            arrays[f"layers.{walk}"].T,
            np.arange(first + 1, first + arrays[f"layers.{walk}"].shape[1] + 1),
            {"descent": "fine-tuned"}.get(walk, walk),
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
            f"The context {helps}: it saves {saved} nats. Among the labels the answer is first in "
            f"{accuracies['in_context']:.0%} of the prompts with it, and in "
            f"{accuracies['zero_shot']:.0%} without (chance: {summary['chance']:.0%}).",
            tables=[
                Table(
                    ("run", "loss in nats", "accuracy"),
                    [
                        (
                            run.replace("_", " "),
                            shown(arrays[f"{run}_loss"]),
                            shown(arrays[f"{run}_accuracy"]),
                        )
                        for run in (*RUNS, "untrained_in_context", "untrained_descent")
                    ],
                    f"Means over {config.num_prompts} prompts ({config.data}) with 95% intervals.",
                )
            ],
            anchor="answers",
        ),
        Section(
            "Distributions and attention: in context beside fine-tuned",
            verdict(comparisons),
            tables=[
                table(
                    comparisons,
                    "Means over prompts. Divergences have a scale: a model that hardly moves, as "
                    "the untrained one, is near to itself whatever is done to it; overlaps and "
                    f"cosines do not have that advantage. {NULLS}",
                )
            ],
            anchor="measures",
        ),
        Section(
            "What attention adds, layer by layer",
            "The cosine of what the context and the descent change in the attention output of the "
            "query's last token. In grey the nulls, which need not be zero: what an update of any "
            "kind changes has directions that it prefers.",
            figure=curves([Panel("", lines, "layer", "cosine of the changes of attention")]),
            anchor="layers",
        ),
    ]

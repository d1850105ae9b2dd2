"""Do the claims of Dherin et al. (arXiv 2507.16003) hold, measured beside their controls?

Trains in-context learners on linear regression at the paper's settings (d = 2, N = 50 and 100,
width 32, 8 heads, MLP 128) and the 10-layer pre-norm stack of Innocenti and Achour, computes the
weight update of every test prompt, and writes one page: DIR/report.html, and DIR/summary.json.

    python -m experiments.paper --workdir=runs/paper
    python -m experiments.paper --quick --workdir=runs/quick

About ten minutes on 2 cores; --quick does everything small in two or three. A killed run goes
on where it was.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.regression import alignment, attribution, convergence, equivalence, training
from experiments.regression.descent import run as descent
from experiments.regression.learner import LearnerConfig, deep_learner, quick_learner
from experiments.regression.training import LABELS
from experiments.tools.comparisons import nearest
from experiments.tools.conduct import Outcome, finish, start
from experiments.tools.flags import launch, option
from icl_jax import checks
from icl_jax.oracles.closed_form import ORACLES
from icl_jax.report.page import Highlight, number

#: The headings of the page, by stage.
PARTS = {
    "equivalence": "The identity",
    "training": "Learning in context",
    "convergence": "The weights as the context grows",
    "descent": "The context and gradient descent",
    "training_long": "Learning in context, more examples",
    "convergence_long": "The weights as the context grows, more examples",
    "descent_long": "The context and gradient descent, more examples",
    "alignment": "Tokens and blocks of a deep stack",
    "attribution": "Who wrote the update",
    "attribution_norm": "Who wrote the update behind a norm",
}


@dataclass(frozen=True)
class Config:
    """The learners, and the number of prompts that each experiment looks at."""

    num_prompts: int = option(200, "test prompts of each experiment")
    num_tasks: int = option(100, "test prompts of the deep stack and of the equivalence cases")
    long_examples: int = option(100, "examples N of the second learner; 0 leaves it out")
    seed: int = option(0, "of the test prompts")
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    deep: LearnerConfig = field(default_factory=deep_learner)

    def __post_init__(self) -> None:
        for name in ("num_prompts", "num_tasks"):
            checks.positive_int("paper", name, getattr(self, name))
        checks.non_negative("paper", "long_examples", self.long_examples)
        plan(self)  # What an experiment cannot work with is said before the first one starts.

    @classmethod
    def quick(cls) -> "Config":
        """Everything, small: N = 20, and no second learner."""
        return cls(
            num_prompts=100,
            num_tasks=32,
            long_examples=0,
            learner=quick_learner(),
            deep=deep_learner(quick=True),
        )


def plan(config: Config) -> dict[str, tuple[Any, Any]]:
    """The experiments in the order of the report: name -> (module, configuration)."""
    short = config.learner
    stages: dict[str, tuple[Any, Any]] = {
        "equivalence": (
            equivalence,
            equivalence.Config(
                num_prompts=config.num_tasks,
                num_examples=short.num_examples,
                input_width=short.input_width,
                seed=config.seed,
            ),
        ),
        "training": (training, training.Config(learner=short)),
        "convergence": (
            convergence,
            convergence.Config(num_prompts=config.num_prompts, learner=short),
        ),
        "descent": (descent, descent.Config(num_prompts=config.num_prompts, learner=short)),
    }
    if config.long_examples:
        long = dataclasses.replace(short, num_examples=config.long_examples)
        stages |= {
            "training_long": (training, training.Config(learner=long)),
            "convergence_long": (
                convergence,
                convergence.Config(num_prompts=config.num_prompts, learner=long),
            ),
            "descent_long": (descent, descent.Config(num_prompts=config.num_prompts, learner=long)),
        }
    stages |= {
        "alignment": (
            alignment,
            alignment.Config(num_prompts=config.num_tasks, learner=config.deep),
        ),
        "attribution": (
            attribution,
            attribution.Config(num_prompts=config.num_prompts, learner=short),
        ),
        # The first block of the deep stack: here a norm stands between attention and kernel.
        "attribution_norm": (
            attribution,
            attribution.Config(num_prompts=config.num_tasks, learner=config.deep),
        ),
    }
    return stages


def run(config: Config, workdir: Path) -> Outcome:
    """Runs every experiment in a folder of its own and joins their summaries and reports."""
    record = start(workdir, "paper", config)
    stages = plan(config)
    outcomes = {}
    console = Console(stderr=True)
    for index, (name, (module, stage)) in enumerate(stages.items(), 1):
        console.rule(f"[bold]{index}/{len(stages)} {name}", align="left")
        outcomes[name] = module.run(stage, workdir / name, workdir / "learners")
    summary = {name: outcome.summary for name, outcome in outcomes.items()}
    joined = Outcome(
        summary,
        [
            dataclasses.replace(section, part=PARTS[name])
            for name, outcome in outcomes.items()
            for section in outcome.sections
        ],
    )
    return finish(
        record,
        "A prompt becomes weights",
        __doc__,
        joined,
        highlights=highlights(summary),
        print_tables=False,
    )


def highlights(summary: dict[str, Any]) -> list[Highlight]:
    """The numbers that a reader should see first, each with its control."""
    deepest = [name for name in summary["equivalence"]["float32"] if name.startswith("stack")][0]
    exact = summary["equivalence"]["float32"][deepest]
    losses = {name: summary["training"][f"{name}_loss"] for name in ORACLES}
    rival = min(losses, key=lambda name: losses[name])
    cosine = summary["descent"]["measures"]["update_cosine"]
    null, closest = nearest("update_cosine", cosine)
    return [
        Highlight(
            f"error of the patched {deepest.removeprefix('stack')}-layer stack, float32",
            exact["patched"],
            f"{number(exact['unpatched'])} unpatched",
        ),
        Highlight(
            "loss of the trained learner",
            summary["training"]["final_loss"],
            f"{number(losses[rival])} for {LABELS[rival]}, the best of {len(losses)} baselines",
        ),
        Highlight(
            "cosine of implicit update and descent",
            cosine["value"],
            f"{number(closest)} for the nearest null, {null}",
        ),
        Highlight(
            "additivity error of the attribution",
            summary["attribution"]["additivity_error"],
            f"{number(summary['attribution']['shuffled_error'])} with another prompt's",
        ),
    ]


if __name__ == "__main__":
    launch(Config, run, __doc__)

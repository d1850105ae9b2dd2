"""Do the weights that contexts stand for add up, and what do they disturb?

A learner reads examples of an unknown function; each context is compiled in closed form into one
change of its weights. The patch of one query is used on others, a context's patch on another
context's queries, a layer's patch in another layer. The patches of a context's two halves are added
and compared with the patch of the whole; that of the examples in another order, too. Patches of
several functions are stacked, and the patched learner is given other contexts to read: what is left
of learning in context?

    python -m experiments.composition --workdir=runs/composition

Three to four minutes of processor time (``--quick``: one and a quarter). Expected: a
context's patch closes 0.988 of the gap on new queries, another context's less than nothing, a patch
of one query none on others (-0.005), in the next layer 0.17. The mean of the halves' patches closes
0.983, their sum 0.40, the mean with another context's half 0.59; another order of the examples
changes little (cosine 0.997, another context's 0.52). Four functions stacked: -0.8, eight: -1.3.
One patch in the weights takes the learning in context away: a squared error of 1.1 in the place of
0.009.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.regression.composition.report import (
    AGREED,
    MODELS,
    Arrays,
    Composed,
    OwnQuery,
    names,
    sections,
    summarise,
)
from experiments.regression.composition.sides import (
    added,
    agreement,
    answered,
    compiled,
    of_others,
    with_context,
)
from experiments.regression.learner import Examined, Learner, LearnerConfig, examine, quick_learner
from experiments.regression.reusable.sides import Split
from experiments.tools.conduct import TEST_STREAM, Outcome
from experiments.tools.flags import LONE, launch, option
from icl_jax import checks
from icl_jax.blocks.config import StackConfig
from icl_jax.dynamics.composition import move_layers
from icl_jax.tasks.prompt import Prompt, sample_prompts

#: Two layers, so that a patch has another layer to be moved to.
STACK = StackConfig(wiring="pre_norm", depth=2)


def _learner() -> LearnerConfig:
    return LearnerConfig(stack=STACK, watch=False)


@dataclass(frozen=True)
class Config:
    """How many contexts, and how many of them are stacked."""

    num_prompts: int = option(64, "contexts, each compiled by itself")
    calibration: int = option(25, "queries that are fitted")
    new: int = option(32, "queries that are asked")
    weight: float = option(1e-3, "of the ridge")
    stacked: tuple[int, ...] = option((1, 2, 4, 8), "contexts whose patches are added")
    seed: int = option(11, "of the test prompts and the orders")
    learner: LearnerConfig = field(default_factory=_learner)

    def __post_init__(self) -> None:
        where = "composition"
        checks.at_least_two(where, "num_prompts", self.num_prompts, LONE)
        for name in ("calibration", "new"):
            checks.positive_int(where, name, getattr(self, name))
        checks.positive(where, "weight", self.weight)
        for count in self.stacked:
            checks.positive_int(where, "stacked", count)
        if not self.stacked or self.stacked[0] != 1:
            raise ValueError(f"{where}: stacked={self.stacked} must begin with 1, a patch alone.")
        if max(self.stacked) >= self.num_prompts:
            raise ValueError(
                f"{where}: stacked={max(self.stacked)} needs more than as many contexts, got "
                f"num_prompts={self.num_prompts}."
            )
        if self.learner.stack.depth < 2:
            raise ValueError(
                f"{where}: learner.stack.depth={self.learner.stack.depth} must be 2 or more: a "
                "patch is moved to another layer."
            )

    @classmethod
    def quick(cls) -> "Config":
        """A short training, few contexts."""
        learner = quick_learner(stack=STACK, watch=False)
        return cls(num_prompts=16, new=16, stacked=(1, 2, 4), learner=learner)


def measure(config: Config, learner: Learner) -> Arrays:
    """Both models on the same prompts."""
    split = Split(learner.config.num_examples, config.calibration, 0, config.new)
    key = jax.random.fold_in(jax.random.key(config.seed), TEST_STREAM)
    prompts = sample_prompts(
        learner.task, key, num_prompts=config.num_prompts, num_examples=split.rows
    )
    return Arrays(**{model: _composed(config, learner, model, prompts, split) for model in MODELS})


def _composed(
    config: Config, learner: Learner, model: str, prompts: Prompt, split: Split
) -> Composed:
    run = (learner.stack, getattr(learner, model), prompts, split)
    new = slice(config.calibration, None)
    targets_BQ = np.asarray(prompts.targets_N)[:, split.examples :]

    def error(found_BQ: Any) -> np.ndarray:
        off: np.ndarray = np.mean((np.asarray(found_BQ)[:, new] - targets_BQ[:, new]) ** 2, axis=-1)
        return off

    key = jax.random.key(config.seed)
    patches = compiled(*run, jnp.float32(config.weight), key)
    whole, first, second = (patches[name] for name in ("whole", "first", "second"))
    moved = jax.vmap(lambda one: move_layers(one, 1))(whole)
    uses = {
        "own": whole,
        "token": patches["token"],
        "layer": moved,
        "another": of_others(whole),
        "shuffled": patches["shuffled"],
        "half": first,
        "other_half": second,
        "sum": added(first, second),
        "mean": added(first, second, strength=0.5),
        "stranger": added(first, of_others(second), strength=0.5),
    }
    alone_BQ, full_BQ = (answered(*run, None), with_context(*run, None))
    found = {name: answered(*run, one) for name, one in uses.items()}
    first_query = (np.asarray(one)[:, 0] for one in (alone_BQ, full_BQ, found["token"]))
    stacks = {
        count: added(*(of_others(whole, shift) for shift in range(count)))
        for count in config.stacked
    }
    means = {
        count: added(*(of_others(whole, shift) for shift in range(count)), strength=1 / count)
        for count in config.stacked
    }
    last = max(config.stacked)
    missing = added(*(of_others(whole, shift) for shift in range(1, last + 1)))
    agreed = {
        "sum": agreement(uses["sum"], whole),
        "stranger": agreement(uses["stranger"], whole),
        "shuffled": agreement(patches["shuffled"], whole),
        "halves": agreement(first, second),
        "another": agreement(of_others(whole), whole),
    }
    return Composed(
        alone=error(alone_BQ),
        full=error(full_BQ),
        used={name: error(one) for name, one in found.items()},
        own_query=OwnQuery(*first_query),
        stacked=np.stack([error(answered(*run, one)) for one in stacks.values()]),
        averaged=np.stack([error(answered(*run, one)) for one in means.values()]),
        missing=error(answered(*run, missing)),
        # A patched learner reads the contexts of prompts whose patches are not in it.
        read=np.stack(
            [error(with_context(*run, of_others(one))) for one in stacks.values()]
        ),
        agreed={name: np.asarray(agreed[name]) for name in AGREED},
    )  # fmt: skip


EXPERIMENT = Examined(
    "composition",
    "Contexts as weights, added up",
    __doc__,
    Arrays,
    measure,
    summarise,
    sections,
    names,
)


def run(config: Config, workdir: Path, learners: Path | None = None) -> Outcome:
    """Trains (or finds) the learner, compiles its contexts, adds them up, asks."""
    return examine(EXPERIMENT, config, workdir, learners)


if __name__ == "__main__":
    launch(Config, run, __doc__)

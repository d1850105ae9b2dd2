"""What does a small GPT do, step by step, and what weights do the letters so far amount to?

Trains a GPT of three layers, three heads and width 48 to sort six letters of A, B and C, and writes
one HTML file that walks through its forward pass: embedding, norms, queries, keys, values,
attention, projection, MLP, softmax. Beside each block stands the change of the weights that the
tokens so far amount to, its two vectors, who wrote it, and the same token run alone with the
changed weights, with its error.

    python -m experiments.sorting --workdir=runs/sorting

About a minute on 2 cores (50 seconds of processor time). Expected: all of the 145 inputs that it
never saw are sorted, none before training; the token alone with the changed weights gives the
output of every block to 5e-7, relative, where the plain weights are 0.1 or more off and those of
another input 0.2 (median).
"""

import dataclasses
import functools
from dataclasses import dataclass, field
from pathlib import Path

import jax
import numpy as np

from experiments.language.sorting.measure import Arrays, walked
from experiments.language.sorting.model import (
    COUNT,
    build,
    ids,
    initial,
    inputs,
    share_sorted,
    training_loss,
)
from experiments.language.sorting.page import summarise, write
from experiments.tools.conduct import Outcome, measured, start
from experiments.tools.flags import launch, option
from icl_jax import checks
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.dims import Params
from icl_jax.records import Run
from icl_jax.training.config import TrainingConfig, make_optimizer, usual_optimizer
from icl_jax.training.loop import Trained, train
from icl_jax.training.step import initial_params


@dataclass(frozen=True)
class Config:
    """How the model is trained, and what it is shown."""

    inputs: tuple[str, ...] = option((), "six letters each, to walk through; the first held out")
    num_inputs: int = option(5, "held-out inputs to walk through, where none are given")
    num_held_out: int = option(145, "of the 729 inputs, which the training never sees")
    split_seed: int = option(0, "of the draw of the held-out inputs")
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(
            num_steps=1500,
            batch_size=64,
            learning_rate=3e-3,
            checkpoint_every=500,
            optimizer=usual_optimizer("adamw", ("weight_decay=0.1",), warmup_steps=50),
        )
    )

    def __post_init__(self) -> None:
        for name in ("num_inputs", "num_held_out"):
            checks.positive_int("sorting", name, getattr(self, name))
        if not self.num_inputs <= self.num_held_out < 729:
            raise ValueError(
                f"sorting: num_held_out={self.num_held_out} must be from num_inputs="
                f"{self.num_inputs} to 728: there are 729 inputs, and one is needed to train on."
            )
        if len(self.inputs) == 1:
            raise ValueError("sorting: inputs must be two or more; each is another's control.")
        for text in self.inputs:
            if len(text) != COUNT or set(text) - set("ABC"):
                raise ValueError(
                    f"sorting: inputs must be {COUNT} letters of A, B and C each, got {text!r}."
                )

    @classmethod
    def quick(cls) -> "Config":
        """A short training, which sorts most inputs, and two of them."""
        config = cls(num_inputs=2)
        training = dataclasses.replace(config.training, num_steps=300)
        return dataclasses.replace(config, training=training)


def trained(config: Config, workdir: Path) -> tuple[LanguageModel, Trained, Params]:
    """The model, its training (or what is on disk of it), and its parameters before."""
    model = build()
    init = functools.partial(initial, model)
    key = jax.random.key(config.training.seed)
    learned, _ = inputs(config.num_held_out, config.split_seed)
    found = train(
        init,
        training_loss(model, learned, config.training.batch_size),
        make_optimizer(config.training),
        key,
        num_steps=config.training.num_steps,
        steps_per_call=config.training.steps_per_call,
        checkpoint_every=config.training.checkpoint_every,
        workdir=workdir,
    )
    return model, found, initial_params(init, key)


def measure(config: Config, run: Run) -> Arrays:
    """Trains, counts what is sorted, and walks through the inputs that are asked for."""
    model, found, before = trained(config, run.workdir)
    _, held_out = inputs(config.num_held_out, config.split_seed)
    # Those with all letters first: AAAAAA has little to show.
    least_N = np.min([np.sum(held_out == letter, axis=1) for letter in range(3)], axis=0)
    shown = held_out[np.argsort(least_N == 0, kind="stable")][: config.num_inputs]
    if config.inputs:
        shown = np.stack([ids(text) for text in config.inputs])
    return Arrays(
        shown,
        found.metrics["step"],
        found.metrics["loss"],
        np.asarray(share_sorted(model, found.params, held_out)),
        np.asarray(share_sorted(model, before, held_out)),
        *walked(model, found.params, shown),
    )


def run(config: Config, workdir: Path) -> Outcome:
    """Trains the model, or finds it; writes the page."""
    records = start(workdir, "sorting", config)
    arrays = measured(records, Arrays, lambda: measure(config, records))
    summary = summarise(arrays)
    records.save_json("summary.json", summary)
    print(f"Page: {write(records, arrays)}")
    return Outcome(summary, [])


if __name__ == "__main__":
    launch(Config, run, __doc__)

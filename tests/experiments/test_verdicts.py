"""What reports say first, of small made-up records: every rival that does better is named."""

import numpy as np

from experiments.regression import training
from experiments.regression.descent import run as descent
from experiments.regression.descent.report import LOSSES, Arrays, Searched, losses_section
from experiments.regression.learner import LearnerConfig


def test_training_says_that_averaging_beats_the_learner():
    # As measured at N = 100, where tasks without noise give least squares its zero.
    losses = training.Losses(*map(np.array, (2.4, 0.0593, 0.0593, 2.2)))
    oracles = {
        "zero": 2.1,
        "averaging": 0.0586,
        "least_squares": 6e-12,
        "ridge": 1e-4,
        "nearest_neighbours": 1.2,
    }
    history = {name: np.ones(3) for name in ("step", "loss", "patched_loss", "alone_loss")}
    config = training.Config(learner=LearnerConfig(num_examples=100))
    arrays = training.Arrays(losses, {name: np.array(x) for name, x in oracles.items()}, history)
    (section,) = training.sections(config, arrays)
    assert section.verdict.startswith(
        "The learner's loss 0.0593 is worse than least squares, the best of 5 baselines, at "
        "6.0e-12, and than ridge regression (1.0e-04) and averaging (0.0586). Nearest of 2 nulls: "
        "unpatched, no context (2.20). Patched weights"
    )
    named = {row[0] for row in section.tables[0].rows}
    assert {"averaging", "ridge regression", "unpatched, no context"} <= named


def test_descent_says_that_fine_tuning_an_untrained_learner_beats_the_trained_one():
    # As measured at N = 50.
    means = dict.fromkeys(LOSSES, 3.0) | {
        "implicit": 0.19,
        "descent": 0.118,
        "least_squares": 6e-14,
        "averaging": 0.15,
        "untrained_descent": 0.0131,
        "random": 0.1185,
    }
    losses = {name: np.full((3, 4), mean) for name, mean in means.items()}
    searched = Searched(*np.zeros((3, 1)))
    arrays = Arrays(losses, {}, np.zeros(4), searched, searched, None, None)
    config = descent.Config(learner=LearnerConfig(num_examples=50), num_directions=1)
    summary = {f"{name}_loss": values.mean(axis=1) for name, values in losses.items()}
    summary |= dict.fromkeys(("learning_rate", "learning_rate_at_edge"), 0.1)
    section = losses_section(config, summary, arrays, "x")
    in_context, fine_tuned = section.verdict.split(" Fine-tuned, the loss ")
    assert in_context == (
        "In context, the loss 0.190 is worse than least squares, the best of 6 baselines, at "
        "6.0e-14, and than fine-tuned (0.118) and averaging (0.150). Nearest of 5 nulls: "
        "untrained, fine-tuned (0.0131), which beats it, as does random update (0.118)."
    )
    assert fine_tuned == (
        "0.118 is worse than least squares, the best of 6 baselines, at 6.0e-14. Nearest of 5 "
        "nulls: untrained, fine-tuned (0.0131), which beats it."
    )
    assert {"untrained, fine-tuned", "random update"} <= {row[0] for row in section.tables[0].rows}

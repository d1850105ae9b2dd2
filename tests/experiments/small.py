"""Every experiment with a configuration that runs in seconds to a minute, for tests of meshes."""

import dataclasses
import json
import shutil
from pathlib import Path
from unittest import mock

import numpy as np

from experiments.language import language_model, real_models
from experiments.language.checkpoint import run as checkpoint
from experiments.language.checkpoint.tiny import VOCAB_SIZE, make_tiny
from experiments.language.classification import run as classification
from experiments.language.compile import run as compiling
from experiments.language.composition import run as real_composition
from experiments.language.demonstrations import run as real_demonstrations
from experiments.language.kept import run as kept
from experiments.language.prompt_page import run as prompt_page
from experiments.language.real import measure as real_measure
from experiments.language.real import run as real
from experiments.language.real.arrays import Parity
from experiments.language.real.prompts import QUESTIONS
from experiments.language.sorting import run as sorting
from experiments.linear_attention.depth import run as depth
from experiments.linear_attention.von_oswald import run as von_oswald
from experiments.regression import (
    alignment,
    attribution,
    convergence,
    equivalence,
    paper,
    training,
)
from experiments.regression.composition import run as composition
from experiments.regression.demonstrations import run as demonstrations
from experiments.regression.descent import run as descent
from experiments.regression.garg import run as garg
from experiments.regression.reusable import run as reusable
from icl_jax.interop.tokenizer import save_tokenizer, train_bpe
from icl_jax.tasks.text import reference_texts
from tests.experiments import (
    test_composition,
    test_demonstrations,
    test_garg,
    test_language_model,
    test_linear_experiments,
    test_paper,
    test_real,
    test_reusable,
    test_sorting,
)

LEARNER, DEEP = test_paper.CONFIG.learner, test_paper.CONFIG.deep
LINEAR = dataclasses.replace(
    test_linear_experiments.LEARNER,
    training=dataclasses.replace(
        test_linear_experiments.TRAINING, num_steps=60, checkpoint_every=60
    ),
)
SKEWED = dataclasses.replace(LINEAR, input_range=None, variances=(2.0, 1.0, 0.7, 0.3))

#: What is not run, and why.
NOT_RUN = {"real_models": "fetches models and writes them into files; computes nothing"}


def experiments(folder):
    """Name -> module and configuration, of models that lie in a folder."""
    tiny, models = str(folder / "tiny"), str(folder / "models")
    return {
        "paper": (paper, dataclasses.replace(test_paper.CONFIG, num_prompts=16)),
        "training": (training, training.Config(num_prompts=64, learner=LEARNER)),
        "equivalence": (equivalence, equivalence.Config(num_prompts=16)),
        "convergence": (convergence, convergence.Config(num_prompts=32, learner=LEARNER)),
        "descent": (descent, descent.Config(num_prompts=16, num_search_prompts=8, learner=LEARNER)),
        "alignment": (alignment, alignment.Config(num_prompts=16, learner=DEEP)),
        "attribution": (attribution, attribution.Config(num_prompts=16, learner=LEARNER)),
        "garg": (garg, dataclasses.replace(test_garg.CONFIG, num_prompts=64)),
        "von_oswald": (
            von_oswald,
            von_oswald.Config(
                num_prompts=64,
                num_search_prompts=64,
                num_rates=11,
                num_optimum_prompts=400,
                learner=LINEAR,
                skewed=SKEWED,
            ),
        ),
        "depth": (
            depth,
            depth.Config(
                depths=(1, 2),
                num_prompts=64,
                num_search_prompts=64,
                num_rates=11,
                corrections=(0.0, 0.3),
                learner=LINEAR,
            ),
        ),
        # A weight that rounding does not choose.
        "reusable": (
            reusable,
            dataclasses.replace(test_reusable.CONFIG, num_prompts=8, weights=(0.1,)),
        ),
        "demonstrations": (
            demonstrations,
            dataclasses.replace(test_demonstrations.CONFIG, num_prompts=8, valued=4),
        ),
        "composition": (composition, dataclasses.replace(test_composition.CONFIG, num_prompts=8)),
        "language_model": (language_model, test_language_model.CONFIG),
        "sorting": (sorting, test_sorting.CONFIG),
        "checkpoint": (
            checkpoint,
            checkpoint.Config(
                checkpoint=tiny, prompts=f"{tiny}/prompts.jsonl", max_prompts=2, generate=4
            ),
        ),
        "classification": (
            classification,
            classification.Config(
                checkpoint=tiny, num_examples=1, num_prompts=8, num_search_prompts=4, num_rates=5
            ),
        ),
        "prompt_page": (
            prompt_page,
            prompt_page.Config(
                checkpoint=tiny, text="Ada built the lighthouse. Who built it? Ada."
            ),
        ),
        # Descent by LoRA goes on for as many seconds as the solution took.
        "compile": (
            compiling,
            compiling.Config(
                checkpoint=tiny, context=f"{tiny}/context.txt",
                lora=False, num_queries=8, held_out=4, asked=8,
            ),
        ),
        # In float32: by what bfloat16 rounds no meshes are compared.
        "real": (
            real,
            dataclasses.replace(
                test_real.CONFIG, models=models, names=("smollm2",), dtype=("float32",)
            ),
        ),
        "kept": (
            kept,
            dataclasses.replace(
                kept.Config.quick(), models=models,
                tasks=("past tense",), rank=2, calibration=4, held_out=2, asked=4,
            ),
        ),
        "real_composition": (
            real_composition,
            real_composition.Config(
                models, facts=2, stacked=(1, 2), texts=1, length=16, rank=2, written=1
            ),
        ),
        "real_demonstrations": (
            real_demonstrations,
            dataclasses.replace(
                real_demonstrations.Config.quick(), models=models,
                pool=4, asked=2, texts=2, length=32, players=3,
            ),
        ),
    }  # fmt: skip


NAMES = tuple(experiments(Path()))


def make_models(folder):
    """Writes a tiny random model, and what else the experiments read."""
    model = folder / "models" / "smollm2"
    make_tiny("llama", model, seed=0)
    shutil.copytree(model, folder / "tiny")
    # In tokens that are made for the questions there is room for them.
    asked = [f"{context}{question}" for context, question in QUESTIONS]
    save_tokenizer(model, train_bpe([*asked, reference_texts()["with"]], VOCAB_SIZE))
    sums = {path.name: real_models._sha256(path) for path in model.iterdir()}
    (model / real_models.CHECKSUMS).write_text(json.dumps(sums))
    (folder / "tiny" / "context.txt").write_text("Ada built the lighthouse in 1871. " * 3)


def run(name, folder, workdir):
    """Runs an experiment, of the models in ``folder``."""
    module, config = experiments(folder)[name]
    # Parity is with another library, on one device: tests/real has it.
    with mock.patch.object(real_measure, "parity", lambda *_: Parity(np.zeros(0))):
        module.run(config, workdir)

"""Does a language model's context do what fine-tuning on it does?

Classification prompts made of real rows, labels as words. On one side the model reads the
demonstrations and answers the query. On the other it is fine-tuned on the same demonstrations, each
a text whose label is to be predicted, by any optax optimiser on any of its weights, at the learning
rate that is best on held-out prompts, and answers the query alone. Their distributions over the
next token, what the query's last token attends to, and what its attention adds (the measures of Dai
et al. 2023, arXiv 2212.10559); where descent moves the MLP's first kernel, that update beside the
context's; with the nulls: the same architecture untrained, shuffled labels, a random update of the
same norm, another prompt's demonstrations.

    python -m experiments.classification --checkpoint=PATH_OR_NAME \\
        --workdir=runs/classification
    python -m experiments.classification --checkpoint=PATH_OR_NAME \\
        --data=digits \\
        --explicit.optimizer.name=adam --explicit.trains=mlp \\
        --workdir=runs/digits

Half a minute on 2 cores for the model that ``experiments.language_model`` makes. Expected of that
model, which is too small to learn in context: the context costs 0.3 nats (10.6 beside 10.4) and no
more answers are right than by chance; fine-tuning saves 7.5, to 2.9, about what shuffled labels and
another prompt's demonstrations save, too; and every similarity of the two is at its nulls or below.
"""

import dataclasses
import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.language.classification.report import (
    RUNS,
    WALKS,
    Answered,
    Arrays,
    names,
    sections,
    summarise,
)
from experiments.language.classification.sides import (
    FIRST_REACHED,
    Question,
    answers,
    compares_kernels,
    fine_tuned,
    label_tokens,
    measures,
    questions,
    random_part,
    update_cosines,
)
from experiments.language.room import check_room
from experiments.tools.comparisons import joined, with_nulls
from experiments.tools.conduct import Outcome, each, finish, measured, start
from experiments.tools.flags import LONE, UsageError, launch, option
from experiments.tools.trained import trained_part
from icl_jax import checks
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.compilations import run_once
from icl_jax.descent.explicit import ExplicitConfig
from icl_jax.descent.line_search import check_grid, rate_grid, tune_learning_rate
from icl_jax.dims import Array, Params
from icl_jax.interop.huggingface import Checkpoint, load
from icl_jax.interop.tokenizer import Tokenizer, load_tokenizer
from icl_jax.measures.nulls import another_prompts, shuffled_labels
from icl_jax.tasks.classification import LABELS, Classification

DataName = Literal["wine", "breast_cancer", "diabetes", "digits"]


@dataclass(frozen=True)
class Config:
    """The model, the prompts, and the descent."""

    checkpoint: str = option("", "folder or hub name of a causal language model (required)")
    data: DataName = option("wine", "rows that ship inside scikit-learn")
    labels: tuple[str, ...] = option((), "words for the classes; empty: the usual ones")
    num_features: int = option(3, "that a row is told by")
    num_examples: int = option(8, "demonstrations per prompt")
    num_prompts: int = option(64, "test prompts")
    num_search_prompts: int = option(32, "held-out prompts of the learning rate's line search")
    lowest_rate: float = option(1e-4, "of the line search")
    highest_rate: float = option(100.0, "of the line search")
    num_rates: int = option(19, "of the line search, evenly spaced in the logarithm")
    top_k: int = option(10, "tokens of the overlap")
    seed: int = option(0, "of the prompts, the untrained model, the nulls and the resampling")
    offline: bool = option(False, "hub names from the cache only")
    explicit: ExplicitConfig = field(
        default_factory=lambda: ExplicitConfig(trains="keys_and_values")
    )

    def __post_init__(self) -> None:
        for name in ("num_prompts", "num_search_prompts", "num_rates", "num_examples", "top_k"):
            checks.positive_int("classification", name, getattr(self, name))
        check_grid("classification", self.lowest_rate, self.highest_rate, self.num_rates)
        checks.at_least_two("classification", "num_prompts", self.num_prompts, LONE)
        Classification(self.data, self.num_features)
        if self.labels and len(self.labels) != len(LABELS[self.data]):
            raise ValueError(
                f"classification: labels must be {len(LABELS[self.data])} words for "
                f"data={self.data}, got {self.labels}."
            )
        steps = self.num_examples if self.explicit.batch == "one" else self.explicit.num_steps
        self.explicit.optimizer.make(1.0, steps)

    @property
    def words(self) -> tuple[str, ...]:
        """For the classes."""
        return self.labels or LABELS[self.data]

    @classmethod
    def quick(cls) -> "Config":
        """Fewer prompts and rates."""
        return cls(num_examples=4, num_prompts=16, num_search_prompts=8, num_rates=7)


def label_loss(logits_V: Array, labels_C: Array, answer: Array) -> tuple[Array, Array]:
    """The cross entropy of the answer's word, and whether it beats the other labels, () each."""
    loss = optax.softmax_cross_entropy_with_integer_labels(logits_V, labels_C[answer])
    best = jnp.argmax(logits_V[labels_C]).astype(answer.dtype)
    return loss, (best == answer).astype(logits_V.dtype)


@functools.partial(jax.jit, static_argnames=("model", "config"))
def search(
    model: LanguageModel,
    params: Params,
    prompts: Question,
    labels_C: Array,
    config: ExplicitConfig,
    rates_X: Array,
) -> Any:
    """The learning rate of the lowest loss on the queries."""

    def score(rate: Array) -> Array:
        def one(question: Question) -> Array:
            part = fine_tuned(model, params, config, question, rate)
            stacked = jax.tree.map(lambda leaf: leaf[None], part)
            logits_1V = answers(model, params, config, question, stacked).tuned.logits_V
            return label_loss(logits_1V[0], labels_C, question.answer)[0]

        return jnp.mean(jax.lax.map(one, prompts, batch_size=4))

    return tune_learning_rate(score, rates_X)


@functools.partial(jax.jit, static_argnames=("model", "config"))
def face_to_face(
    model: LanguageModel,
    params: Params,
    prompts: Question,
    labels_C: Array,
    config: Config,
    rate: Array,
    key: Array,
) -> dict[str, Any]:
    """Measures and their nulls but the untrained one, losses and accuracies: (B,) each."""
    explicit = config.explicit

    def one(inputs: tuple[Question, Question, Array]) -> dict[str, Any]:
        question, another, prompt_key = inputs
        shuffle_key, random_key = jax.random.split(prompt_key)
        confused = dataclasses.replace(
            question, labels_N=shuffled_labels(shuffle_key, question.labels_N)
        )
        lessons = jax.tree.map(lambda *leaves: jnp.stack(leaves), question, confused, another)
        parts = jax.vmap(lambda lesson: fine_tuned(model, params, explicit, lesson, rate))(lessons)
        before, _ = trained_part(model, params, explicit.trains)
        walk = random_part(random_key, before, jax.tree.map(lambda leaf: leaf[0], parts))
        parts = jax.tree.map(lambda leaf, last: jnp.concatenate([leaf, last[None]]), parts, walk)
        found = answers(model, params, explicit, question, parts)
        values = measures(found, question, explicit, config.top_k)
        if compares_kernels(model, explicit):
            values["update_cosine"] = update_cosines(model, params, found, parts)
        layers_WL = values.pop("layers")
        by_walk = {
            walk: {name: array[i] for name, array in values.items()} for i, walk in enumerate(WALKS)
        }
        logits = {
            "zero_shot": found.zero_shot.logits_V,
            "in_context": found.in_context.logits_V,
            **{walk: found.tuned.logits_V[i] for i, walk in enumerate(WALKS)},
        }
        told = {
            run: label_loss(logits_V, labels_C, question.answer) for run, logits_V in logits.items()
        }
        return {
            "measures": with_nulls(by_walk.pop("descent"), by_walk),
            "layers": {walk: layers_WL[i] for i, walk in enumerate(WALKS)},
            "runs": told,
        }

    keys_B = jax.random.split(key, prompts.answer.shape[0])
    return jax.lax.map(one, (prompts, another_prompts(prompts), keys_B), batch_size=4)


def prepare(config: Config) -> tuple[Checkpoint, Question]:
    """The checkpoint, if it can be asked anything, and what it is asked.

    Raises:
      UsageError: it is missing, damaged, has no room for the demonstrations, or cannot be compared
        as the configuration says.
    """
    if not config.checkpoint:
        raise UsageError(
            "--checkpoint is missing: a folder or a hub name. Make one with python -m "
            "experiments.language_model, or a random one with python -m experiments.checkpoint "
            "--make_tiny=FAMILY."
        )
    try:
        checkpoint = load(config.checkpoint, dtype=jnp.float32, offline=config.offline)
        label_tokens(load_tokenizer(checkpoint.folder), config.words)
    except (ValueError, OSError, ImportError) as error:
        raise UsageError(str(error)) from error
    if checkpoint.model.head == "none":
        raise UsageError(
            f"--checkpoint: a {checkpoint.family} model has no head that says a next token. Choose "
            "a causal language model."
        )
    if len(checkpoint.model.blocks) <= FIRST_REACHED.get(config.explicit.trains, 0):
        raise UsageError(
            f"--explicit.trains={config.explicit.trains} changes no attention of a model with one "
            "layer. Choose keys_and_values, attention, blocks or everything."
        )
    asked = draw(config, load_tokenizer(checkpoint.folder))
    check_room("--num_examples", checkpoint.model, asked.context_T.shape[1])
    return checkpoint, asked


def draw(config: Config, tokenizer: Tokenizer) -> Question:
    """The test prompts, and behind them those of the line search."""
    rng = np.random.default_rng(config.seed)

    def sample(split: str, count: int) -> list[Any]:
        task = Classification(config.data, config.num_features, split)
        return task.sample(rng, count, config.num_examples)

    drawn = [*sample("test", config.num_prompts), *sample("train", config.num_search_prompts)]
    return questions(tokenizer, drawn, config.words)


def measure(config: Config, checkpoint: Checkpoint, asked: Question) -> Arrays:
    """Both sides in the checkpoint; both again in the same architecture before training."""
    labels_C = jnp.asarray(label_tokens(load_tokenizer(checkpoint.folder), config.words))
    prompts = jax.tree.map(lambda leaf: leaf[: config.num_prompts], asked)
    held_out = jax.tree.map(lambda leaf: leaf[config.num_prompts :], asked)
    key = jax.random.key(config.seed)
    model: Any = checkpoint.model
    tokens_Q = jnp.zeros(2, jnp.int32)
    fresh = run_once(model.init, jax.random.fold_in(key, 1), tokens_Q)["params"]
    rates_X = rate_grid(config.lowest_rate, config.highest_rate, config.num_rates, jnp.float32)
    sides, searches = [], []
    for params in each((checkpoint.params, fresh), "trained and untrained"):
        searches.append(search(model, params, held_out, labels_C, config.explicit, rates_X))
        rate = searches[-1].best_rate
        sides.append(face_to_face(model, params, prompts, labels_C, config, rate, key))
    mine, null = sides
    runs = {**mine["runs"], **{f"untrained_{name}": run for name, run in null["runs"].items()}}
    return Arrays(
        context_tokens=np.asarray(prompts.context_last + 1),
        rates_X=np.asarray(rates_X),
        rate=searches[0].best_rate,
        rate_at_edge=searches[0].at_edge,
        untrained_rate=searches[1].best_rate,
        runs={name: Answered(*runs[name]) for name in RUNS},
        measures=joined(mine["measures"], "untrained", null["measures"]),
        layers={**mine["layers"], "untrained": null["layers"]["descent"]},
    )


def run(config: Config, workdir: Path) -> Outcome:
    """Loads the checkpoint, compares, writes summary and report."""
    checkpoint, asked = prepare(config)
    record = start(workdir, "classification", config)
    arrays = measured(
        record,
        Arrays,
        lambda: measure(config, checkpoint, asked),
        names=names(compares_kernels(checkpoint.model, config.explicit)),
    )
    outcome = Outcome(summarise(config, arrays), sections(config, arrays))
    return finish(record, "A language model, in context and fine-tuned", __doc__, outcome)


if __name__ == "__main__":
    launch(Config, run, __doc__)

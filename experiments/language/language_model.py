"""Can a few minutes on two cores make a language model to try things on?

Trains a small Llama-style model on the reference of the Python language (English text that every
Python carries), compares it on held-out topics with what counting gives, and saves it in Hugging
Face's format: for ``transformers``, and for ``experiments.checkpoint``, which then shows whether a
trained model answers without its context.

    python -m experiments.language_model --workdir=runs/language_model
    python -m experiments.checkpoint \\
        --checkpoint=runs/language_model/checkpoint \\
        --prompts=runs/language_model/prompts.jsonl --workdir=runs/trained \\
        --generate=40

About three and a half minutes on 2 cores. Expected: 3.5 nats per token (1.85 bits per byte) on
topics that it never saw, where counting pairs of tokens gives 4.2. The text is small, and a part of
it is learned by heart: 1.7 nats in training.
"""

import dataclasses
import functools
import json
import math
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.tools.comparisons import against_best
from experiments.tools.conduct import Outcome, finish, measured, start
from experiments.tools.flags import launch, option
from icl_jax import checks
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.dims import Array, Params
from icl_jax.interop.families import llama
from icl_jax.interop.huggingface import load
from icl_jax.interop.options import Options
from icl_jax.interop.saving import save
from icl_jax.interop.tokenizer import Tokenizer, load_tokenizer, save_tokenizer, train_bpe
from icl_jax.language.generation import generate
from icl_jax.language.sampling import Sampling
from icl_jax.records import Run, atomic_file
from icl_jax.report.figures import Curve, Panel, curves
from icl_jax.report.page import Section, Table, number
from icl_jax.tasks.text import all_windows, random_windows, reference_texts, split_texts
from icl_jax.training.config import TrainingConfig, make_optimizer, usual_optimizer
from icl_jax.training.loop import train
from icl_jax.training.step import initial_params

#: Adam with a decay of the weights, by so many steps of warm-up.
decaying = functools.partial(usual_optimizer, "adamw", ("weight_decay=0.1",))


@dataclass(frozen=True)
class Config:
    """The model, its tokens, and how it is trained."""

    vocab_size: int = option(1024, "of the byte-level BPE tokenizer")
    length: int = option(256, "tokens of a training window")
    width: int = option(128, "of the residual stream")
    hidden_width: int = option(352, "of the gated MLP")
    num_layers: int = option(4, "blocks")
    num_heads: int = option(4, "query heads; half as many of keys and values")
    num_prompts: int = option(8, "prompts that are written for experiments.checkpoint")
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(
            num_steps=1000,
            batch_size=8,
            learning_rate=4e-3,
            steps_per_call=10,
            checkpoint_every=100,
            optimizer=decaying(warmup_steps=40),
        )
    )

    def __post_init__(self) -> None:
        counts = ("length", "width", "hidden_width", "num_layers", "num_heads", "num_prompts")
        for name in ("vocab_size", *counts):
            checks.positive_int("language_model", name, getattr(self, name))
        if self.num_heads % 2 or self.width % (2 * self.num_heads):
            raise ValueError(
                f"language_model: num_heads={self.num_heads} must be even, and twice as many must "
                f"divide width={self.width}."
            )

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a training batch."""
        return self.training.batch_size * self.length

    @classmethod
    def quick(cls) -> "Config":
        """A smaller model, trained for half a minute."""
        config = cls(vocab_size=512, width=64, hidden_width=176, num_layers=3, num_prompts=4)
        training = dataclasses.replace(
            config.training, num_steps=200, optimizer=decaying(warmup_steps=20)
        )
        return dataclasses.replace(config, training=training)


def architecture(config: Config) -> dict[str, Any]:
    """config.json: a small Llama."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.hidden_width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_heads // 2,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }


def next_token_loss(model: LanguageModel, params: Params, tokens_T: Array) -> Array:
    """The mean cross entropy of every token but the first, (), in nats."""
    logits: Any = model.apply({"params": params}, tokens_T[:-1])
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, tokens_T[1:]))


def training_loss(
    model: LanguageModel, corpus_N: np.ndarray, config: Config
) -> Callable[[Params, Array], tuple[Array, dict[str, Array]]]:
    """The loss on fresh windows of a text."""

    def loss(params: Params, key: Array) -> tuple[Array, dict[str, Array]]:
        windows_BT = random_windows(
            key,
            jnp.asarray(corpus_N),
            num_windows=config.training.batch_size,
            length=config.length + 1,
        )
        losses_B = jax.vmap(lambda tokens_T: next_token_loss(model, params, tokens_T))(windows_BT)
        return jnp.mean(losses_B), {}

    return loss


def test_loss(model: LanguageModel, params: Params, windows_BT: np.ndarray) -> float:
    """The mean cross entropy over all windows, in nats per token."""
    one = jax.jit(lambda params, tokens_T: next_token_loss(model, params, tokens_T))
    # Read one by one: on a mesh of a CPU's devices many that wait at once block each other.
    return float(np.mean([float(one(params, jnp.asarray(window))) for window in windows_BT]))


def counted_losses(
    corpus_N: np.ndarray, windows_BT: np.ndarray, vocab_size: int
) -> dict[str, float]:
    """What counting gives: all tokens alike, by frequency, and by frequency after the one before.

    Counts of pairs are mixed with those of single tokens in the proportion that suits the training
    text's own last tenth.
    """
    single_V = np.bincount(corpus_N, minlength=vocab_size) + 1.0
    single_V /= single_V.sum()
    pairs_VV = np.zeros((vocab_size, vocab_size))
    cut = len(corpus_N) * 9 // 10
    np.add.at(pairs_VV, (corpus_N[: cut - 1], corpus_N[1:cut]), 1.0)

    def pair_loss(before: np.ndarray, after: np.ndarray, weight: float) -> float:
        counts = pairs_VV[before].sum(axis=-1)
        mixed = (pairs_VV[before, after] + weight * single_V[after]) / (counts + weight)
        return float(-np.mean(np.log(mixed)))

    weights = (1.0, 3.0, 10.0, 30.0, 100.0)
    best = min(weights, key=lambda w: pair_loss(corpus_N[cut:-1], corpus_N[cut + 1 :], w))
    before, after = windows_BT[:, :-1].ravel(), windows_BT[:, 1:].ravel()
    return {
        "uniform_loss": math.log(vocab_size),
        "unigram_loss": float(-np.mean(np.log(single_V[after]))),
        "bigram_loss": pair_loss(before, after, best),
    }


def encoded(tokenizer: Tokenizer, texts: Sequence[str]) -> np.ndarray:
    """Texts one after another, each between BOS and EOS."""
    pieces = [np.append(tokenizer.encode(text).tokens_T, tokenizer.eos_ids[0]) for text in texts]
    return np.concatenate(pieces).astype(np.int32)


def write_prompts(file: Path, texts: Sequence[str], count: int) -> list[dict[str, str]]:
    """Stretches of held-out topics: a paragraph to remove, and a line to keep.

    Together they are shorter than the windows of the training, beyond which positions are new. Each
    topic gives its beginning before any gives more.
    """
    words = [text.split(" ") for text in texts]
    stretches = [
        each[start : start + 65]
        for start in range(0, max(map(len, words)), 65)
        for each in words
        if len(each) >= start + 65
    ]
    lines = [
        {"name": f"prompt {i}", "remove": " ".join(each[:55]) + " ", "keep": " ".join(each[55:])}
        for i, each in enumerate(stretches[:count], start=1)
    ]
    with atomic_file(file) as handle:
        handle.write("".join(json.dumps(line) + "\n" for line in lines).encode())
    return lines


def save_checkpoint(run: Run, config: Config, model: Any, params: Params, tokenizer: Any) -> Path:
    """The trained model and its tokenizer, in Hugging Face's format."""
    folder = run.path("checkpoint")
    shutil.rmtree(folder, ignore_errors=True)  # Half of one, from a killed run.
    save(folder, model, params, architecture(config))
    save_tokenizer(folder, tokenizer)
    return folder


@dataclass(frozen=True)
class Numbers:
    """Of the trained model and its text, each ().

    Attributes:
      train_tokens, test_tokens, num_parameters: how many.
      bytes_per_token: of the test text.
      final_loss, initial_loss: after and before training, nats per token of the test text.
      uniform_loss, unigram_loss, bigram_loss: of counting.
      reload_difference: the largest, of a logit, after reading the checkpoint back.
    """

    train_tokens: np.ndarray
    test_tokens: np.ndarray
    bytes_per_token: np.ndarray
    num_parameters: np.ndarray
    final_loss: np.ndarray
    initial_loss: np.ndarray
    uniform_loss: np.ndarray
    unigram_loss: np.ndarray
    bigram_loss: np.ndarray
    reload_difference: np.ndarray


@dataclass(frozen=True)
class Arrays:
    """The numbers; and of the training (S,) steps and their losses, in nats per token."""

    numbers: Numbers
    step: np.ndarray
    loss: np.ndarray


#: What the loss is held against -> its name: baselines, and the null.
COUNTS: Mapping[str, str] = {
    "bigram": "counts of pairs",
    "unigram": "counts of tokens",
    "uniform": "uniform",
}
BEFORE = "before training"
LEVELS: Mapping[str, str] = {**COUNTS, "initial": BEFORE}


def measure(config: Config, run: Run) -> Arrays:
    """Trains, tests, saves, reads back, and writes a little."""
    train_texts, test_texts = split_texts(reference_texts())
    if not run.has("tokenizer/tokenizer.json"):
        save_tokenizer(run.path("tokenizer"), train_bpe(train_texts, config.vocab_size))
    tokenizer = load_tokenizer(run.path("tokenizer"))
    corpus_N, test_N = (encoded(tokenizer, texts) for texts in (train_texts, test_texts))
    windows_BT = all_windows(test_N, config.length + 1)
    model = llama.build(Options(architecture(config)))

    def init(key: Array) -> Params:
        params: Params = model.init(key, jnp.zeros(2, jnp.int32))["params"]
        return params

    key = jax.random.key(config.training.seed)
    trained = train(
        init,
        training_loss(model, corpus_N, config),
        make_optimizer(config.training),
        key,
        num_steps=config.training.num_steps,
        steps_per_call=config.training.steps_per_call,
        checkpoint_every=config.training.checkpoint_every,
        workdir=run.workdir,
    )
    folder = save_checkpoint(run, config, model, trained.params, tokenizer)
    reloaded = load(folder)
    prompts = write_prompts(run.path("prompts.jsonl"), test_texts, config.num_prompts)
    first = tokenizer.encode(prompts[0]["remove"] + prompts[0]["keep"]).tokens_T
    untrained = initial_params(init, key)
    texts = {
        "greedy": generate(model, trained.params, first, 60),
        "sampled": generate(
            model, trained.params, first, 60, sampling=Sampling(0.8, top_p=0.95), key=key
        ),
        f"greedy, {BEFORE}": generate(model, untrained, first, 60),
    }
    logits, again = (
        np.asarray(each.apply({"params": params}, jnp.asarray(first)))
        for each, params in ((model, trained.params), (reloaded.model, reloaded.params))
    )
    numbers = {
        "train_tokens": len(corpus_N),
        "test_tokens": len(test_N),
        "bytes_per_token": sum(len(text.encode()) for text in test_texts) / len(test_N),
        "num_parameters": sum(leaf.size for leaf in jax.tree.leaves(trained.params)),
        "final_loss": test_loss(model, trained.params, windows_BT),
        "initial_loss": test_loss(model, untrained, windows_BT),
        **counted_losses(corpus_N, windows_BT, config.vocab_size),
        "reload_difference": float(np.max(np.abs(logits - again))),
    }
    run.save_json("texts.json", {name: tokenizer.decode(ids) for name, ids in texts.items()})
    return Arrays(
        Numbers(**{name: np.asarray(value) for name, value in numbers.items()}),
        trained.metrics["step"],
        trained.metrics["loss"],
    )


def summarise(arrays: Arrays) -> dict[str, Any]:
    """Losses in nats per token, and the final one in bits per byte."""
    summary = {name: float(value) for name, value in vars(arrays.numbers).items()}
    per_byte = summary["final_loss"] / math.log(2) / summary["bytes_per_token"]
    python = ".".join(map(str, sys.version_info[:2]))
    return {**summary, "bits_per_byte": per_byte, "text": f"pydoc_data of Python {python}"}


def sections(summary: Mapping[str, Any], arrays: Arrays, texts: Any) -> list[Section]:
    """The training curve among its baselines, and what the model writes."""
    steps, losses = arrays.step, arrays.loss
    lines = [Curve("training batches", steps, losses)]
    for key, name in LEVELS.items():
        level = np.full(2, summary[f"{key}_loss"])
        lines.append(Curve(name, [steps[0], steps[-1]], level, role="control"))
    rows = [("trained", summary["final_loss"])]
    rows += [(name, summary[f"{key}_loss"]) for key, name in LEVELS.items()]
    return [
        Section(
            "A small model of a small text",
            f"{int(summary['num_parameters']):,} parameters, {int(summary['train_tokens']):,} "
            f"tokens of {summary['text']}. On topics that it never saw it needs "
            f"{number(summary['bits_per_byte'])} bits per byte. Read back from its "
            f"files, its logits differ by {number(summary['reload_difference'])}.",
            figure=curves([Panel("", lines, "training step", "loss in nats per token")]),
            tables=[Table(("predictor", "held-out loss in nats per token"), rows)],
            verdict=against_best(
                "The held-out loss, in nats per token,",
                summary["final_loss"],
                {name: summary[f"{key}_loss"] for key, name in COUNTS.items()},
                {BEFORE: summary["initial_loss"]},
            ),
            anchor="loss",
        ),
        Section(
            "What it writes",
            "After the first prompt of `prompts.jsonl`, a held-out topic: the most probable "
            f"tokens, and a draw; and the most probable tokens {BEFORE}.",
            tables=[Table(("sampling", "text"), list(texts.items()))],
            verdict="Of the language itself judge for yourself: no number says it but the loss, "
            f"{number(summary['final_loss'])} nats per token ({BEFORE}: "
            f"{number(summary['initial_loss'])}).",
            anchor="text",
        ),
    ]


def run(config: Config, workdir: Path) -> Outcome:
    """Trains the model, or finds it; reports."""
    records = start(workdir, "language_model", config)
    arrays = measured(records, Arrays, lambda: measure(config, records))
    summary = summarise(arrays)
    outcome = Outcome(summary, sections(summary, arrays, records.load_json("texts.json")))
    return finish(records, "A language model to try things on", __doc__, outcome)


if __name__ == "__main__":
    launch(Config, run, __doc__)

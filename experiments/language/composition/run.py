"""Do facts that are compiled one by one add up in a real model, and what do they disturb?

Made-up facts ("In Velmora they grow lemons."), each compiled in closed form from what the model
itself says behind it to a few questions; then a question in new words is asked without it. A fact's
patch is used for another fact, in the next layer, at another position; patches are stacked and
compared with one patch compiled of all facts at once, and with that in another order. What is
forgotten is the KL divergence from the plain model on text about something else.

    python -m experiments.real_models --workdir=runs/models
    python -m experiments.real_composition --models=runs/models \\
        --workdir=runs/facts

Two minutes on 2 cores. Expected, of SmolLM2 135M: asked in new words, all eight answers are right
with the fact's own patch and none without it (-1.2 against -9.4 nats; 0.93 of what the fact in the
context gives); another fact's patch gains 1.0 nats. Stacked as they are, eight patches say nothing
any more (-18 nats) and move other text by 11 nats per token; one patch of all facts moves it by
0.26, and has one answer right, where the model behind all facts has two.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.language.composition.facts import FACTS, FITTED, facts, ordinary
from experiments.language.composition.report import (
    NAMES,
    Arrays,
    sections,
    summarise,
)
from experiments.language.kept.run import BOS
from experiments.language.real_models import SOURCES, real_model
from experiments.tools.conduct import Outcome, finish, measured, start
from experiments.tools.flags import launch, option
from icl_jax import checks
from icl_jax.dynamics.composition import compare_static, move_layers
from icl_jax.interop.huggingface import Checkpoint, load
from icl_jax.interop.tokenizer import Tokenizer, load_tokenizer
from icl_jax.language.compile import compile_context, static_logits
from icl_jax.language.prompt import full_logits
from icl_jax.language.study import self_study
from icl_jax.measures.distributions import kl_divergence
from icl_jax.patches.fit import Fit
from icl_jax.patches.static_patch import StaticPatch, combine_static, scale_static
from icl_jax.stack.layers import PerLayer

Patches = PerLayer[StaticPatch]


@dataclass(frozen=True)
class Config:
    """Which model, and how many facts."""

    models: str = option("", "folder of experiments.real_models; made in the workdir if left out")
    name: str = option("smollm2", "of the model")
    facts: int = option(len(FACTS), "to compile")
    stacked: tuple[int, ...] = option((1, 2, 4, 8), "facts whose patches are added")
    written: int = option(3, "tokens that the model writes behind a fitted question")
    rank: int = option(16, "of a fact's update")
    weight: float = option(0.1, "of the ridge")
    texts: int = option(4, "about something else")
    length: int = option(96, "tokens of each")
    seed: int = option(0, "of the draws")

    def __post_init__(self) -> None:
        where = "real_composition"
        checks.one_of(where, "name", self.name, tuple(SOURCES))
        for name in ("written", "rank", "texts", "length"):
            checks.positive_int(where, name, getattr(self, name))
        checks.positive(where, "weight", self.weight)
        checks.at_least_two(where, "facts", self.facts, "one has no interval")
        if self.facts > len(FACTS):
            raise ValueError(f"{where}: facts must be at most {len(FACTS)}, got {self.facts}.")
        if not self.stacked or self.stacked[0] != 1 or max(self.stacked) > self.facts:
            raise ValueError(
                f"{where}: stacked={self.stacked} must begin with 1 and go up to facts="
                f"{self.facts} at most."
            )

    @classmethod
    def quick(cls) -> "Config":
        """Two facts."""
        return cls(facts=2, stacked=(1, 2), texts=1, length=32)


def measure(config: Config, checkpoint: Checkpoint, tokenizer: Tokenizer, bos: int) -> Arrays:
    """Every fact compiled and asked about, alone and together."""
    made = facts(tokenizer, config.facts)
    model, params = checkpoint.model, checkpoint.params
    everything = range(config.facts)

    def compiled(which: Sequence[int]) -> Patches:
        """Facts as one context, in this order."""
        context = np.concatenate([made.stated[one] for one in which])
        stems = [stem for one in sorted(which) for stem in made.fitted[one]]
        texts = self_study(
            model, params, context, stems, config.written, jax.random.key(config.seed), bos=bos
        )
        fit = Fit(rank=config.rank)
        return compile_context(
            model, params, context, texts, bos=bos, fit=fit, weight=config.weight
        )

    def asked(
        questions: Sequence[np.ndarray],
        answers: np.ndarray,
        patches: Patches | None = None,
        context: Sequence[int] = (),
    ) -> tuple[np.ndarray, np.ndarray]:
        """Log-probabilities of the answers, and whether they are the most probable ones."""
        front = [np.array([bos]), *(made.stated[one] for one in context)]
        texts = [np.concatenate([*front, one]).astype(np.int32) for one in questions]
        read = [np.array([len(one) - 1]) for one in texts]
        if patches is None:
            found = full_logits(model, params, texts, read)
        else:
            found = static_logits(model, params, texts, read, patches)
        logits_BV = jnp.concatenate(found).astype(jnp.float32)
        chances_BV = np.asarray(jax.nn.log_softmax(logits_BV, axis=-1))
        places = np.arange(len(questions))
        return chances_BV[places, answers], np.argmax(chances_BV, axis=-1) == answers

    each = [compiled([one]) for one in everything]
    whole = compiled(list(everything))
    backwards = compiled(list(everything)[::-1])
    others = [each[(one + 1) % config.facts] for one in everything]

    def by_fact(questions: Sequence[np.ndarray], patches: Sequence[Patches] | None) -> Any:
        """Each fact asked about by its own entry of ``patches``; without any, behind itself."""
        found = [
            asked(
                [questions[one]],
                made.answers[one : one + 1],
                None if patches is None else patches[one],
                context=[one] if patches is None else (),
            )
            for one in everything
        ]
        chances, rights = zip(*found, strict=True)
        return np.concatenate(chances), np.concatenate(rights)

    alone, alone_right = asked(made.new, made.answers)
    behind_alone, _ = asked(made.behind, made.answers)
    full, full_right = asked(made.new, made.answers, context=list(everything))
    runs = {
        "none": (alone, alone_right),
        "context": (full, full_right),
        "own": by_fact(made.new, each),
        "own_context": by_fact(made.new, None),
        "another": by_fact(made.new, others),
        "position": by_fact(made.behind, each),
        "position_none": (behind_alone, np.zeros(config.facts, bool)),
        "together": asked(made.new, made.answers, whole),
        "backwards": asked(made.new, made.answers, backwards),
    }
    if len(each[0].segments) == 1 and len(each[0].segments[0]) == 1:
        runs["layer"] = by_fact(made.new, [move_layers(one, 1) for one in each])
    else:
        runs["layer"] = (np.full(config.facts, np.nan), np.zeros(config.facts, bool))

    stacked, lone, averaged, missing, disturbed = [], [], [], [], []
    texts = ordinary(tokenizer, config.texts, config.length, bos)
    for count in config.stacked:
        first = combine_static(*each[:count]) if count > 1 else each[0]
        questions, answers = made.new[:count], made.answers[:count]
        stacked.append(asked(questions, answers, first)[0].mean())
        lone.append(runs["own"][0][:count].mean())
        averaged.append(asked(questions, answers, scale_static(first, 1 / count))[0].mean())
        disturbed.append(_disturbed(checkpoint, texts, first))
        rest = [asked([made.new[one]], made.answers[one : one + 1], first)[0][0]
                for one in everything if one >= count]  # fmt: skip
        missing.append(np.mean(rest) if rest else np.nan)
    total = combine_static(*each)
    agreed = {
        "sum": _cosines(total, whole),
        "order": _cosines(backwards, whole),
        "another": _cosines(each[1], each[0]),
        "one": _cosines(each[0], whole),
    }
    return Arrays(
        log_chance={name: pair[0] for name, pair in runs.items()},
        right={name: pair[1] for name, pair in runs.items()},
        stacked=np.array(stacked),
        lone=np.array(lone),
        averaged=np.array(averaged),
        missing=np.array(missing),
        disturbed=np.stack(disturbed),
        disturbed_together=_disturbed(checkpoint, texts, whole),
        agreed=agreed,
    )


def _disturbed(checkpoint: Checkpoint, texts: Sequence[np.ndarray], patches: Patches) -> np.ndarray:
    """KL divergence (texts,) from the plain model to the patched, nats per token."""
    read = [np.arange(len(one)) for one in texts]
    model, params = checkpoint.model, checkpoint.params
    plain = full_logits(model, params, texts, read)
    changed = static_logits(model, params, texts, read, patches)
    return np.array(
        [float(jnp.mean(kl_divergence(a, b))) for a, b in zip(plain, changed, strict=True)]
    )


def _cosines(first: Patches, second: Patches) -> np.ndarray:
    """Of the layers (L, 2): input side, down kernel."""
    found = compare_static(first, second)
    rows = [
        [float(one.cosine) for one in (layer.input, layer.down) if one is not None]
        for layer in found
    ]
    return np.array(rows)


def run(config: Config, workdir: Path) -> Outcome:
    """Compiles the facts, adds them up, asks, and reports."""
    records = start(workdir, "real_composition", config)
    models = Path(config.models) if config.models else workdir / "models"

    def measure_all() -> Arrays:
        folder = real_model(config.name, models)
        checkpoint = load(folder, dtype=jnp.float32)
        return measure(config, checkpoint, load_tokenizer(folder), BOS[config.name])

    arrays = measured(records, Arrays, measure_all, names=NAMES)
    asks = len(FITTED)
    outcome = Outcome(summarise(config, arrays), sections(config, arrays, asks))
    return finish(records, "Facts as weights, added up", __doc__, outcome)


if __name__ == "__main__":
    launch(Config, run, __doc__)

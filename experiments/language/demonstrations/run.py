"""Which demonstrations of a prompt does a real model need, and how much does each teach?

Sixteen demonstrations stand in front of a question. Four are chosen, by what they add to the update
of the weights (its parts are exact, and one run gives them all), and the question is asked behind
these alone: beside leave-one-out, attention, a gradient, and random fours. Nobody sees the right
answer. Then single tokens: which are enough. Shapley values of a few demonstrations. And on running
text: how much one more token still changes the weights.

    python -m experiments.real_models --workdir=runs/models
    python -m experiments.real_demonstrations --models=runs/models \\
        --workdir=runs/demonstrations

About six minutes of processor time for a task, so some twenty in all (``--quick``: one and a
quarter). A killed run goes on behind the last task, and more tasks can be asked for later.
Expected, of SmolLM2 135M: chosen by the update, four of sixteen are better than random fours on
translation (0.29 nats, 0.15 to 0.43) and antonyms (0.35, 0.17 to 0.54), and not on labels (0.04,
-0.24 to 0.27); leave-one-out is the best rival (0.43 over all). Of single tokens attention finds
better ones than the update (3.1 against 0.6 nats over random, of a quarter of them), and shares of
the update do not rank demonstrations as their Shapley values do (Kendall's tau -0.11; leave-one-out
0.51). Steps of the weights do not fall like 1/i on running text.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.language.demonstrations.learned import Learned, learned
from experiments.language.demonstrations.prompts import Asked, asked_prompts
from experiments.language.demonstrations.report import (
    SAID,
    TOKEN_WAYS,
    WAYS,
    Arrays,
    Valued,
    names,
    sections,
    summarise,
)
from experiments.language.demonstrations.sides import left_out, log_chances, scores, shapley
from experiments.language.kept.pairs import PAIRS
from experiments.language.kept.run import BOS
from experiments.language.real_models import SOURCES, real_model
from experiments.tools.conduct import Outcome, each, finish, measured, start
from experiments.tools.flags import launch, option
from experiments.tools.machine import forget_programs
from icl_jax import checks
from icl_jax.interop.huggingface import Checkpoint, load
from icl_jax.interop.tokenizer import Tokenizer, load_tokenizer
from icl_jax.language.prompt import alone_logits


@dataclass(frozen=True)
class Config:
    """Which model and tasks, and how much of everything."""

    models: str = option("", "folder of experiments.real_models; made in the workdir if left out")
    name: str = option("smollm2", "of the model")
    tasks: tuple[str, ...] = option(("translation", "antonyms", "labels"), "to ask")
    pool: int = option(16, "demonstrations to choose from")
    chosen: int = option(4, "of them")
    asked: int = option(14, "questions of each task")
    draws: int = option(8, "random choices, for each question")
    shares: tuple[float, ...] = option((0.25, 0.5), "of the demonstrations' tokens to keep")
    players: int = option(6, "first demonstrations that get Shapley values")
    orders: int = option(12, "of these players")
    valued: int = option(2, "questions of each task with Shapley values")
    texts: int = option(6, "of running text")
    length: int = option(256, "tokens of each")
    first: int = option(8, "the first step from which the fall is fitted")
    seed: int = option(0, "of the draws")

    def __post_init__(self) -> None:
        where = "real_demonstrations"
        checks.one_of(where, "name", self.name, tuple(SOURCES))
        for task in self.tasks:
            checks.one_of(where, "tasks", task, tuple(PAIRS))
        for name in ("pool", "chosen", "players", "orders", "length", "first"):
            checks.positive_int(where, name, getattr(self, name))
        for name in ("asked", "draws", "orders", "texts"):
            checks.at_least_two(where, name, getattr(self, name), "one has no interval")
        for name in ("chosen", "players"):
            if getattr(self, name) > self.pool:
                raise ValueError(
                    f"{where}: {name}={getattr(self, name)} are more than pool={self.pool}. Ask "
                    "for fewer, or for a larger pool."
                )
        if self.valued > self.asked:
            raise ValueError(f"{where}: valued must be at most asked={self.asked}.")
        if self.length < 4 * self.first:
            raise ValueError(
                f"{where}: length={self.length} must be four times first={self.first} or more."
            )
        for share in self.shares:
            if not 0 < share < 1:
                raise ValueError(f"{where}: shares must lie between 0 and 1, got {share}.")
        most = min(len(PAIRS[task]) for task in self.tasks)
        if self.pool + self.asked > most:
            raise ValueError(
                f"{where}: pool and asked are {self.pool + self.asked} pairs together, and a task "
                f"has {most}. Ask for fewer."
            )

    @classmethod
    def quick(cls) -> "Config":
        """One task, few questions, short texts."""
        return cls(
            tasks=("past tense",), pool=8, chosen=2, asked=3, draws=2, players=3, orders=2,
            valued=1, texts=2, length=64,
        )  # fmt: skip


def measure(
    config: Config, checkpoint: Checkpoint, tokenizer: Tokenizer, task: str, bos: int
) -> Arrays:
    """One task: every question in turn."""
    prompts = asked_prompts(tokenizer, task, pool=config.pool, asked=config.asked, bos=bos)
    found = [_question(config, checkpoint, prompt, number) for number, prompt in enumerate(prompts)]
    valued = [
        _valued(config, checkpoint, prompt, number, one)
        for number, (prompt, one) in enumerate(zip(prompts[: config.valued], found, strict=False))
    ]

    def stacked(name: str) -> np.ndarray:
        return np.stack([one[name] for one in found])

    def by_way(name: str, ways: tuple[str, ...]) -> dict[str, np.ndarray]:
        return {way: np.stack([one[name][way] for one in found]) for way in ways}

    return Arrays(
        none=stacked("none"),
        full=stacked("full"),
        chosen=by_way("chosen", WAYS),
        random=stacked("random"),
        right=by_way("right", (*WAYS, "none", "full", "random")),
        picked=by_way("picked", WAYS),
        cosine=stacked("cosine"),
        alike=stacked("alike"),
        tokens=by_way("tokens", (*TOKEN_WAYS, "random")),
        valued=Valued(*map(np.stack, zip(*valued, strict=True))) if valued else None,
    )


def _question(config: Config, checkpoint: Checkpoint, prompt: Asked, number: int) -> dict[str, Any]:
    rng = np.random.default_rng([config.seed, number])
    full_V = log_chances(checkpoint, [prompt.tokens()])[0]
    own = int(np.argmax(full_V))
    seen = scores(checkpoint, prompt, own, config.chosen)
    ranked = {
        **seen.demonstrations,
        "answer": left_out(checkpoint, prompt, own, float(full_V[own])),
    }
    picked = {way: np.argsort(-ranked[way])[: config.chosen] for way in WAYS if way != "update"}
    picked["update"] = seen.greedy
    drawn = [rng.choice(config.pool, config.chosen, replace=False) for _ in range(config.draws)]
    sets: list[Any] = [*(picked[way] for way in WAYS), *drawn, []]
    chances_XV = log_chances(checkpoint, [prompt.tokens(one) for one in sets])
    chance_X = chances_XV[:, prompt.answer]
    right_X = np.argmax(chances_XV, axis=-1) == prompt.answer
    count = len(WAYS)
    return {
        "none": chance_X[-1],
        "full": full_V[prompt.answer],
        "chosen": dict(zip(WAYS, chance_X, strict=False)),
        "random": chance_X[count:-1],
        "right": {
            **dict(zip(WAYS, right_X, strict=False)),
            "none": right_X[-1],
            "full": np.array(own == prompt.answer),
            "random": right_X[count:-1],
        },
        "picked": {way: np.sort(picked[way]) for way in WAYS},
        "cosine": np.array(seen.cosine),
        "alike": np.array(seen.alike),
        "tokens": _tokens(config, checkpoint, prompt, seen.tokens, rng),
        "scores": ranked,
        "own": own,
    }


def _tokens(
    config: Config,
    checkpoint: Checkpoint,
    prompt: Asked,
    ranked: dict[str, np.ndarray],
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """The right answer's log-probability, (shares,), when only some tokens stay in their places."""
    tokens_T, kept_K = prompt.tokens(), prompt.kept
    inside = np.flatnonzero(prompt.member_NT.any(axis=0))
    ways = {way: ranked[way] for way in TOKEN_WAYS}
    noise_T = np.full(len(tokens_T), -np.inf)
    noise_T[inside] = rng.permutation(len(inside))
    ways["random"] = noise_T
    keeps = [
        np.union1d(kept_K, np.argsort(-values_T)[: round(share * len(inside))])
        for values_T in ways.values()
        for share in config.shares
    ]
    found = alone_logits(checkpoint.model, checkpoint.params, [tokens_T] * len(keeps), keeps)
    last_XV = jnp.stack([logits_KV[-1] for logits_KV in found]).astype(jnp.float32)
    chance_X = np.asarray(jax.nn.log_softmax(last_XV, axis=-1))[:, prompt.answer]
    return dict(zip(ways, chance_X.reshape(len(ways), -1), strict=True))


def _valued(
    config: Config, checkpoint: Checkpoint, prompt: Asked, number: int, seen: dict[str, Any]
) -> tuple[np.ndarray, ...]:
    """Shapley values of a prompt of the first demonstrations alone, and what else is said of it."""
    few = Asked(prompt.bos, prompt.demonstrations[: config.players], prompt.question, prompt.answer)
    own = seen["own"]
    chance = float(log_chances(checkpoint, [few.tokens()])[0, own])
    key = jax.random.fold_in(jax.random.key(config.seed), number)
    values = shapley(checkpoint, few, own, config.players, config.orders, key)
    said = scores(checkpoint, few, own, 1).demonstrations
    said["answer"] = left_out(checkpoint, few, own, chance)
    told_WN = np.stack([said[way] for way in SAID])
    return (*(np.asarray(part) for part in values), told_WN)


def run(config: Config, workdir: Path) -> Outcome:
    """Measures every task, each saved as soon as it is there, then running text, and reports."""
    # More tasks may be asked for later; those that are there stay.
    records = start(workdir, "real_demonstrations", config, free=("tasks",))
    models = Path(config.models) if config.models else workdir / "models"
    loaded: list[Any] = []

    def model() -> tuple[Checkpoint, Tokenizer]:
        if not loaded:
            folder = real_model(config.name, models)
            loaded.extend([load(folder, dtype=jnp.float32), load_tokenizer(folder)])
        return loaded[0], loaded[1]

    bos = BOS[config.name]

    def one_task(task: str) -> Arrays:
        arrays = measure(config, *model(), task, bos)
        forget_programs()
        return arrays

    def running_text(name: str) -> Learned:
        return learned(
            *model(), texts=config.texts, length=config.length, first=config.first, bos=bos,
            shuffled=name == "shuffled",
        )  # fmt: skip

    found = {}
    for task in each(list(config.tasks), config.name):
        file = f"{task.replace(' ', '_')}.npz"
        measuring = functools.partial(one_task, task)
        found[task] = measured(records, Arrays, measuring, names=names(config), file=file)
    text = {}
    for name in ("text", "shuffled"):
        reading = functools.partial(running_text, name)
        text[name] = measured(records, Learned, reading, file=f"learned_{name}.npz")
    outcome = Outcome(summarise(config, found, text), sections(config, found, text))
    return finish(records, "The demonstrations that a model needs", __doc__, outcome)


if __name__ == "__main__":
    launch(Config, run, __doc__)

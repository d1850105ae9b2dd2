"""Can a text be turned into weights, once, and be left out from then on?

Compiles a context (an instruction, demonstrations, a document: any text file) into one change of a
model's weights, in closed form: layer by layer, on calibration queries, without a gradient. Writes
it as a LoRA adapter in PEFT's format, as a checkpoint, or as one file of patches, and measures on
held-out queries what it keeps, beside no context, the full context, a thought vector, and LoRA
trained by Adam on the same calibration texts, at the same rank, in the same seconds and in more:
loss against seconds and memory.

    python -m experiments.checkpoint --make_tiny=llama --workdir=tiny
    python -m experiments.compile --checkpoint=tiny --context=FILE \\
        --workdir=runs/compile

Queries are the lines of --queries=FILE, as they follow the context. With --study=self the model
writes on behind each of them (or, without a file, behind the context itself), with the context in
front; --study=own takes the context's own tokens. A minute on 2 cores for a tiny random model, of
which nothing is to be expected; longer for a real one. The report says what each side keeps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.language.compile.arrays import (
    Arrays,
    Closed,
    Compiled,
    Descended,
    Lora,
    Sides,
    Tried,
)
from experiments.language.compile.measure import Audience, audience
from experiments.language.compile.report import sections, summarise
from experiments.language.compile.sides import (
    Lessons,
    Patches,
    Solved,
    choose,
    descend_for,
    lora_memory,
    solve,
    solve_memory,
)
from experiments.language.room import check_room
from experiments.tools.conduct import Outcome, finish, measured, note_measurement, start
from experiments.tools.flags import UsageError, launch, option
from experiments.tools.shares import to_choose_by
from icl_jax import checks
from icl_jax.interop.banks import load_static, save_static
from icl_jax.interop.huggingface import Checkpoint, load
from icl_jax.interop.peft import save_static_adapter
from icl_jax.interop.saving import save
from icl_jax.interop.tokenizer import Tokenizer, has_tokenizer, load_tokenizer
from icl_jax.language.compile import static_weights
from icl_jax.language.study import own_queries, self_study
from icl_jax.patches.fit import Fit
from icl_jax.records import Run

NAMES = {"peft": "adapter", "checkpoint": "checkpoint", "patches": "patches.safetensors"}


@dataclass(frozen=True)
class Config:
    """Which model and context, which queries, and what to make of them."""

    checkpoint: str = option("", "folder or hub name of a checkpoint (required)")
    context: str = option("", "text file to compile (required)")
    queries: str = option("", "text file, a query per line, as it follows the context")
    study: Literal["given", "self", "own"] = option(
        "self", "the queries as they are, written on by the model, or the context's own tokens"
    )
    num_queries: int = option(24, "to calibrate with; of a file, from its start")
    held_out: int = option(6, "further queries, on which rank and ridge weight are chosen")
    asked: int = option(18, "further queries, which the report is about")
    num_tokens: int = option(16, "that the model writes behind a query (or takes of the context)")
    side: Literal["both", "input", "down"] = option(
        "both", "the weights that change: MLPs' first kernels, their last one, or both"
    )
    ranks: tuple[int, ...] = option((8,), "of the adapter, to choose from")
    weights: tuple[float, ...] = option((0.01, 0.1, 1.0), "of the ridge, to choose from")
    bos: int = option(-1, "token in front of everything; -1: the tokenizer's, if it adds one")
    export: Literal["peft", "checkpoint", "patches", "none"] = option("peft", "what to write")
    lora: bool = option(True, "train LoRA on the same texts for comparison")
    rates: tuple[float, ...] = option((1e-3, 5e-3), "of LoRA's Adam, to choose from")
    times: tuple[float, ...] = option(
        (0.25, 1.0, 3.0, 10.0),
        "seconds, in those of the closed form, after which LoRA is looked at; with 1",
    )
    seed: int = option(0, "of the draws")
    offline: bool = option(False, "look for a hub name in the cache only")

    def __post_init__(self) -> None:
        for name in ("num_queries", "held_out", "num_tokens"):
            checks.positive_int("compile", name, getattr(self, name))
        checks.at_least_two("compile", "asked", self.asked, "one query has no interval")
        for rank in self.ranks:
            checks.positive_int("compile", "ranks", rank)
        for name in ("weights", "rates"):
            for value in getattr(self, name):
                checks.positive("compile", name, value)
        if self.study == "given" and not self.queries:
            raise ValueError("compile: study='given' needs queries, a file with one per line.")
        for time in self.times:
            checks.positive("compile", "times", time)
        if list(self.times) != sorted(set(self.times)) or 1 not in self.times:
            raise ValueError(
                f"compile: times must increase and have 1, the same seconds, got {self.times}."
            )

    @classmethod
    def quick(cls) -> "Config":
        """Few and short queries, one weight and rate."""
        return cls(
            num_queries=6,
            held_out=2,
            asked=4,
            num_tokens=6,
            ranks=(4,),
            weights=(0.1,),
            rates=(5e-3,),
            times=(0.5, 1.0, 2.0),
        )


@dataclass(frozen=True)
class Material:
    """Queries of one kind: token ids, and how many tokens of each were given."""

    texts: list[np.ndarray]
    stems: list[int]


def prepare(config: Config) -> tuple[Checkpoint, Tokenizer, np.ndarray, list[np.ndarray]]:
    """Model, tokenizer, context and stems, before anything long begins.

    Raises:
      UsageError: something is missing or cannot be read.
    """
    for flag in ("checkpoint", "context"):
        if not getattr(config, flag):
            raise UsageError(f"--{flag} is missing.")
    try:
        checkpoint = load(config.checkpoint, dtype=jnp.float32, offline=config.offline)
        if not has_tokenizer(checkpoint.folder):
            raise UsageError(f"--checkpoint: {checkpoint.folder} has no tokenizer to read a text.")
        tokenizer = load_tokenizer(checkpoint.folder)
        text = Path(config.context).read_text(encoding="utf-8")
        lines: list[str] = []
        if config.queries:
            lines = Path(config.queries).read_text(encoding="utf-8").splitlines()
    except (ValueError, OSError, ImportError) as error:
        raise UsageError(str(error)) from error
    if checkpoint.model.head == "none":
        raise UsageError(f"--checkpoint: a {checkpoint.family} model has no head to compare.")
    if not all(block.mlp.shares_down for block in checkpoint.model.blocks):
        if config.side != "input":
            raise UsageError(
                f"--side={config.side}: a {checkpoint.family} model has experts, which share no "
                "down kernel. Use --side=input --lora=false, and --export=checkpoint or patches."
            )
        if config.lora or config.export == "peft":
            raise UsageError(
                f"a {checkpoint.family} model has experts, whose kernels are no modules of their "
                "own for LoRA. Use --lora=false, and --export=checkpoint or patches."
            )
    context = tokenizer.encode(text, add_special=False).tokens_T
    if not len(context):
        raise UsageError(f"--context: {config.context} has no text.")
    needed = config.num_queries + config.held_out + config.asked
    if lines and len(lines) < needed and config.study != "self":
        raise UsageError(
            f"--queries: {config.queries} has {len(lines)} lines, and --num_queries, --held_out "
            f"and --asked are {needed} together."
        )
    stems = [tokenizer.encode(line, add_special=False).tokens_T for line in lines if line]
    in_front = int(front(config, tokenizer) is not None)
    read = in_front + len(context) + longest_query(config, stems)
    check_room("--context", checkpoint.model, read)
    return checkpoint, tokenizer, context, stems


def longest_query(config: Config, stems: Sequence[np.ndarray]) -> int:
    """Tokens of the longest query, with what the model writes behind it in self-study."""
    if config.study == "own":
        return config.num_tokens
    written = config.num_tokens if config.study == "self" else 0
    return max(map(len, stems), default=0) + written


def front(config: Config, tokenizer: Tokenizer) -> int | None:
    """The token in front of everything."""
    if config.bos >= 0:
        return config.bos
    return tokenizer.bos_id if tokenizer.adds_bos else None


def material(
    config: Config,
    checkpoint: Checkpoint,
    context: np.ndarray,
    stems: Sequence[np.ndarray],
    bos: int | None,
) -> tuple[Material, Material, Material]:
    """The queries to calibrate with, those held out, and those asked; none of them is two of these.

    Raises:
      UsageError: too few of the context's own tokens.
    """
    counts = (config.num_queries, config.held_out, config.asked)
    if config.study == "own":
        texts = own_queries(context, config.num_tokens)
        if len(texts) < 4:
            raise UsageError(
                f"--study=own: the context has {len(context)} tokens, {len(texts)} windows of "
                f"--num_tokens={config.num_tokens}; four are needed. Use --study=self."
            )
        # Parts of a context are not many: a quarter is held out, a quarter asked.
        texts = [texts[i] for i in np.random.default_rng(config.seed).permutation(len(texts))]
        few = len(texts) // 4
        counts = (len(texts) - 2 * few, min(few, counts[1]), min(few, counts[2]))
        given = [0] * len(texts)
    elif config.study == "given":
        texts, given = list(stems), [0] * len(stems)
    else:
        begun = list(stems) or [np.zeros(0, np.int32)]
        begun = [begun[number % len(begun)] for number in range(sum(counts))]
        texts = self_study(
            checkpoint.model,
            checkpoint.params,
            context,
            begun,
            config.num_tokens,
            jax.random.key(config.seed),
            bos=bos,
        )
        given = [len(one) for one in begun]
    ends = np.cumsum((0, *counts))
    first, second, third = (
        Material(texts[start:stop], given[start:stop])
        for start, stop in zip(ends[:-1], ends[1:], strict=True)
    )
    return first, second, third


def compare(
    config: Config, checkpoint: Checkpoint, lessons: Lessons, held: Audience, test: Audience
) -> tuple[Sides, Solved]:
    """Every side on the asked queries; and the patches that were chosen."""

    def loss(patches: Patches) -> float:
        return float(held.hear(patches=patches).kl.mean())

    fits = [Fit(side=config.side, rank=rank) for rank in config.ranks]
    best, tried = choose(checkpoint, lessons, fits, config.weights, loss)
    assert best.rank is not None  # A rank of --ranks.
    kept, thought = Fit(side=config.side, rank=best.rank), Fit("thought")

    def closed(found: Solved, fit: Fit) -> Closed:
        return Closed(
            **vars(test.hear(patches=found.patches)),
            seconds=np.array(found.seconds),
            memory=np.array(solve_memory(checkpoint, lessons, fit)),
            held_out=np.array(loss(found.patches)),
        )

    sides = Sides(
        nothing=test.hear(),
        thought=closed(solve(checkpoint, lessons, thought, 1.0), thought),
        ridge=Compiled(
            **vars(closed(best, kept)), rank=np.array(best.rank), weight=np.array(best.weight)
        ),
        lora=descend(config, checkpoint, lessons, held, test, best) if config.lora else None,
        tried=Tried(*map(np.array, zip(*tried, strict=True))),
    )
    return sides, best


def descend(
    config: Config,
    checkpoint: Checkpoint,
    lessons: Lessons,
    held: Audience,
    test: Audience,
    rival: Solved,
) -> Lora:
    """LoRA of the rival's rank after some of its seconds, each time at the best of the rates."""
    assert rival.rank is not None  # A rank of --ranks.
    rank: int = rival.rank

    def path(rate: float) -> list[Descended]:
        descended = descend_for(
            checkpoint,
            lessons,
            rank,
            rate,
            [rival.seconds * time for time in config.times],
            jax.random.key(config.seed),
            lambda params: float(held.hear(params=params).kl.mean()),
        )
        return [
            Descended(
                **vars(test.hear(params=params)),
                seconds=np.array(point.seconds),
                steps=np.array(point.steps),
                rate=np.array(rate),
                held_out=np.array(point.held_out),
            )
            for params, point in zip(descended.at, descended.path, strict=True)
        ]

    by_time = zip(*map(path, config.rates), strict=True)
    best = [min(found, key=lambda one: to_choose_by(one.held_out)) for found in by_time]
    memory = np.array(lora_memory(checkpoint, lessons, rank))
    stacked = {name: np.stack([vars(one)[name] for one in best]) for name in vars(best[0])}
    return Lora(np.array(config.times), Descended(**stacked), memory)


def write(config: Config, checkpoint: Checkpoint, run: Run) -> str | None:
    """The file or folder that is asked for, of the patches that are kept; its name, or None."""
    if config.export == "none":
        return None
    name = NAMES[config.export]
    target = run.path(name)
    if not target.exists():
        patches = load_static(run.path(NAMES["patches"]))
        if config.export == "peft":
            save_static_adapter(target, checkpoint, patches)
        else:
            model, folder = checkpoint.model, checkpoint.folder
            merged = static_weights(model, checkpoint.params, patches)
            save(target, model, merged, checkpoint.config, tokenizer=folder)
        note_measurement(run)
    return name


def run(config: Config, workdir: Path) -> Outcome:
    """Compiles, writes, compares, reports."""
    checkpoint, tokenizer, context, stems = prepare(config)
    bos = front(config, tokenizer)
    records = start(workdir, "compile", config, free=("export",))

    def measure() -> Arrays:
        calibration, chosen, asked = material(config, checkpoint, context, stems, bos)
        lessons = Lessons(context, calibration.texts, calibration.stems, bos)

        def heard(part: Material) -> Audience:
            starts = [max(0, stem - 1) for stem in part.stems]
            return audience(checkpoint, lessons, part.texts, starts)

        sides, best = compare(config, checkpoint, lessons, heard(chosen), heard(asked))
        save_static(records.path(NAMES["patches"]), best.patches)  # In every form, and for later.
        return Arrays(
            sides=sides,
            examples=np.array([tokenizer.decode(one) for one in calibration.texts[:4]]),
            context_tokens=np.array(len(context)),
            calibration_tokens=np.array(sum(map(len, calibration.texts))),
        )

    names = {"sides.lora": config.lora}
    arrays = measured(records, Arrays, measure, names=names, file="measured.npz")
    written = write(config, checkpoint, records)
    about: dict[str, Any] = {
        "checkpoint": config.checkpoint,
        "family": checkpoint.family,
        "export": config.export,
    }
    about["written"] = written
    return finish(
        records,
        f"{Path(config.context).name} as weights of {Path(config.checkpoint).name}",
        __doc__,
        Outcome(summarise(about, arrays), sections(about, arrays)),
    )


if __name__ == "__main__":
    launch(Config, run, __doc__)

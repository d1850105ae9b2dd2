"""Does a real model answer without its context, from patched weights?

Loads a Hugging Face checkpoint, removes a part of every prompt (a system prompt, demonstrations),
patches the weights of every layer for every kept token, and runs the model on the kept tokens
alone. Beside it stand the same tokens with the original weights (unpatched), with the patches of
another prompt (shuffled) and, where a norm follows the MLP, with the patch of its scale.

    python -m experiments.checkpoint --make_tiny=gemma3 --workdir=tiny
    python -m experiments.checkpoint --checkpoint=tiny \\
        --prompts=tiny/prompts.jsonl \\
        --workdir=runs/checkpoint --generate=20 --export=checkpoint

A line of the prompts' file is {"remove": "...", "keep": "..."}, {"tokens": [...], "keep": [...]},
{"spans": [...]} or {"messages": [...]}; see icl_jax/interop/spans.py. A tiny model takes half a
minute on 2 cores. Expected: patched below 1e-5 in float32; unpatched and shuffled above 1e-2; the
same tokens generated with and without the context.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from experiments.language.checkpoint.arrays import Arrays, Compared, Generation, Written
from experiments.language.checkpoint.export import ExportFormat, all_exports, export
from experiments.language.checkpoint.measure import APPLIED, measure, measure_generation, names
from experiments.language.checkpoint.report import sections, summarise
from experiments.language.checkpoint.tiny import make_tiny
from experiments.language.room import check_room
from experiments.language.runs import LABELS
from experiments.tools.arrays import Names
from experiments.tools.conduct import Outcome, each, finish, measured, start
from experiments.tools.flags import UsageError, launch, option
from icl_jax import checks
from icl_jax.blocks.functional import functional
from icl_jax.interop.huggingface import Checkpoint, load
from icl_jax.interop.peft import adapter_policy
from icl_jax.interop.spans import Prompt, read_prompts
from icl_jax.interop.tokenizer import has_tokenizer, load_tokenizer
from icl_jax.language.ends import room
from icl_jax.patches.block import chosen_policy
from icl_jax.patches.output import OUTPUT_POLICIES
from icl_jax.records import Run, WorkdirError

DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True)
class Config:
    """Which model, which prompts, and what to do with them."""

    checkpoint: str = option("", "folder or hub name of a checkpoint (or --make_tiny)")
    prompts: str = option("", "JSONL file, a prompt per line (or --make_tiny)")
    dtype: tuple[str, ...] = option(("float32",), f"to run in, of {', '.join(DTYPES)}")
    output_patch: Literal["auto", "bias", "down", "scale", "balanced", "balanced+remainder"] = (
        option("auto", "the weights that carry the residual change")
    )
    loop: Literal["closed", "open"] = option("closed", "whether a patch repairs the patched run")
    keep_bos: bool = option(True, "the first special token stays when what follows is removed")
    max_prompts: int = option(100, "of the file, from its start")
    generate: int = option(0, "tokens to write for every prompt")
    temperature: float = option(0.0, "of the generation; 0 is greedy")
    export: ExportFormat = option(
        "none",
        "the first prompt's context as weights, exact for the next token only",
    )
    offline: bool = option(False, "look for a hub name in the cache only")
    make_tiny: str = option("", "only write a tiny random checkpoint of this family, and prompts")
    seed: int = option(0, "of draws and of random weights")

    def __post_init__(self) -> None:
        for dtype in self.dtype:
            checks.one_of("checkpoint", "dtype", dtype, DTYPES)
        checks.one_of("checkpoint", "output_patch", self.output_patch, OUTPUT_POLICIES)
        checks.positive_int("checkpoint", "max_prompts", self.max_prompts)
        checks.non_negative("checkpoint", "generate", self.generate)
        checks.non_negative("checkpoint", "temperature", self.temperature)


def measure_all(
    config: Config,
    run: Run,
    prompts: Sequence[Prompt],
    dtype: str,
    told: Names,
    checkpoint: Checkpoint | None = None,
) -> list[Arrays]:
    """The numbers of every prompt in one precision, each saved as soon as it is measured.

    ``told`` are the names of ``Compared``; the checkpoint is loaded where it is needed and not
    given.

    Raises:
      UsageError: a prompt that cannot be patched as asked for.
      WorkdirError: another version measured what is there.
    """
    loaded = [] if checkpoint is None else [checkpoint]

    def model() -> Checkpoint:
        if not loaded:
            loaded.append(load(config.checkpoint, dtype=jnp.dtype(dtype), offline=config.offline))
        return loaded[0]

    length = config.generate or longest_generation(run, dtype, len(prompts))
    found = []
    for index in each(range(len(prompts)), f"prompts in {dtype}"):
        try:
            found.append(_one(config, run, prompts, index, dtype, length, told, model))
        except WorkdirError:
            raise
        except ValueError as error:
            raise UsageError(f"prompt {prompts[index].name!r} in {dtype}: {error}") from error
    return found


def _one(
    config: Config,
    run: Run,
    prompts: Sequence[Prompt],
    index: int,
    dtype: str,
    length: int,
    told: Names,
    model: Callable[[], Checkpoint],
) -> Arrays:
    """One prompt in one precision; ``length`` is how many tokens were or are to be written."""

    def compare() -> Compared:
        return measure(config, model(), prompts, index)

    def write() -> Written:
        return Written(measure_generation(config, model(), prompts[index]))

    file = f"{dtype}/{index:04d}"
    compared = measured(run, Compared, compare, names=told, file=f"{file}.npz")
    if not length:
        return Arrays(compared, None)
    written = measured(run, Written, write, file=f"{file}.generated{length}.npz")
    return Arrays(compared, written.generation)


def longest_generation(run: Run, dtype: str, num_prompts: int) -> int:
    """How many tokens an earlier call has written for every prompt; 0 for none."""
    found = run.path(dtype).glob("0000.generated*.npz")
    lengths = sorted(int(path.stem.partition(".generated")[2]) for path in found)
    whole = [
        length
        for length in lengths
        if all(run.has(f"{dtype}/{i:04d}.generated{length}.npz") for i in range(num_prompts))
    ]
    return whole[-1] if whole else 0


def prepare(config: Config, workdir: Path | None) -> tuple[Run, list[Prompt], Checkpoint]:
    """Opens the folder and checks checkpoint and prompts, before anything long begins."""
    for flag in ("checkpoint", "prompts"):
        if not getattr(config, flag):
            raise UsageError(
                f"--{flag} is missing. To try without one: --make_tiny=llama --workdir=DIR."
            )
    if workdir is None:
        raise UsageError("--workdir=DIR is missing: the folder for records and figures.")
    try:
        checkpoint = load(
            config.checkpoint, dtype=jnp.dtype(config.dtype[0]), offline=config.offline
        )
        check_room("--generate", checkpoint.model, config.generate + 2)  # A context and a token.
        most = room(checkpoint.model)
        tokenizer = load_tokenizer(checkpoint.folder) if has_tokenizer(checkpoint.folder) else None
        prompts = read_prompts(
            config.prompts,
            tokenizer,
            vocab_size=checkpoint.model.vocab_size,
            max_length=None if most is None else most - config.generate,
            keep_bos=config.keep_bos,
        )[: config.max_prompts]
        check_possible(config, checkpoint, prompts)
    except (ValueError, OSError, ImportError) as error:
        raise UsageError(str(error)) from error
    run = start(workdir, "checkpoint", config, free=("export", "generate"))
    texts = {"prompts": [{"tokens": p.tokens, "kept": p.kept} for p in prompts]}
    if run.has("prompts.json") and run.load_json("prompts.json") != _plain(texts):
        raise WorkdirError(
            f"workdir {workdir} was begun with other prompts in {config.prompts}. Choose another "
            "--workdir."
        )
    run.save_json("prompts.json", texts)
    return run, prompts, checkpoint


def check_possible(config: Config, checkpoint: Checkpoint, prompts: Sequence[Prompt]) -> None:
    """Raises ValueError for what this model cannot do with these prompts."""
    for block, params in functional(checkpoint.model, checkpoint.params):
        chosen_policy(config.output_patch, block, block.output_norm(params) is not None)
    if config.export == "peft":
        adapter_policy(checkpoint)
    if not config.generate:
        return
    if checkpoint.model.head == "none":
        raise ValueError(f"--generate: a {checkpoint.family} model has no head that writes.")
    for prompt in prompts:
        if prompt.kept[-1] != len(prompt.tokens) - 1:
            raise ValueError(
                f"--generate: the last token of prompt {prompt.name!r} is not kept, and that is "
                "where the first new token is written. Keep it."
            )


def _plain(texts: Mapping[str, list[dict[str, np.ndarray]]]) -> dict[str, Any]:
    return {
        name: [{key: value.tolist() for key, value in entry.items()} for entry in entries]
        for name, entries in texts.items()
    }


def texts_of(folder: Path, generations: Sequence[Generation]) -> list[dict[str, str]]:
    """What every run wrote after each prompt: text, or token ids without a tokenizer."""
    tokenizer = load_tokenizer(folder) if has_tokenizer(folder) else None

    def text(tokens_N: np.ndarray) -> str:
        return " ".join(map(str, tokens_N)) if tokenizer is None else tokenizer.decode(tokens_N)

    return [
        {
            "with the context": text(one.expected_tokens),
            LABELS["patched"]: text(one.patched_tokens),
            LABELS["unpatched"]: text(one.unpatched_tokens),
        }
        for one in generations
    ]


def run(config: Config, workdir: Path | None) -> Outcome | None:
    """Measures every prompt in every precision, generates, exports, reports."""
    if config.make_tiny:
        make_tiny(config.make_tiny, workdir or Path(f"tiny-{config.make_tiny}"), config.seed)
        return None
    records, prompts, checkpoint = prepare(config, workdir)
    first, *others = config.dtype
    told = names(config, checkpoint)
    found = {first: measure_all(config, records, prompts, first, told, checkpoint)}
    export(config.export, checkpoint, prompts[0], records, config.output_patch)
    exported = all_exports(records)
    about: dict[str, Any] = {
        "checkpoint": config.checkpoint,
        "family": checkpoint.family,
        "loop": config.loop,
    }
    if config.generate and (ignored := checkpoint.generation.ignored(APPLIED)):
        about["generation_config_not_applied"] = list(ignored)
        print(f"Not applied of generation_config.json: {', '.join(ignored)}.", file=sys.stderr)
    folder = checkpoint.folder
    del checkpoint  # One copy of the weights at a time.
    found |= {dtype: measure_all(config, records, prompts, dtype, told) for dtype in others}
    titles = [prompt.name for prompt in prompts]
    summary = summarise(about, titles, found, exported)
    sizes = [(len(prompt.tokens), len(prompt.kept)) for prompt in prompts]
    generations = [one.generation for one in found[first] if one.generation is not None]
    texts = texts_of(folder, generations) if generations else []
    pages = sections(titles, sizes, texts, found, exported)
    return finish(
        records,
        f"{Path(config.checkpoint).name} without its context",
        __doc__,
        Outcome(summary, pages),
    )


if __name__ == "__main__":
    launch(Config, run, __doc__, needs_workdir=False)

"""Is a context exactly a low-rank change of the MLP's weights?

For every wiring of a block, every contextual layer and a 10-layer stack: run the query with its
context, then run the query alone with patched weights, and compare the outputs. Beside it stand
the same query with the original weights (unpatched), with the patch of another prompt (shuffled)
and with a random patch of the same size (random).

    python -m experiments.equivalence --workdir=runs/equivalence

About a minute and a half on 2 cores. Expected: patched below 1e-5 in float32 and below 1e-12 in
float64; every control above 1e-2. The identity is algebra: it holds for these random weights as it
does for trained ones, and says nothing yet about what a trained model uses it for.
"""

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.regression.learner import embed
from experiments.tools.arrays import Names
from experiments.tools.at_once import at_once, computed_in
from experiments.tools.conduct import Outcome, finish, measured, start
from experiments.tools.flags import LONE, launch, option
from icl_jax import checks
from icl_jax.blocks.config import LAYERS, StackConfig, build_stack
from icl_jax.blocks.functional import cast, functional
from icl_jax.blocks.stack import Stack
from icl_jax.blocks.wiring import WIRINGS
from icl_jax.compilations import ONCE, run_once
from icl_jax.dims import Array, Params
from icl_jax.measures.function_space import relative_error
from icl_jax.measures.nulls import another_prompts, random_vector
from icl_jax.patches.bank import Bank
from icl_jax.patches.block import TokenPatch
from icl_jax.patches.extraction import Loop, patched_forward, stack_patches
from icl_jax.patches.normed import BalancedPatch
from icl_jax.report.figures import Reference, dots
from icl_jax.report.page import Section, Table, number
from icl_jax.stack.run import forward
from icl_jax.tasks.catalogue import make_task
from icl_jax.tasks.prompt import Prompt, prompt_tokens, sample_prompts

#: The precisions, and the relative error that a patched run may have in each.
BOUNDS = {"float32": 1e-5, "float64": 1e-12}
PRECISIONS = tuple(BOUNDS)
NULLS = ("unpatched", "shuffled", "random")
CONDITIONS = ("patched", *NULLS)


@dataclass(frozen=True)
class Config:
    """What is compared, and on how many prompts."""

    num_prompts: int = option(100, "prompts per case")
    num_examples: int = option(50, "context examples per prompt")
    input_width: int = option(2, "dimension of the regression inputs")
    depth: int = option(10, "layers of the deep stack")
    seed: int = option(0, "of prompts and weights")
    stack: StackConfig = field(default_factory=StackConfig)

    def __post_init__(self) -> None:
        for name in ("num_prompts", "num_examples", "input_width", "depth"):
            checks.positive_int("equivalence", name, getattr(self, name))
        checks.at_least_two("equivalence", "num_prompts", self.num_prompts, LONE)

    @classmethod
    def quick(cls) -> "Config":
        """The same cases on fewer prompts."""
        return cls(num_prompts=32, num_examples=20)


@dataclass(frozen=True)
class Errors:
    """Of one case: relative Frobenius errors at the query over all prompts, and how hard it was.

    Attributes:
      patched, open_loop: (), of the patched runs in both loops.
      shuffled, random, unpatched: (), of the nulls.
      least_kept_norm: (), the smallest MLP input that a patch multiplies.
      largest_relative_change: (), of an MLP input.
    """

    patched: np.ndarray
    open_loop: np.ndarray
    shuffled: np.ndarray
    random: np.ndarray
    unpatched: np.ndarray
    least_kept_norm: np.ndarray
    largest_relative_change: np.ndarray


@dataclass(frozen=True)
class Arrays:
    """Case -> its errors, by precision; of the layers, in float64."""

    float32: Mapping[str, Errors]
    float64: Mapping[str, Errors]
    layers: Mapping[str, Errors]


def cases(config: Config) -> dict[str, StackConfig]:
    """The stacks that are compared: name -> configuration."""
    base = config.stack
    wirings: dict[str, StackConfig] = {
        name: dataclasses.replace(base, wiring=name) for name in WIRINGS
    }
    for name in ("sandwich", "reordered_norm"):
        # As in real models: no bias at the end, so the norm's gain and the down kernel are patched.
        wirings[name] = dataclasses.replace(wirings[name], norm="rms", use_bias=False)
    deep = dataclasses.replace(base, wiring="pre_norm", depth=config.depth)
    return {**wirings, f"stack{config.depth}": deep}


def layer_cases(config: Config) -> dict[str, StackConfig]:
    """One pre-norm block for each contextual layer."""
    base = dataclasses.replace(config.stack, wiring="pre_norm")
    return {name: dataclasses.replace(base, layer=name) for name in LAYERS}


def names(config: Config) -> Names:
    """What is measured, as the configuration asks for it."""
    return {**dict.fromkeys(PRECISIONS, tuple(cases(config))), "layers": LAYERS}


@functools.partial(jax.jit, static_argnames="stack", compiler_options=dict(ONCE))
def compare(stack: Stack, params: Params, tokens_BTC: Array, key: Array) -> dict[str, Array]:
    """Relative errors of the patched run and its controls at the query, and conditioning numbers.

    Args:
      stack: the model.
      params: its parameters.
      tokens_BTC: (B, T, C), one prompt each; everything but the last token is removed.
      key: of the random patches.

    Returns:
      What ``Errors`` holds, by its field.
    """
    layers = functional(stack, params)
    query_K = jnp.asarray([tokens_BTC.shape[1] - 1], jnp.int32)
    stream_BTD = jax.vmap(lambda tokens_TC: embed(stack, params, tokens_TC))(tokens_BTC)

    def plain(stream_TD: Array) -> Array:
        return forward(layers, stream_TD)[query_K]

    def alone(stream_TD: Array) -> Array:
        return forward(layers, stream_TD[query_K], positions_T=query_K)

    def bank(stream_TD: Array, loop: Loop) -> Bank:
        return stack_patches(layers, stream_TD, query_K, loop=loop)

    def patched(stream_TD: Array, prompt_bank: Bank) -> Array:
        return patched_forward(layers, stream_TD, prompt_bank)

    banks = jax.vmap(lambda stream_TD: bank(stream_TD, "closed"))(stream_BTD)
    shown = {
        "patched": banks,
        "open_loop": jax.vmap(lambda stream_TD: bank(stream_TD, "open"))(stream_BTD),
        "shuffled": another_prompts(banks),
        "random": jax.vmap(random_bank)(jax.random.split(key, stream_BTD.shape[0]), banks),
    }
    # One patched run for all four: what is traced once is compiled once.
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *shown.values())
    outputs_XBKD = jax.vmap(jax.vmap(patched), in_axes=(None, 0))(stream_BTD, together)
    outputs = dict(zip(shown, outputs_XBKD, strict=True)) | {
        "unpatched": jax.vmap(alone)(stream_BTD)
    }
    expected_BKD = jax.vmap(plain)(stream_BTD)
    numbers = {name: relative_error(output, expected_BKD) for name, output in outputs.items()}
    conditioning = banks.conditioning.joined(axis=1)
    numbers["least_kept_norm"] = jnp.min(conditioning.kept_norm)
    numbers["largest_relative_change"] = jnp.max(conditioning.relative_change)
    return numbers


def random_bank(key: Array, bank: Bank) -> Bank:
    """A bank of the same sizes whose changes point anywhere."""
    patches = []
    for layer, patch in enumerate(bank.patches):
        keys = jax.random.split(jax.random.fold_in(key, layer), 2)
        patches.append(
            TokenPatch(_random_delta(keys[0], patch.input), _random_delta(keys[1], patch.output))
        )
    return dataclasses.replace(bank, patches=bank.patches.rebuilt(patches))


def _random_delta(key: Array, part: Any) -> Any:
    if part is None:
        return None
    if isinstance(part, BalancedPatch):
        return dataclasses.replace(part, down=_random_delta(key, part.down))
    keys_K = jax.random.split(key, part.delta_D.shape[0])
    return dataclasses.replace(part, delta_D=jax.vmap(random_vector)(keys_K, part.delta_D))


def measure(config: Config) -> Arrays:
    """All cases in all precisions."""
    found: dict[str, dict[str, Errors]] = {"float32": {}, "float64": {}, "layers": {}}
    tokens_BTC = jax.vmap(prompt_tokens)(_prompts(config))
    jobs = {
        (precision, name): (jnp.dtype(precision), stack_config)
        for precision in PRECISIONS
        for name, stack_config in cases(config).items()
    } | {
        ("layers", name): (jnp.dtype("float64"), stack_config)
        for name, stack_config in layer_cases(config).items()
    }
    key = jax.random.key(config.seed)

    def errors(case: tuple[str, str]) -> Errors:
        dtype, stack_config = jobs[case]
        stack = build_stack(stack_config)
        with computed_in(dtype):
            # As one program, which leaves out the forward pass that an initialisation is.
            params = cast(run_once(stack.init, key, tokens_BTC[0])["params"], dtype)
            numbers = compare(stack, params, tokens_BTC.astype(dtype), key)
            return Errors(**jax.device_get(numbers))

    for (where, name), of_case in at_once(errors, list(jobs), "equivalence"):
        found[where][name] = of_case
    return Arrays(**found)


def _prompts(config: Config) -> Prompt:
    return sample_prompts(
        make_task("linear", config.input_width),
        jax.random.key(config.seed),
        num_prompts=config.num_prompts,
        num_examples=config.num_examples,
    )


def summarise(arrays: Arrays) -> dict[str, Any]:
    """The numbers as a tree: ``float32.skip.patched`` and so on."""
    tree: dict[str, Any] = jax.tree.map(float, dataclasses.asdict(arrays))
    return tree


def sections(config: Config, summary: Mapping[str, Any]) -> list[Section]:
    """The wirings, then the contextual layers."""
    groups = CONDITIONS
    names = list(cases(config))
    values = [[[summary[p][n][g] for g in groups] for n in names] for p in PRECISIONS]
    worst = {p: max(summary[p][n]["patched"] for n in names) for p in PRECISIONS}
    nulls = {g: min(summary[p][n][g] for p in PRECISIONS for n in names) for g in NULLS}
    rows = [
        (
            p,
            n,
            *(summary[p][n][g] for g in ("patched", "open_loop", *NULLS)),
            summary[p][n]["largest_relative_change"],
        )
        for p in PRECISIONS
        for n in names
    ]
    exact = "Yes, to rounding" if all(worst[p] <= BOUNDS[p] for p in PRECISIONS) else "Not exactly"
    layers = summary["layers"]
    layer_rows = [(n, *(layers[n][g] for g in groups)) for n in LAYERS]
    return [
        Section(
            "Is a context a low-rank change of the weights, exactly?",
            f"Each row is a way to wire a block (the last one {config.depth} pre-norm layers). "
            f"{config.num_prompts} prompts were run with their context of {config.num_examples} "
            "examples, and then the query alone, with the patched weights. This is algebra, true "
            "of random weights too: it says that the context can be read as a weight update, not "
            "that the update is a clever one.",
            figure=dots(
                names,
                groups,
                np.asarray(values),
                x_label="relative error of the output at the query",
                titles=PRECISIONS,
                references=[
                    Reference(bound, f"{number(bound)}", panel)
                    for panel, bound in enumerate(BOUNDS.values())
                ],
            ),
            tables=[
                Table(
                    ("precision", "case", "patched", "open loop", *NULLS, "largest change"),
                    rows,
                    "Relative Frobenius error against the run with the context; change: the "
                    "largest |z_S - z_K| / |z_K|, what a patch had to make up for.",
                )
            ],
            verdict=f"{exact}: the largest relative error is {number(worst['float32'])} in float32 "
            f"and {number(worst['float64'])} in float64. {_nearest(nulls)}",
            anchor="equivalence",
        ),
        Section(
            "Is this about attention?",
            "The same in float64 for one pre-norm block with each contextual layer that the "
            f"library has: {', '.join(LAYERS)}.",
            verdict="Whatever the layer, the relative error of a patched run is at most "
            f"{number(max(layers[n]['patched'] for n in LAYERS))}. "
            f"{_nearest({g: min(layers[n][g] for n in LAYERS) for g in NULLS})}",
            figure=dots(
                LAYERS,
                groups,
                np.asarray([[layers[n][g] for g in groups] for n in LAYERS]),
                x_label="relative error of the output at the query, float64",
            ),
            tables=[Table(("layer", *groups), layer_rows, "Relative error, float64.")],
            anchor="layers",
        ),
    ]


def _nearest(least: Mapping[str, float]) -> str:
    """The null that is off the least, by name, of the smallest error of each."""
    null = min(least, key=lambda name: least[name])
    rest = ", ".join(f"{name} {number(error)}" for name, error in least.items() if name != null)
    return f"The nearest null is {null}, off by at least {number(least[null])} ({rest})."


def run(config: Config, workdir: Path, learners: Path | None = None) -> Outcome:
    """Measures, or reads back what was measured, and writes summary and report."""
    del learners  # Nothing is trained here; all experiments are called alike.
    record = start(workdir, "equivalence", config)
    summary = summarise(measured(record, Arrays, lambda: measure(config), names=names(config)))
    return finish(
        record,
        "Is a context a change of weights?",
        __doc__,
        Outcome(summary, sections(config, summary)),
    )


if __name__ == "__main__":
    launch(Config, run, __doc__)

"""How much does one pass over all prefixes save?

    python -m benchmarks.prefixes --json=FILE

Three rows on one causal softmax stack: the all-prefix pass against one run per prefix, each padded
to the full length so that one compiled program serves all (what most code does); against one run
per prefix padded to the next multiple of 64 only (about the least that such a loop can do); and
against a single plain causal run over 2 n tokens, the price that the all-prefix pass should have:
at longer contexts, too, where attention is most of the work (``--longer``). Half of the causal
run's scores are what one pass needs; its products with kernels are the same.
"""

import functools

import jax
import jax.numpy as jnp
from absl import flags

from benchmarks.harness import Side, compare, launch
from icl_jax.blocks.config import StackConfig, build_stack
from icl_jax.blocks.functional import cast, functional
from icl_jax.dims import Array
from icl_jax.dynamics.prefixes import prefix_outputs_by_reruns, prefix_pass
from icl_jax.stack.run import forward

_LENGTH = flags.DEFINE_integer("length", 512, "context tokens n", lower_bound=1)
_LAYERS = flags.DEFINE_integer("layers", 4, "blocks", lower_bound=1)
_WIDTH = flags.DEFINE_integer("width", 256, "model width d", lower_bound=8)
_LONGER = flags.DEFINE_multi_integer(
    "longer", [2048, 4096], "further n, beside the causal run only", lower_bound=1
)
_RERUNS = flags.DEFINE_integer("reruns", 3, "timed repeats of the slow side", lower_bound=1)


def benchmark() -> list[dict]:
    """The all-prefix pass against reruns, bucketed reruns, and one run of twice the length."""
    length, width = _LENGTH.value, _WIDTH.value
    config = StackConfig(
        wiring="pre_norm", depth=_LAYERS.value, width=width, hidden_widths=(4 * width,)
    )
    stack = build_stack(config)
    tokens_TC = jax.random.normal(jax.random.key(0), (2 * max(length, *_LONGER.value, 1), 3))
    params = cast(stack.init(jax.random.key(1), tokens_TC[:2])["params"], jnp.float32)
    layers = functional(stack, params)
    stream_TD = stack.apply({"params": params}, tokens_TC, method="embed")
    context_ND, query_D = stream_TD[:length], stream_TD[length]

    @jax.jit
    def one_pass(context_ND: Array, query_D: Array) -> Array:
        return prefix_pass(layers, context_ND, query_D).output_MD

    @jax.jit
    def reruns(context_ND: Array, query_D: Array) -> Array:
        return prefix_outputs_by_reruns(layers, context_ND, query_D)

    @functools.partial(jax.jit, static_argnames=("start", "stop"))
    def bucket(context_ND: Array, query_D: Array, start: int, stop: int) -> Array:
        slots_T = jnp.arange(stop)
        padded_TD = jnp.concatenate([context_ND, query_D[None]])[:stop]

        def run(count: Array) -> Array:
            stream_TD = jnp.where((slots_T < count)[:, None], padded_TD, query_D[None])
            return forward(layers, stream_TD)[count]

        return jax.lax.map(run, jnp.arange(start, stop))

    def bucketed() -> list[Array]:
        return [
            bucket(context_ND, query_D, start, min(start + 64, length + 1))
            for start in range(0, length + 1, 64)
        ]

    @jax.jit
    def plain(stream_TD: Array) -> Array:
        return forward(layers, stream_TD)

    def beside_a_causal_run(count: int) -> dict:
        return compare(
            f"all prefixes of {count}: one causal run over 2 n tokens against the one pass",
            {
                "causal run, 2 n": Side(lambda: plain(stream_TD[: 2 * count])),
                "one pass": Side(lambda: one_pass(stream_TD[:count], stream_TD[count])),
            },
            sizes=sizes | {"length": count},
        )

    expected_MD = one_pass(context_ND, query_D)
    for other_MD in (reruns(context_ND, query_D), jnp.concatenate(bucketed())):
        gap = jnp.max(jnp.abs(expected_MD - other_MD))
        if not gap < 1e-3:
            raise AssertionError(f"the two sides disagree by {gap}")
    ours = Side(lambda: one_pass(context_ND, query_D))
    sizes = {"length": length, "layers": _LAYERS.value, "width": width, "hidden": 4 * width}
    return [
        compare(
            "all prefixes: one pass against one run per prefix",
            {"one pass": ours, "run per prefix": Side(lambda: reruns(context_ND, query_D))},
            sizes=sizes,
            repeats=_RERUNS.value,
        ),
        compare(
            "all prefixes: one pass against bucketed runs",
            {"one pass": ours, "run per prefix, bucketed": Side(bucketed)},
            sizes=sizes,
            repeats=_RERUNS.value,
        ),
        *map(beside_a_causal_run, (length, *_LONGER.value)),
    ]


if __name__ == "__main__":
    launch(benchmark)

"""What does depth cost the compiler, and length the memory?

    python -m benchmarks.compilation --json=FILE

Each main program, traced and compiled anew: for a stack of equal layers eight times as deep as
another (a walk that unrolls layers takes eight times as long), and for a prompt twice as long as
another (attention that builds all its scores takes four times the temporaries). Memory is that of
the compiled program's temporaries; nothing is run.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from benchmarks.harness import Side, compare, launch
from icl_jax.blocks.config import StackConfig, build_stack
from icl_jax.blocks.functional import functional
from icl_jax.dynamics.prefixes import prefix_pass
from icl_jax.patches.extraction import stack_patches
from icl_jax.stack.layers import Layers
from icl_jax.stack.run import forward

_LAYERS = flags.DEFINE_integer("layers", 4, "of the shallow stack", lower_bound=2)
_LENGTH = flags.DEFINE_integer("length", 4096, "tokens of the short prompt", lower_bound=16)
_WIDTH = flags.DEFINE_integer("width", 64, "model width d", lower_bound=8)
DEEPER, LONGER = 8, 2

Program = Callable[[Layers, Any], Any]


def programs(length: int) -> dict[str, Program]:
    """The main programs, of layers and a sequence (T, D)."""
    kept = jnp.array([0, length // 2, length - 1])
    return {
        "forward": forward,
        "stack_patches": lambda layers, stream_TD: stack_patches(layers, stream_TD, kept),
        "prefix_pass": lambda layers, stream_TD: (
            prefix_pass(layers, stream_TD[:-1], stream_TD[-1]).output_MD
        ),
    }


def _side(name: str, depth: int, length: int) -> Side:
    """Traces and compiles a program, every time anew."""
    width = _WIDTH.value
    config = StackConfig(
        wiring="pre_norm", norm="rms", depth=depth, width=width, hidden_widths=(4 * width,)
    )
    stack = build_stack(config)
    shape = jax.ShapeDtypeStruct((length, 3), jnp.float32)
    params = jax.eval_shape(stack.init, jax.random.key(0), shape)["params"]
    stream_TD = jax.ShapeDtypeStruct((length, width), jnp.float32)
    program = programs(length)[name]

    def compiled() -> Any:
        jax.clear_caches()
        return jax.jit(program).lower(functional(stack, params), stream_TD).compile()

    return Side(compiled, lambda done: done.memory_analysis().temp_size_in_bytes)


def benchmark() -> list[dict]:
    """Depth against compile time, then length against temporaries."""
    layers, length = _LAYERS.value, _LENGTH.value
    short = min(length, 256)
    rows = []
    for name in programs(length):
        depths = (layers, DEEPER * layers)
        rows.append(
            compare(
                f"compile {name}",
                {f"{depth} layers": _side(name, depth, short) for depth in depths},
                sizes={"length": short, "width": _WIDTH.value},
            )
        )
    for name in programs(length):
        lengths = (length, LONGER * length)
        rows.append(
            compare(
                f"temporaries of {name}",
                {f"{size} tokens": _side(name, layers, size) for size in lengths},
                sizes={"layers": layers, "width": _WIDTH.value},
                repeats=1,
            )
        )
    return rows


if __name__ == "__main__":
    launch(benchmark)

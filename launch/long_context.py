"""Keys of a context that many chips share: put together on each, or passed around a ring?

    python -m launch.long_context             # compiles both, needs the extra tpu; minutes
    python -m launch.long_context --write     # table of launch/README.md from the file

Rows of a chip must meet all keys. Gathered, one layer's keys and values stand on every chip while
it is computed. On a ring each chip holds two parts, its neighbour's that it reads and the next that
is on its way, and what the rows have mixed so far is merged through the log-sum-exp (Liu et al.,
arXiv 2310.01889). Both are compiled for a slice, attention alone; beside them stands the whole
program with gathered keys, of whose memory the ring would save what the two differ by.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from experiments.tools.flags import UsageError, describe, option, parse
from experiments.tools.output import told
from icl_jax.dims import Array
from icl_jax.kernels.attention.api import attend
from icl_jax.kernels.attention.reference import merge
from icl_jax.kernels.attention.shapes import Sees
from launch.chips import chip_of, devices_of
from launch.pages import write_between
from launch.plan import compile_and_read, compilers, made_with, make_plan, read_plan, size
from launch.programs import Call, Sizes

HERE = Path(__file__).parent
ROWS, PAGE = HERE / "long_context.json", HERE / "README.md"
BEGIN, END = "<!-- long context -->", "<!-- end of long context -->"
AXIS = "context"
#: Attention of one layer, and of what model: heads, heads of keys, features of a head.
HEADS = {"llama-3.2-1b": (32, 8, 64), "gemma-3-27b": (32, 16, 128)}
#: Slice, chips, model, tokens.
CASES = (
    ("v5e:2x4", 8, "llama-3.2-1b", 131_072),
    ("v5e:4x4", 16, "llama-3.2-1b", 524_288),
    ("v5p:2x2x2", 8, "gemma-3-27b", 131_072),
)

#: ``attend``, and a way of dividing it.
Kernel = Callable[..., tuple[Array, Array]]
Way = Callable[..., Array]


def gathered(query_MAF: Array, key_TGF: Array, value_TGF: Array, *, kernel: Kernel) -> Array:
    """Own rows against all keys, which are put together first; on one chip of a ``shard_map``."""
    slots_M = _slots(query_MAF, jax.lax.axis_index(AXIS))
    whole = [jax.lax.all_gather(part, AXIS, axis=0, tiled=True) for part in (key_TGF, value_TGF)]
    return kernel(query_MAF, *whole, Sees(row_slots_M=slots_M))[0]


def ring(query_MAF: Array, key_TGF: Array, value_TGF: Array, *, kernel: Kernel) -> Array:
    """Own rows against one part of the keys after another, each from the neighbour."""
    count, here = jax.lax.axis_size(AXIS), jax.lax.axis_index(AXIS)
    onward = [(chip, (chip + 1) % count) for chip in range(count)]
    slots_M = _slots(query_MAF, here)

    def read(part: tuple[Array, ...], owner: Array) -> tuple[Array, Array]:
        return kernel(query_MAF, *part, Sees(slots_M, _slots(part[0], owner), itself=False))

    def turn(state: Any, step: Array) -> tuple[Any, None]:
        part, (mixed_MAF, log_sum_exp_AM) = state
        part = jax.tree.map(partial(jax.lax.ppermute, axis_name=AXIS, perm=onward), part)
        merged = merge(mixed_MAF, log_sum_exp_AM, *read(part, (here - step) % count))
        return (part, merged), None

    own = (key_TGF, value_TGF)
    start = (own, read(own, here))
    (_, (mixed_MAF, _)), _ = jax.lax.scan(turn, start, jnp.arange(1, count, dtype=jnp.int32))
    return mixed_MAF


def _slots(rows: Array, chip: Array) -> Array:
    return chip * rows.shape[0] + jnp.arange(rows.shape[0], dtype=jnp.int32)


WAYS: dict[str, Way] = {"gathered": gathered, "ring": ring}


def divided(way: str, mesh: Mesh, kernel: Kernel = attend) -> Way:
    """``run(query_TAF, key_TGF, value_TGF)`` with the positions of all three over the mesh."""
    rows = PartitionSpec(AXIS)
    part = partial(WAYS[way], kernel=kernel)
    return jax.shard_map(part, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)


def measure(topology: str, chips: int, model: str, length: int) -> list[dict[str, Any]]:
    """Both ways, and the whole program, compiled."""
    mesh = Mesh(np.array(devices_of(topology)[:chips]), (AXIS,), axis_types=(AxisType.Auto,))
    heads, groups, features = HEADS[model]
    on = NamedSharding(mesh, PartitionSpec(AXIS))
    arrays = [
        jax.ShapeDtypeStruct((length, count, features), jnp.bfloat16, sharding=on)
        for count in (heads, groups, groups)
    ]
    asked = {"topology": topology, "chips": chips, "model": model, "length": length}
    rows = []
    for way in WAYS:
        kernel = partial(attend, implementation="pallas_tpu")
        # The mesh that is set is none: the kernel is on one chip's part already.
        function = jax.jit(divided(way, mesh, kernel))
        compiled, text = compile_and_read(Call(function, tuple(arrays)), mesh)
        found = read_plan(compiled, text, chip_of(topology), "bfloat16")
        rows.append({**asked, "way": way, **_kept(found), "made_with": made_with()})
        print(f"{way}: {size(found['parts']['temporaries'])}", flush=True)
    sizes = Sizes(model, length=length, kept=64)
    plan = make_plan("full", sizes, topology, f"{AXIS}:{chips}")
    kept = {**_kept(vars(plan)), "needed": plan.needed, "fits": plan.fits}
    return [*rows, {**asked, "way": "the whole", **kept, "made_with": made_with()}]


def _kept(found: Any) -> dict[str, Any]:
    return {
        "temporaries": found["parts"].get("temporaries", 0),
        "sent": found["sent"],
        "network": found["network"],
        "messages": [list(one) for one in found["collectives"][:4]],
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """What was compiled, in Markdown."""
    lines = [
        "| slice, tokens | model's heads | | temporaries | sent | network, at least |",
        "|---|---|---|---|---|---|",
    ]
    names = {"gathered": "gathered", "ring": "ring", "the whole": "the whole model, gathered"}
    for row in rows:
        where = f"{row['topology']}, `{AXIS}:{row['chips']}`, {row['length']:,}"
        network = f"{1e3 * row['network']:.3g} ms"
        needed = size(row["temporaries"])
        if row["way"] == "the whole":
            needed += f" (all: {size(row['needed'])}{'' if row['fits'] else ', does not fit'})"
        cells = [where, row["model"], names[row["way"]], needed, size(row["sent"]), network]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", compilers(rows)])


@dataclass(frozen=True)
class Config:
    """What is compiled anew."""

    write: bool = option(False, "write the table from what the file has; compile nothing")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    jax.config.update("jax_platforms", "cpu")
    try:
        parsed = parse(Config, list(sys.argv if argv is None else argv))
        if parsed.help:
            print(describe(Config, __doc__, "long_context", needs_workdir=False, package="launch"))
            return 0
    except UsageError as error:
        print(f"long_context: error: {error}", file=sys.stderr)
        return 2
    if not parsed.config.write:
        rows = [row for case in CASES for row in measure(*case)]
        ROWS.write_text(json.dumps(rows, indent=1) + "\n")
    shown = table(json.loads(ROWS.read_text()))
    write_between(PAGE, BEGIN, END, shown)
    return 0


if __name__ == "__main__":
    with told("long_context"):
        sys.exit(main())

"""What a program takes of a slice before anybody rents it: compiled for it here, and run nowhere.

    python -m launch.plan --experiment=patches --model=gemma-3-1b --prompts=4 --length=8192 \\
        --topology=v5e:2x2 --mesh=data:2,model:2 --price=1.20

The real program is compiled by the TPU's own compiler (extra ``tpu``; a CPU is enough, weights are
never made). Its memory, its messages and its sizes are the compiler's; the times are lower bounds
from them and from the published peaks of the chip (``launch/chips.py``). With --search other
meshes, shorter buckets and recomputed layers are tried, and the quickest that fits is named.

Exit code 0: it fits; 3: it does not; 2: it cannot be planned.
"""

import dataclasses
import json
import math
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import rich.console
from jax.sharding import Mesh
from rich.table import Table

from experiments.tools.conduct import provenance
from experiments.tools.flags import UsageError, describe, option, parse
from experiments.tools.output import told
from icl_jax.language.batch import bucket
from icl_jax.records.provenance import versions_of
from icl_jax.sharding import make_mesh, mesh_axes
from launch import costs
from launch.chips import FLOAT32_SLOWDOWN, Chip, chip_of, devices_of
from launch.hlo import Program
from launch.programs import PROGRAMS, Call, Sizes

#: Experiments that spend their time in one of the programs, for those who name the experiment.
OF_EXPERIMENTS = {
    "checkpoint": "patches",
    "descent": "fleet",
    "language_model": "training",
    "real": "patches",
}
#: All that can be named, in words.
NAMES = ", ".join([*PROGRAMS, *(f"{name} ({program})" for name, program in OF_EXPERIMENTS.items())])
DOES_NOT_FIT = 3


@dataclass(frozen=True)
class Config:
    """Which program, of which size, on what."""

    experiment: str = option("", f"of {NAMES}")
    topology: str = option("v5e:2x2", "the slice, such as v5e:16x16 or v5p:2x2x1")
    model: str = option("gemma-3-1b", "a shape of launch.shapes, or the folder of a config.json")
    dtype: str = option("bfloat16", "of parameters and arithmetic: bfloat16 or float32")
    prompts: int = option(1, "of a batch, on all chips together; tasks of a fleet")
    length: int = option(2048, "tokens of a prompt")
    kept: int = option(64, "positions that a prompt keeps")
    rates: int = option(8, "learning rates of a fleet")
    steps: int = option(50, "of a descent; of generate, tokens that there is room for")
    remat: bool = option(False, "compute layers again in the gradient of a training")
    price: float = option(0.0, "of a chip for an hour")
    search: bool = option(False, "try other meshes, shorter buckets and recomputed layers")
    json: str = option("", "file that receives the plans")

    def __post_init__(self) -> None:
        if self.experiment and self.program not in PROGRAMS:
            raise ValueError(
                f"experiment must be one of {NAMES}, got {self.experiment!r}. Of another, name the "
                "program that it spends its time in."
            )
        if self.program == "prefixes" and self.prompts != 1:
            raise ValueError(
                f"prompts must be 1 with prefixes, which are those of one prompt, got "
                f"{self.prompts}. Leave --prompts out, and take its time as often."
            )
        if self.dtype not in ("bfloat16", "float32"):
            raise ValueError(f"dtype must be bfloat16 or float32, got {self.dtype!r}.")
        chip_of(self.topology)

    @property
    def program(self) -> str:
        """The name of what is compiled."""
        return OF_EXPERIMENTS.get(self.experiment.removeprefix("experiments."), self.experiment)

    @property
    def sizes(self) -> Sizes:
        """What it is compiled for."""
        names = [field.name for field in dataclasses.fields(Sizes)]
        return Sizes(**{name: getattr(self, name) for name in names})


@dataclass(frozen=True)
class Plan:
    """A program on a slice, as the compiler has it; all numbers are of one chip.

    Attributes:
      program, topology, mesh, sizes: what was asked for.
      fits: whether the compiler found room.
      needed: bytes of memory: of arguments, results, temporaries and the program, the compiler's
        sum; of one that does not fit, what its error says.
      parts: its parts, by name; empty where it does not fit.
      flops: of products.
      traffic: bytes to and from the memory.
      collectives: what it sends, in words, with the bytes of each.
      sent: bytes on the network.
      compute, memory, network: seconds that each would take alone, at the published peaks.
      trouble: what the compiler said, where it did not compile.
      compiled_in: seconds of tracing and compiling, here.
      made_with: the commit, and the versions of jax, jaxlib and libtpu.
    """

    program: str
    topology: str
    mesh: str
    sizes: Sizes
    fits: bool
    needed: int
    parts: dict[str, int]
    flops: float = 0.0
    traffic: float = 0.0
    collectives: tuple[tuple[str, float], ...] = ()
    sent: float = 0.0
    compute: float = 0.0
    memory: float = 0.0
    network: float = 0.0
    trouble: str = ""
    compiled_in: float = 0.0
    made_with: Mapping[str, str] = field(default_factory=dict)

    @property
    def seconds(self) -> tuple[float, float]:
        """At least: everything at once; and with nothing at once, at the same peaks."""
        parts = (self.compute, self.memory, self.network)
        return max(parts), sum(parts)

    @property
    def bound(self) -> str:
        """What takes longest."""
        names = {"compute": self.compute, "memory": self.memory, "network": self.network}
        return max(names, key=lambda name: names[name])


def made_with() -> dict[str, str]:
    """The code and the compiler of a plan that is made now."""
    return {**provenance(), **versions_of(("jax", "jaxlib", "libtpu"))}


def compilers(plans: Sequence[Mapping[str, Any]]) -> str:
    """A sentence that says with what plans were made, as they stand in a file."""
    told = [", ".join(map(" ".join, plan.get("made_with", {}).items())) for plan in plans]
    counts = Counter(one or "versions that were not noted" for one in told)
    rows = [f"{what} ({count} of {len(plans)})" for what, count in counts.items()]
    return f"Compiled with {'; '.join(rows)}."


def make_plan(program: str, sizes: Sizes, topology: str, mesh: str) -> Plan:
    """Compiles a program for a slice and reads what came out.

    Args:
      program: a name of ``PROGRAMS``.
      sizes: of its arrays.
      topology: such as ``v5e:16x16``.
      mesh: such as ``data:16,model:16``; its product is the number of chips.

    Raises:
      UsageError: a slice or a mesh that there is not.
    """
    chip, devices = chip_of(topology), devices_of(topology)
    try:
        made = make_mesh(mesh_axes(mesh), devices)
    except ValueError as error:
        raise UsageError(f"--mesh={mesh}: {error}") from None
    start = time.perf_counter()
    try:
        compiled, text = compile_and_read(PROGRAMS[program](sizes, made), made)
    except jax.errors.JaxRuntimeError as error:
        needed = _needed(str(error))
        if needed is None:
            raise
        seconds = time.perf_counter() - start
        said = " ".join(str(error).split())[:300]
        return Plan(
            *(program, topology, mesh, sizes, False, needed, {}),
            trouble=said,
            compiled_in=seconds,
            made_with=made_with(),
        )
    found = read_plan(compiled, text, chip, sizes.dtype)
    needed = sum(found["parts"].values())
    return Plan(
        program,
        topology,
        mesh,
        sizes,
        needed <= chip.capacity,
        needed,
        compiled_in=time.perf_counter() - start,
        made_with=made_with(),
        **found,
    )


def compile_and_read(call: Call, mesh: Mesh) -> tuple[Any, str]:
    """A compiled program and its text.

    The text is the compiler's own file: what came back from it, jaxlib 0.10 cannot always write
    (messages of several arrays that go on while something else is computed).
    """
    with tempfile.TemporaryDirectory() as folder:
        options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        compiled = call.compile(mesh, options)
        files = list(Path(folder).glob("*after_optimizations.txt"))
        largest = max(files, key=lambda file: file.stat().st_size, default=None)
        return compiled, compiled.as_text() if largest is None else largest.read_text()


def read_plan(compiled: Any, text: str, chip: Chip, dtype: str) -> dict[str, Any]:
    """The numbers of a compiled program, as ``Plan`` has them."""
    memory = compiled.memory_analysis()
    # What is given away is room for what comes back.
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    read = Program(text)
    messages = costs.collectives(read)
    flops, traffic = costs.flops(read), costs.traffic(read)
    sent = sum(one.sent * one.times for one in messages)
    slowdown = FLOAT32_SLOWDOWN if dtype == "float32" else 1.0
    return {
        "parts": {
            "arguments": memory.argument_size_in_bytes,
            "results": results,
            "temporaries": memory.temp_size_in_bytes,
            "program": memory.generated_code_size_in_bytes,
        },
        "flops": flops,
        "traffic": traffic,
        "collectives": tuple((str(one), one.nbytes * one.times) for one in messages),
        "sent": sent,
        **chip.seconds(flops * slowdown, traffic, sent),
    }


#: How versions of the compiler say how much was asked for; of vmem, a program's scratch on the
#: chip itself, they speak in the same words.
_FORMS = (
    r"[Uu]sed ([0-9.]+)([BKMGT])\w* of [0-9.]+[BKMGT]\w* (?i:hbm)",
    r"\(([0-9.]+)([BKMGT])\w*\) exceeds available (?i:hbm)",
)
_UNITS = {"B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def _needed(error: str) -> int | None:
    """The bytes that an out-of-memory error of the compiler names; None of another error."""
    if "memory" not in error:
        return None
    for form in _FORMS:
        if (found := re.search(form, error)) is not None:
            return int(float(found.group(1)) * _UNITS[found.group(2)])
    return None


#: Programs whose positions chips share where the mesh has an axis ``context``.
_OVER_CONTEXT = ("full", "patches", "prefixes")


def alternatives(config: Config, mesh: str) -> Iterator[tuple[Sizes, str, str]]:
    """Other sizes and meshes, what is tried first standing first, and what each changes."""
    sizes = config.sizes
    count = math.prod(mesh_axes(mesh).values())
    # Tasks of a fleet are divided over every axis: to it all meshes are the same.
    for model in (2**i for i in range(count.bit_length() if config.program != "fleet" else 0)):
        # Chips that get no prompt share the positions of one.
        data = math.gcd(count // model, sizes.prompts)
        context = count // model // data
        if data * context * model != count:
            continue
        if context > 1 and (config.program not in _OVER_CONTEXT or sizes.length % context):
            continue
        parts = {"data": data, "context": context, "model": model}
        text = ",".join(f"{name}:{size}" for name, size in parts.items() if size > 1) or "data:1"
        if _divided(text) != _divided(mesh):
            yield sizes, text, f"--mesh={text}"
    if config.program == "training" and not sizes.remat:
        yield dataclasses.replace(sizes, remat=True), mesh, "--remat"
    shorter = bucket(max(sizes.length // 2, 1))
    if config.program != "fleet" and sizes.length > 256:
        yield dataclasses.replace(sizes, length=shorter), mesh, f"--length={shorter}"
    if config.program == "fleet" and sizes.rates > 1:
        yield (
            dataclasses.replace(sizes, rates=sizes.rates // 2),
            mesh,
            f"--rates={sizes.rates // 2}",
        )
    data = count if config.program == "fleet" else mesh_axes(mesh).get("data", 1)
    if sizes.prompts > data:
        fewer = max(sizes.prompts // 2, data)
        yield dataclasses.replace(sizes, prompts=fewer), mesh, f"--prompts={fewer}"


def _divided(mesh: str) -> frozenset[tuple[str, int]]:
    """What a mesh divides, however it is written."""
    return frozenset((name, size) for name, size in mesh_axes(mesh).items() if size > 1)


def advice(plan: Plan) -> str:
    """What to change in a plan that does not fit."""
    axes = mesh_axes(plan.mesh)
    if plan.program == "fleet":  # Its weights are whole everywhere, and each axis has tasks.
        return "Change: fewer --prompts or --rates, or a larger slice. --search tries the first."
    told = ["a mesh with a larger axis 'model' (each chip then has less of the weights)"]
    if plan.program in _OVER_CONTEXT and plan.sizes.prompts < math.prod(axes.values()):
        told.append("an axis 'context' (chips share the positions of a prompt)")
    if axes.get("data", 1) < plan.sizes.prompts:
        told.append("a larger axis 'data' or fewer --prompts (fewer prompts on each chip)")
    if plan.sizes.length > 256:
        told.append(f"a shorter bucket (--length={bucket(max(plan.sizes.length // 2, 1))})")
    if plan.program == "training" and not plan.sizes.remat:
        told.append("--remat (layers are computed again in the gradient)")
    return f"Change: {'; or '.join(told)}. --search tries them."


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"


def show(plan: Plan, chip: Chip, price: float, console: rich.console.Console) -> None:
    """Prints a plan."""
    chips = math.prod(mesh_axes(plan.mesh).values())
    verdict = "fits" if plan.fits else "does NOT fit"
    console.print(
        f"{plan.program} on {plan.topology} ({chips} chips), mesh {plan.mesh}: {verdict}. "
        f"{size(plan.needed)} of {size(chip.capacity)} per chip.",
        highlight=False,
    )
    if not plan.parts:
        console.print(f"The compiler: {plan.trouble}", highlight=False)
    if not plan.fits:
        console.print(advice(plan), highlight=False)
    if not plan.parts:
        return
    table = Table("per chip", "", title=None)
    for name, count in plan.parts.items():
        table.add_row(name, size(count))
    table.add_row("products", f"{plan.flops / 1e9:,.1f} GFLOP, {1e3 * plan.compute:.3g} ms")
    table.add_row("memory traffic", f"{size(plan.traffic)}, {1e3 * plan.memory:.3g} ms")
    table.add_row("network", f"{size(plan.sent)}, {1e3 * plan.network:.3g} ms")
    least, most = plan.seconds
    table.add_row("one run, at least", f"{1e3 * least:.3g} ms, bound by {plan.bound}")
    table.add_row("one run, one by one", f"{1e3 * most:.3g} ms")
    if price:
        table.add_row("cost of 1,000 runs", f"at least {price * chips * least / 3.6:.3g}")
    console.print(table)
    for text, nbytes in plan.collectives[:12]:
        console.print(f"  {text}: {size(nbytes)}", highlight=False, soft_wrap=True)
    if len(plan.collectives) > 12:
        rest = sum(nbytes for _, nbytes in plan.collectives[12:])
        console.print(f"  and {len(plan.collectives) - 12} smaller ones: {size(rest)}")


def search(config: Config, first: Plan, console: rich.console.Console) -> list[Plan]:
    """Plans of the alternatives, then of the best one's, and a table of them.

    Args:
      config: what was asked for.
      first: its plan.
      console: where the table goes.
    """
    chip = chip_of(config.topology)
    found: list[Plan] = []
    told = {_key(first.sizes, first.mesh): ""}
    table = Table("change", "fits", "per chip", "at least", "bound by")
    for turn in range(2):  # What fits often takes two changes.
        base = _nearest([first, *found])
        here = dataclasses.replace(config, **vars(base.sizes))
        for sizes, mesh, change in alternatives(here, base.mesh):
            # From what fits as asked, less of it leads nowhere.
            less = turn > 0 and base.fits and _work(sizes) < _work(base.sizes)
            key = _key(sizes, mesh)
            if less or key in told:
                continue
            told[key] = f"{told[_key(base.sizes, base.mesh)]} {change}".strip()
            try:
                plan = make_plan(config.program, sizes, config.topology, mesh)
            except (ValueError, jax.errors.JaxRuntimeError) as error:
                # It was not asked for: what the compiler cannot do must not hide the others.
                why = " ".join(str(error).split())[:60]
                table.add_row(told[key], "no", f"not compiled: {why}", "", "")
                continue
            found.append(plan)
            seconds = f"{1e3 * plan.seconds[0]:.3g} ms" if plan.parts else ""
            used = f"{size(plan.needed)} of {size(chip.capacity)}"
            bound = plan.bound if plan.parts else ""
            table.add_row(told[key], "yes" if plan.fits else "no", used, seconds, bound)
    console.print(table)
    best = _best([first, *found])
    if best is None:
        console.print("None of these fits.", highlight=False)
    else:
        rates = f" --rates={best.sizes.rates}" if config.program == "fleet" else ""
        console.print(
            f"Quickest that fits: --mesh={best.mesh} --prompts={best.sizes.prompts} "
            f"--length={best.sizes.length}{rates}{' --remat' if best.sizes.remat else ''}.",
            highlight=False,
            soft_wrap=True,
        )
    return found


def _key(sizes: Sizes, mesh: str) -> tuple[Sizes, frozenset[tuple[str, int]]]:
    return sizes, _divided(mesh)


def _work(sizes: Sizes) -> int:
    """How much is asked for: a shorter bucket is no quicker way to the same."""
    return sizes.prompts * sizes.length * sizes.rates


def _best(plans: Sequence[Plan]) -> Plan | None:
    """Of those that fit the one that does most, and of these the quickest."""
    fitting = [plan for plan in plans if plan.fits]
    return min(fitting, key=lambda plan: (-_work(plan.sizes), plan.seconds), default=None)


def _nearest(plans: Sequence[Plan]) -> Plan:
    """The best that does all that the first was asked for, or what lacks least room for it."""
    whole = [plan for plan in plans if _work(plan.sizes) == _work(plans[0].sizes)]
    return _best(whole) or min(whole, key=lambda plan: plan.needed)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    argv = list(sys.argv if argv is None else argv)
    console = rich.console.Console()
    jax.config.update("jax_platforms", "cpu")
    try:
        parsed = parse(Config, argv)
        if parsed.help:
            print(describe(Config, __doc__, "plan", needs_workdir=False, package="launch"))
            return 0
        config: Config = parsed.config
        if not config.experiment:
            raise UsageError(f"--experiment=NAME is missing: one of {NAMES}.")
        mesh = parsed.machine.mesh or f"data:{len(devices_of(config.topology))}"
        plan = make_plan(config.program, config.sizes, config.topology, mesh)
        show(plan, chip_of(config.topology), config.price, console)
        plans = [plan, *(search(config, plan, console) if config.search else ())]
        if config.json:
            with open(config.json, "w") as file:
                json.dump([dataclasses.asdict(one) for one in plans], file, indent=1)
        return 0 if plan.fits else DOES_NOT_FIT
    except UsageError as error:
        print(f"plan: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    with told("plan"):
        sys.exit(main())

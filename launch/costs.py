"""What a compiled program sends between devices, computes, and moves in memory.

The compiler's own cost analysis counts the body of a loop once, and our programs are loops over
layers. Here every count is multiplied by the trips of the loops around it. Sizes are those of one
device's part.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from launch.hlo import Instruction, Program, Shape

#: What passes between devices; an asynchronous one counts where it starts.
COLLECTIVES = (
    "all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter",
    "ragged-all-to-all", "collective-broadcast",
)  # fmt: skip
#: Stands beside a collective that goes on while something else is computed.
_STARTS = 'custom_call_target="AsyncCollectiveStart"'
#: Instructions that move nothing by themselves.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call",
    "conditional", "opt-barrier", "after-all", "partition-id", "replica-id", "iota", "async-start",
    "async-update",
}  # fmt: skip


@dataclass(frozen=True)
class Collective:
    """Equal messages between devices.

    Attributes:
      kind: one of ``COLLECTIVES``.
      shapes: of what each device gives; of a gather, of what it gets.
      group: how many devices talk with each other.
      times: how often in one run of the program.
    """

    kind: str
    shapes: tuple[Shape, ...]
    group: int
    times: int

    @property
    def nbytes(self) -> int:
        """Of one message: the whole array that is gathered, or summed."""
        return sum(shape.nbytes for shape in self.shapes)

    @property
    def sent(self) -> float:
        """Bytes that pass through each device in one message on a ring: ``(n - 1) / n`` of it.

        Twice that for a sum, which is scattered and gathered.
        """
        share = (self.group - 1) / self.group if self.group > 1 else 0.0
        factor = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)
        if self.kind == "reduce-scatter":  # What it gives is a part already.
            factor = share * self.group
        return self.nbytes * factor

    def __str__(self) -> str:
        what = ", ".join(map(str, self.shapes))
        return f"{self.times} x {self.kind} of {what} among {self.group}"


def collectives(program: Program) -> list[Collective]:
    """What passes between devices, equal messages together, the largest first."""
    found: defaultdict[tuple[str, tuple[Shape, ...], int], int] = defaultdict(int)
    for one, name, times in _messages(program):
        kind = one.opcode.removesuffix("-start")
        shapes = one.shapes
        if one.opcode != kind and len(shapes) > 1:
            # Of a started one the operands stand first, then what comes; then marks.
            inputs = program.operand_shapes(one, name)
            shapes = inputs if kind == "all-reduce" else shapes[len(inputs) : 2 * len(inputs)]
        plain = tuple(Shape(shape.dtype, shape.sizes) for shape in shapes if shape.sizes != ())
        plain = plain or tuple(Shape(shape.dtype, ()) for shape in shapes[:1])
        found[kind, plain, _group(one.rest, program.num_devices)] += times
    rows = [Collective(*key, times) for key, times in found.items()]
    return sorted(rows, key=lambda row: (-row.nbytes * row.times, str(row)))


def _messages(program: Program) -> Iterator[tuple[Instruction, str, int]]:
    """Every collective with its computation and how often it runs.

    A message that goes on beside products is written as a chain of fusions, and in each of them
    again; it counts in the one that starts it.
    """
    for one, name, times in program.running():
        for each, where in program.inside(one, name):
            if each.opcode.removesuffix("-start") not in COLLECTIVES:
                continue
            beside = program.computations[where].values()
            starts = any(_STARTS in other.rest for other in beside)
            if where == name or starts or "chain_id" not in each.rest:
                yield each, where, times


def flops(program: Program) -> float:
    """Multiplications and additions of the products, which are what takes long."""
    total = 0.0
    for one, name, times in program.running():
        for each, where in program.inside(one, name):
            total += times * _product_flops(program, each, where)
    return total


def traffic(program: Program) -> float:
    """Bytes read from and written to the device's memory, an operand once per instruction."""
    total = 0.0
    for one, name, times in program.running():
        if one.opcode in _FREE or one.opcode.endswith("-done"):
            continue
        total += times * _moved(program, one, name)
    return total


def _moved(program: Program, one: Instruction, name: str) -> float:
    computation = program.computations[name]
    inner = program.computations.get(one.calls[0], {}) if one.opcode == "fusion" else {}
    parameters = {each.index: each for each in inner.values() if each.opcode == "parameter"}
    slices = one.opcode in ("dynamic-slice", "gather", "slice")
    total = 0.0
    for number, operand in enumerate(one.operands):
        source = computation.get(operand)
        if source is None or (slices and number == 0):
            continue
        whole: float = sum(shape.nbytes for shape in source.shapes if not shape.on_chip)
        if whole and number in parameters:
            whole = min(whole, _read_of(program, parameters[number].name, inner))
        if one.opcode == "dynamic-update-slice" and number == 0:
            whole = 0  # In place.
        total += whole
    written = sum(shape.nbytes for shape in one.shapes if not shape.on_chip)
    update = one if one.opcode == "dynamic-update-slice" else _updates(inner)
    if update is not None and written:
        where = computation if update is one else inner
        part = where.get(update.operands[1])
        if part is not None:
            written = min(written, sum(shape.nbytes for shape in part.shapes))
    return total + written


def _read_of(program: Program, name: str, inside: Mapping[str, Instruction]) -> float:
    """What a fusion reads of an operand: slices of it, where it takes nothing else."""
    total = 0.0
    for one in inside.values():
        for place, operand in enumerate(one.operands):
            if operand != name:
                continue
            if one.opcode == "fusion":
                inner = program.computations.get(one.calls[0], {})
                total += sum(
                    _read_of(program, each.name, inner)
                    for each in inner.values()
                    if each.opcode == "parameter" and each.index == place
                )
            elif one.opcode in ("bitcast", "copy", "reshape", "transpose"):
                total += _read_of(program, one.name, inside)
            elif one.opcode in ("dynamic-slice", "gather", "slice") and place == 0:
                total += sum(shape.nbytes for shape in one.shapes)
            elif one.opcode != "dynamic-update-slice" or place != 0:
                return math.inf
    return total


def _product_flops(program: Program, one: Instruction, where: str) -> float:
    if one.opcode == "custom-call":  # A kernel says what it costs.
        said = re.search(r'"flops":\s*"?(\d+)', one.rest)
        return float(said.group(1)) if said else 0.0
    if one.opcode not in ("dot", "convolution"):
        return 0.0
    result = one.shapes[0].count
    sources = program.operand_shapes(one, where)
    if len(sources) < 2:
        return 0.0
    if one.opcode == "dot":
        axes = re.search(r"lhs_contracting_dims=\{([0-9,]*)\}", one.rest)
        summed = [int(axis) for axis in axes.group(1).split(",") if axis] if axes else []
        return 2.0 * result * math.prod(sources[0].sizes[axis] for axis in summed)
    return _convolution_flops(one, sources[0], sources[1])


def _convolution_flops(one: Instruction, inputs: Shape, kernel: Shape) -> float:
    """Of a product that is written as a convolution: batches are places that it slides over.

    Only pairs of a place of the kernel and one of the result that meet an input count.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.rest)
    if labels is None:
        return 0.0
    of_input, of_kernel, of_result = labels.groups()
    result = one.shapes[0]
    pairs = 1.0
    window = re.search(r"window=\{([^}]*)\}", one.rest)
    options = dict(part.split("=") for part in window.group(1).split()) if window else {}
    for place, digit in enumerate(sorted(label for label in of_kernel if label.isdigit())):
        given = {name: text.split("x")[place] for name, text in options.items()}
        stride, from_input, from_kernel = (
            int(given.get(name, 1)) for name in ("stride", "lhs_dilate", "rhs_dilate")
        )
        low = int(given.get("pad", "0_0").split("_")[0])
        reach = (inputs.sizes[of_input.index(digit)] - 1) * from_input + 1
        starts = np.arange(result.sizes[of_result.index(digit)])[:, None] * stride - low
        places = starts + np.arange(kernel.sizes[of_kernel.index(digit)])[None, :] * from_kernel
        pairs *= np.sum((places >= 0) & (places < reach) & (places % from_input == 0))
    features = result.sizes[of_result.index("f")] * kernel.sizes[of_kernel.index("i")]
    return 2.0 * float(pairs) * result.sizes[of_result.index("b")] * features


def _updates(inner: Mapping[str, Instruction]) -> Instruction | None:
    """The update in place that a fusion ends in, if it does."""
    last = list(inner.values())[-1:] if inner else []
    while last and last[0].opcode in ("bitcast", "copy") and last[0].operands:
        last = [inner[last[0].operands[0]]] if last[0].operands[0] in inner else []
    return last[0] if last and last[0].opcode == "dynamic-update-slice" else None


def _group(rest: str, num_devices: int) -> int:
    """How many devices talk with each other."""
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]", rest)
    if iota:
        return int(iota.group(2))
    listed = re.search(r"replica_groups=\{\{([0-9,]*)\}", rest)
    if listed:
        return len(listed.group(1).split(","))
    grid = re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", rest)
    if grid:  # Named axes, or a part of one: 'axis_1':(before)size.
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", grid.group(1)))
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", grid.group(2))
        return math.prod(int(part or sizes[name]) for name, part in axes)
    pairs = re.search(r"source_target_pairs=", rest)
    return 2 if pairs else num_devices

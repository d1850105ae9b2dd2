"""A compiled program, read: how often each part runs, what it sends, computes and moves.

The compiler's own cost analysis counts the body of a loop once, and our programs are loops over
layers. Here every count is multiplied by the trips of the loops around it, which the compiler
writes into the program. Sizes are those of one device's part.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

_BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32,
    "s64": 64, "u64": 64, "f16": 16, "bf16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128,
    "f8e4m3fn": 8, "f8e5m2": 8, "f8e4m3": 8,
}  # fmt: skip
_ARRAY = re.compile(r"\b([a-z]+[0-9]*(?:e[0-9]+m[0-9]+(?:fn)?)?)\[([0-9,]*)\](\{[^}]*\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_OPCODE = re.compile(r"\s*([a-z][\w\-]*)\(")
_CALLED = re.compile(
    r"(?:calls|body|condition|to_apply|called_computations|branch_computations|"
    r"true_computation|false_computation)=(\{[^}]*\}|%[\w.\-]+)"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
#: What passes between devices; an asynchronous one counts where it starts.
COLLECTIVES = (
    "all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter",
    "ragged-all-to-all", "collective-broadcast",
)  # fmt: skip
#: Instructions whose called computation is one of elements, or belongs to one instruction.
_OF_ELEMENTS = ("fusion", "reduce", "scatter", "sort", "map", "select-and-scatter", "all-reduce")
#: The rest of what was started, which names the same computation again.
_GOING_ON = ("async-update", "async-done")
#: Instructions that move nothing by themselves.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call",
    "conditional", "opt-barrier", "after-all", "partition-id", "replica-id", "iota", "async-start",
    "async-update",
}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """An array of a program.

    Attributes:
      dtype: as in ``f32``.
      sizes: of its axes.
      on_chip: whether it lies in a memory of the core, not in the device's.
    """

    dtype: str
    sizes: tuple[int, ...]
    on_chip: bool = False

    @property
    def count(self) -> int:
        """How many numbers it has."""
        return math.prod(self.sizes)

    @property
    def nbytes(self) -> int:
        """Its size."""
        return (self.count * _BITS.get(self.dtype, 0) + 7) // 8

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.sizes))}]"


@dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name, opcode: as written; ``operands`` and ``calls`` are names.
      shapes: what it gives; several of a tuple.
      rest: what stands behind the operands.
      index: of a parameter its number, of a constant its value, else the line.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    calls: tuple[str, ...]
    rest: str = field(repr=False)
    index: int = 0


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


class Program:
    """A compiled program, from the text that ``compiled.as_text()`` gives."""

    def __init__(self, text: str) -> None:
        """Reads the text.

        Raises:
          ValueError: it has no entry computation.
        """
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        devices = re.search(r"num_partitions=(\d+)", text.split("\n", 1)[0])
        self.num_devices = int(devices.group(1)) if devices else 1
        current: dict[str, Instruction] = {}
        for line in text.splitlines():
            if line[:1] in ("%", "E") and line.rstrip().endswith("{"):
                name = _NAME.search(line)
                assert name is not None
                current = self.computations.setdefault(name.group(1), {})
                if line.startswith("ENTRY"):
                    self.entry = name.group(1)
            elif line.startswith("  "):
                found = _instruction(line, len(current))
                if found is not None:
                    current[found.name] = found
        if not self.entry:
            raise ValueError("Program: the text has no ENTRY computation; give compiled.as_text().")
        self.times = self._times()

    def _times(self) -> Mapping[str, int]:
        """How often each computation runs; those inside fusions are no computations here."""
        times: defaultdict[str, int] = defaultdict(int)

        def walk(name: str, count: int) -> None:
            times[name] += count
            for one in self.computations.get(name, {}).values():
                if one.opcode.startswith(_OF_ELEMENTS) or one.opcode in _GOING_ON:
                    continue
                trips = self._trips(one) if one.opcode == "while" else 1
                for called in one.calls:
                    walk(called, count * trips)

        walk(self.entry, 1)
        return times

    def _trips(self, loop: Instruction) -> int:
        """How often a loop turns; 1 where only the running program knows."""
        if (found := _TRIPS.search(loop.rest)) is not None:
            return int(found.group(1))
        # Where the compiler says nothing: JAX counts from 0 up to a number in the condition.
        condition = re.search(r"condition=%([\w.\-]+)", loop.rest)
        inside = self.computations.get(condition.group(1), {}) if condition else {}
        for one in inside.values():
            if one.opcode == "compare" and "direction=LT" in one.rest:
                limits = [inside[name] for name in one.operands if name in inside]
                numbers = [each.index for each in limits if each.opcode == "constant"]
                if len(numbers) == 1:
                    return max(numbers[0], 0)
        return 1

    def running(self) -> Iterator[tuple[Instruction, str, int]]:
        """Every instruction that runs, with its computation and how often; fusions as one."""
        for name, times in self.times.items():
            for one in self.computations[name].values():
                yield one, name, times

    def collectives(self) -> list[Collective]:
        """What passes between devices, equal messages together, the largest first."""
        found: defaultdict[tuple[str, tuple[Shape, ...], int], int] = defaultdict(int)
        for one, name, times in self.running():
            kind = one.opcode.removesuffix("-start")
            if kind not in COLLECTIVES:
                continue
            shapes = one.shapes
            if one.opcode != kind and len(shapes) > 1:
                # Of a started one the operands stand first, then what comes; then marks.
                inputs = self._operand_shapes(one, name)
                shapes = inputs if kind == "all-reduce" else shapes[len(inputs) : 2 * len(inputs)]
            plain = tuple(Shape(shape.dtype, shape.sizes) for shape in shapes if shape.sizes != ())
            plain = plain or tuple(Shape(shape.dtype, ()) for shape in shapes[:1])
            found[kind, plain, _group(one.rest, self.num_devices)] += times
        rows = [Collective(*key, times) for key, times in found.items()]
        return sorted(rows, key=lambda row: (-row.nbytes * row.times, str(row)))

    def flops(self) -> float:
        """Multiplications and additions of the products, which are what takes long."""
        total = 0.0
        for one, name, times in self.running():
            for each, where in self._inside(one, name):
                total += times * self._product_flops(each, where)
        return total

    def traffic(self) -> float:
        """Bytes read from and written to the device's memory, an operand once per instruction."""
        total = 0.0
        for one, name, times in self.running():
            if one.opcode in _FREE or one.opcode.endswith("-done"):
                continue
            total += times * self._moved(one, name)
        return total

    def _moved(self, one: Instruction, name: str) -> float:
        computation = self.computations[name]
        inner = self.computations.get(one.calls[0], {}) if one.opcode == "fusion" else {}
        parameters = {each.index: each for each in inner.values() if each.opcode == "parameter"}
        slices = one.opcode in ("dynamic-slice", "gather", "slice")
        total = 0.0
        for number, operand in enumerate(one.operands):
            source = computation.get(operand)
            if source is None or (slices and number == 0):
                continue
            whole: float = sum(shape.nbytes for shape in source.shapes if not shape.on_chip)
            if whole and number in parameters:
                whole = min(whole, self._read_of(parameters[number].name, inner))
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

    def _read_of(self, name: str, inside: Mapping[str, Instruction]) -> float:
        """What a fusion reads of an operand: slices of it, where it takes nothing else."""
        total = 0.0
        for one in inside.values():
            for place, operand in enumerate(one.operands):
                if operand != name:
                    continue
                if one.opcode == "fusion":
                    inner = self.computations.get(one.calls[0], {})
                    total += sum(
                        self._read_of(each.name, inner)
                        for each in inner.values()
                        if each.opcode == "parameter" and each.index == place
                    )
                elif one.opcode in ("bitcast", "copy", "reshape", "transpose"):
                    total += self._read_of(one.name, inside)
                elif one.opcode in ("dynamic-slice", "gather", "slice") and place == 0:
                    total += sum(shape.nbytes for shape in one.shapes)
                elif one.opcode != "dynamic-update-slice" or place != 0:
                    return math.inf
        return total

    def _inside(self, one: Instruction, where: str) -> Iterator[tuple[Instruction, str]]:
        """An instruction with its computation; of a fusion all that it is made of."""
        if one.opcode != "fusion":
            yield one, where
            return
        for called in one.calls:
            for each in self.computations.get(called, {}).values():
                yield from self._inside(each, called)

    def _product_flops(self, one: Instruction, where: str) -> float:
        if one.opcode == "custom-call":  # A kernel says what it costs.
            said = re.search(r'"flops":\s*"?(\d+)', one.rest)
            return float(said.group(1)) if said else 0.0
        if one.opcode not in ("dot", "convolution"):
            return 0.0
        result = one.shapes[0].count
        sources = self._operand_shapes(one, where)
        if len(sources) < 2:
            return 0.0
        if one.opcode == "dot":
            axes = re.search(r"lhs_contracting_dims=\{([0-9,]*)\}", one.rest)
            summed = [int(axis) for axis in axes.group(1).split(",") if axis] if axes else []
            return 2.0 * result * math.prod(sources[0].sizes[axis] for axis in summed)
        return _convolution_flops(one, sources[0], sources[1])

    def _operand_shapes(self, one: Instruction, where: str) -> tuple[Shape, ...]:
        computation = self.computations[where]
        return tuple(
            shape
            for operand in one.operands
            if operand in computation
            for shape in computation[operand].shapes
        )


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


def _instruction(line: str, index: int) -> Instruction | None:
    left, equals, right = line.strip().partition(" = ")
    name = _NAME.search(left)
    if not equals or name is None:
        return None
    text, rest = _first_type(right)
    opcode = _OPCODE.match(rest)
    if opcode is None:
        return None
    inside, rest = _balanced(rest[opcode.end() - 1 :])
    counts = opcode.group(1) in ("parameter", "constant") and inside.lstrip("-").isdigit()
    number = int(inside) if counts else index
    calls = tuple(one for found in _CALLED.findall(rest) for one in _NAME.findall(found))
    shapes = tuple(
        Shape(dtype, tuple(int(size) for size in sizes.split(",") if size), "S(" in layout)
        for dtype, sizes, layout in _ARRAY.findall(text)
        if dtype in _BITS
    )
    operands = tuple(_NAME.findall(inside))
    return Instruction(name.group(1), opcode.group(1), shapes, operands, calls, rest, number)


def _first_type(text: str) -> tuple[str, str]:
    """The type that a text begins with, and what follows it."""
    if text.startswith("("):
        inside, rest = _balanced(text)
        return inside, rest
    found, _, rest = text.partition(" ")
    return found, " " + rest


def _balanced(text: str) -> tuple[str, str]:
    """What stands in the parenthesis that a text begins with, and what follows it."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[1:place], text[place + 1 :]
    return text[1:], ""


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

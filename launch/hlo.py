"""A compiled program, read: its computations, and how often each runs.

The compiler's own cost analysis counts the body of a loop once, and our programs are loops over
layers. Here every count is multiplied by the trips of the loops around it, which the compiler
writes into the program. Sizes are those of one device's part.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

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
#: Instructions whose called computation is one of elements, or belongs to one instruction.
_OF_ELEMENTS = ("fusion", "reduce", "scatter", "sort", "map", "select-and-scatter", "all-reduce")
#: The rest of what was started, which names the same computation again.
_GOING_ON = ("async-update", "async-done")


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

    def inside(self, one: Instruction, where: str) -> Iterator[tuple[Instruction, str]]:
        """An instruction with its computation; of a fusion all that it is made of."""
        if one.opcode != "fusion":
            yield one, where
            return
        for called in one.calls:
            for each in self.computations.get(called, {}).values():
                yield from self.inside(each, called)

    def operand_shapes(self, one: Instruction, where: str) -> tuple[Shape, ...]:
        """What an instruction of a computation is given."""
        computation = self.computations[where]
        return tuple(
            shape
            for operand in one.operands
            if operand in computation
            for shape in computation[operand].shapes
        )


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

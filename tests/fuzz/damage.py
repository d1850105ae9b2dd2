"""Ways to damage a file, drawn from a seed, all of which a reader can notice.

A digit that became another digit is no damage that anybody can see, so bits of texts are flipped
where what comes out is no UTF-8, and numbers become absurd ones.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

#: What stands for a value of another type than the one that is there.
STRANGERS: tuple[Any, ...] = ("abc", 7, 2.5, True, [], [1, "x"], {}, {"a": 1})
ABSURD = (10**9, 2**31, 10**18, 10**400, 1e300, -1, -(10**9), 0, "1" * 5000)

Random = np.random.Generator
Damage = Callable[[Random, Path], str]


def pick(random: Random, values: Any) -> Any:
    """One of some values, as it is."""
    values = list(values)
    return values[int(random.integers(len(values)))]


def truncate(random: Random, file: Path) -> str:
    """Leaves less than is needed: the last bytes that matter are gone."""
    data = file.read_bytes().rstrip()
    keep = int(random.integers(len(data)))
    file.write_bytes(data[:keep])
    return f"{file.name} cut to {keep} of {len(data)} bytes"


def flip_text(random: Random, file: Path) -> str:
    """Makes an ASCII character a byte that begins or ends nothing."""
    data = bytearray(file.read_bytes())
    place = pick(random, [i for i, byte in enumerate(data) if byte < 128])
    data[place] ^= 128
    file.write_bytes(bytes(data))
    return f"{file.name}: byte {place} flipped"


def flip(random: Random, file: Path) -> str:
    """Any bit of a file."""
    data = bytearray(file.read_bytes())
    place, bit = int(random.integers(len(data))), int(random.integers(8))
    data[place] ^= 1 << bit
    file.write_bytes(bytes(data))
    return f"{file.name}: bit {bit} of byte {place}"


def nest(random: Random, file: Path) -> str:
    """A value of an object, nested without end."""
    found = json.loads(file.read_text(encoding="utf-8"))
    key = pick(random, found)
    depth = int(random.integers(10_000, 200_000))
    opening, closing = pick(random, (("[", "]"), ('{"a":', "}")))
    deep = opening * depth + "1" + closing * depth
    text = json.dumps({**found, key: "HERE"}).replace('"HERE"', deep, 1)
    file.write_text(text, encoding="utf-8")
    return f"{file.name}: {key} nested {depth} times"


def twice(random: Random, file: Path) -> str:
    """A key that comes twice, with another value."""
    found = json.loads(file.read_text(encoding="utf-8"))
    key = pick(random, found)
    other = json.dumps({key: pick(random, STRANGERS)})[1:-1]
    file.write_text("{" + other + ", " + json.dumps(found)[1:], encoding="utf-8")
    return f"{file.name}: {key} twice"


def empty(
    random: Random,
    file: Path,
    kinds: tuple[str, ...] = ("empty", "zeros", "pointer", "folder", "list"),
) -> str:
    """Nothing, or what is no file of the kind."""
    kind = pick(random, kinds)
    file.unlink()
    if kind == "folder":
        file.mkdir()
    else:
        file.write_bytes(
            {
                "empty": b"",
                "zeros": bytes(4096),
                "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
                "list": b"[1, 2]",
            }[kind]
        )
    return f"{file.name}: {kind}"


def remove(random: Random, file: Path) -> str:
    """The file is gone."""
    file.unlink()
    return f"{file.name} is gone"


def change_type(keys: Any) -> Damage:
    """One of some keys gets a value of another type."""

    def damage(random: Random, file: Path) -> str:
        found = json.loads(file.read_text(encoding="utf-8"))
        key = pick(random, [key for key in keys if key in found])
        strange = [one for one in STRANGERS if not _alike(one, found[key])]
        found[key] = pick(random, strange)
        file.write_text(json.dumps(found), encoding="utf-8")
        return f"{file.name}: {key} = {found[key]!r}"

    return damage


def make_absurd(keys: Any) -> Damage:
    """One of some numbers becomes one that cannot be."""

    def damage(random: Random, file: Path) -> str:
        found = json.loads(file.read_text(encoding="utf-8"))
        key = pick(random, [key for key in keys if key in found])
        value = pick(random, ABSURD)
        text = json.dumps({**found, key: "HERE"})
        shown = value if isinstance(value, str) else json.dumps(value)
        file.write_text(text.replace('"HERE"', shown, 1), encoding="utf-8")
        return f"{file.name}: {key} = {shown[:40]}"

    return damage


def _alike(one: Any, other: Any) -> bool:
    """Whether two values are of one JSON type (7 and 7.0 are); an empty one may be left out."""
    numbers = (int, float)
    if isinstance(one, bool) or isinstance(other, bool):
        return isinstance(one, bool) and isinstance(other, bool)
    if isinstance(one, numbers) and isinstance(other, numbers):
        return True
    return type(one) is type(other) or other is None


def flip_header(random: Random, file: Path) -> str:
    """A bit of the header of a safetensors file."""
    data = bytearray(file.read_bytes())
    length = int.from_bytes(data[:8], "little")
    place, bit = int(random.integers(8 + length)), int(random.integers(8))
    data[place] ^= 1 << bit
    file.write_bytes(bytes(data))
    return f"{file.name}: bit {bit} of byte {place} of the header"


def change_header(random: Random, file: Path) -> str:
    """A field of the header of a safetensors file, and the right length of what it has become."""
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    name = pick(random, [name for name in header if name != "__metadata__"])
    fields = header[name]
    kind = pick(random, ("shape", "huge", "dtype", "offsets", "twice", "name", "gone", "type"))
    if kind == "shape":
        fields["shape"] = [*fields["shape"], 2]
    elif kind == "huge":
        fields["shape"] = [10**18, 10**18]
    elif kind == "dtype":
        fields["dtype"] = pick(random, ("F64", "F8_E4M3", "I32", "BOOL", "C64", 5))
    elif kind == "offsets":
        fields["data_offsets"] = [0, 10**15]
    elif kind == "name":
        header["model." + name + ".other"] = header.pop(name)
    elif kind == "gone":
        del header[name]
    elif kind == "type":
        header[name] = pick(random, STRANGERS)
    text = json.dumps(header)
    if kind == "twice":
        text = "{" + json.dumps({name: fields})[1:-1] + ", " + text[1:]
    raw = text.encode()
    file.write_bytes(len(raw).to_bytes(8, "little") + raw + data[8 + length :])
    return f"{file.name}: {name} {kind}"

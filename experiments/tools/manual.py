"""What ``--help`` prints: a docstring, and the flags of a configuration by group."""

import re
import shlex
import shutil
import textwrap
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.tools.fields import items, shown, usage

_WIDTH, _INDENT = 100, 44  # Longest line, and start of the explanations.
_NARROW = 80  # In a window below this, explanations stand under their flags.


def describe(
    config_type: type[Any],
    doc: str | None,
    name: str,
    *,
    needs_workdir: bool = True,
    package: str = "experiments",
) -> str:
    """The help text: the docstring, then the flags by group, each with its default."""
    small = config_type.quick() if hasattr(config_type, "quick") else None
    required = "required" if needs_workdir else "optional"
    general = [
        ("--workdir=DIR", f"folder for records and figures ({required}); a killed run goes on")
    ]
    if small is not None:
        general.append(("--quick", "everything small; flags given beside it still count"))
    general += [
        (
            "--compiled=DIR",
            "compiled programs are kept there; none: nowhere",
        ),
        (
            "--platform=NAME",
            "cpu, gpu or tpu; left out, the accelerator"
            + (", but the CPU for what is quick" if small is not None else ""),
        ),
        ("--profile=DIR", "write a trace for TensorBoard and Perfetto"),
        ("--mesh=AXES", "devices that share the work, such as data:4,model:2; one, if left out"),
        ("--distributed", "one of several processes; TPU slices, GKE and SLURM say which"),
        ("--coordinator=HOST:PORT", "elsewhere: of the first process, with the next two"),
        ("--process=INT", "elsewhere: which one this is, from 0"),
        ("--processes=INT", "elsewhere: how many there are"),
        ("--heartbeat=INT", "seconds after which a silent process counts as lost"),
        ("--help", "show this"),
    ]
    groups: dict[str, list[tuple[str, str]]] = {"Flags": general}
    quick = {item.name: item.default for item in items(small)} if small is not None else {}
    for item in items(config_type()):
        default = preset(item.default)
        if item.name in quick and quick[item.name] != item.default:
            default = f"{default}; quick: {shown(quick[item.name])}".removeprefix("; ")
        if typing.get_origin(item.hint) is typing.Literal:
            default = f"{', '.join(map(shown, typing.get_args(item.hint)))}; {default}"
        text = f"{item.help} ({default})" if default else item.help
        groups.setdefault(item.group, []).append((usage(item), text.strip()))
    return manual(doc, f"{package}.{name}", groups)


def preset(default: Any) -> str:
    """What is said of a default; of none where the flag is required, or off without a value."""
    return "" if default in ("", ()) else f"default: {shown(default)}"


def manual(doc: str | None, module: str, groups: Mapping[str, Sequence[tuple[str, str]]]) -> str:
    """A help text of a docstring and of flags by group, each a flag and what is said of it.

    As wide as the window, or as COLUMNS says.
    """
    width = min(_WIDTH, shutil.get_terminal_size((_WIDTH, 24)).columns)
    lines = [_filled(doc or "", width), "", f"Usage: python -m {module} [flags]"]
    for group, entries in groups.items():
        lines += ["", *_wrapped(group, width)]
        for flag, text in entries:
            lines += _columns(f"  {flag}", text, width)
    return "\n".join(lines)


def _filled(doc: str, width: int) -> str:
    """A docstring in lines of so many characters; commands are cut where a shell lets one."""
    if width >= _WIDTH:
        return doc.strip()
    filled = []
    for paragraph in doc.strip().split("\n\n"):
        if paragraph.startswith(" "):
            lines = re.sub(r"\\\n +", "", paragraph).splitlines()
            filled.append("\n".join(_command(line, width) for line in lines))
        else:
            filled.append("\n".join(_wrapped(" ".join(paragraph.split()), width)))
    return "\n\n".join(filled)


def _command(line: str, width: int) -> str:
    """An indented line; a command that is too long goes on behind a backslash."""
    if len(line) <= width or not line.lstrip().startswith("python "):
        return line
    indent = " " * (len(line) - len(line.lstrip()))
    parts = [""]
    for word in shlex.split(line, posix=False):  # What is quoted stays whole.
        if parts[-1] and len(f"{indent}    {parts[-1]} {word} \\") > width:
            parts.append("")
        parts[-1] = f"{parts[-1]} {word}".lstrip()
    return f" \\\n{indent}    ".join([indent + parts[0], *parts[1:]])


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def _columns(flag: str, text: str, width: int) -> list[str]:
    indent = _INDENT if width >= _NARROW else 6
    room = width - indent
    # A list that no line has room for goes on behind one of its commas.
    words = (word if len(word) <= room else word.replace(",", ", ") for word in text.split())
    wrapped = _wrapped(" ".join(words), room)
    if len(flag) + 2 > indent:
        return [flag, *(" " * indent + line for line in wrapped)]
    return [(flag if i == 0 else "").ljust(indent) + line for i, line in enumerate(wrapped)]

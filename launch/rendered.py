"""What executors share that write job descriptions for somebody else's machines.

A job is a driver of its own, with the executor ``local``, for one shard of the sweep; the service
starts it, and starts it again when its machine is taken back. So nothing of ours has to stay awake,
and what is done is known from the sweep's folder alone.
"""

import re
import shlex
from collections.abc import Mapping
from typing import Any

from experiments.tools.flags import UsageError
from launch.layout import is_remote, write_whole
from launch.task import Batch, Watcher

#: Chips of one host's slice -> the topology's name, by generation, and what GKE calls it.
#: Source: "TPU configurations" and "TPUs in GKE" in Google Cloud's documentation.
TPUS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "v4": ("tpu-v4-podslice", ("2x2x1",)),
    "v5e": ("tpu-v5-lite-podslice", ("1x1", "2x2", "2x4")),
    "v5p": ("tpu-v5p-slice", ("2x2x1",)),
    "v6e": ("tpu-v6e-slice", ("1x1", "2x2", "2x4")),
}

#: Slices of several hosts with four chips each: the shapes, or how many chips those of three axes
#: may have. Source: as above.
_MANY: Mapping[str, tuple[str, ...] | int] = {
    "v4": 4096,
    "v5e": ("4x4", "4x8", "8x8", "8x16", "16x16"),
    "v5p": 6144,
    "v6e": ("4x4", "4x8", "8x8", "8x16", "16x16"),
}
_CHIPS_OF_A_HOST = 4

_NAME = re.compile(r"[a-z]([a-z0-9-]{0,48}[a-z0-9])?")


def check_name(where: str, name: str) -> None:
    """ValueError unless clouds take the name."""
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{where}: name must consist of a-z, 0-9 and -, start with a letter and be at most 50 "
            f"long, got {name!r}."
        )


def split_topology(where: str, topology: str, *, several: bool = False) -> tuple[str, str]:
    """``"v5e:2x2"`` -> ``("v5e", "2x2")``.

    Args:
      where: whose option it is.
      topology: of a slice.
      several: whether the slice may have several hosts.

    Raises:
      ValueError: another form, another generation, no such slice, or more hosts than may be.
    """
    generation, _, shape = topology.partition(":")
    if generation not in TPUS:
        raise ValueError(
            f"{where}: topology must be GENERATION:SHAPE, such as v5e:2x2, with one of "
            f"{', '.join(TPUS)}, got {topology!r}."
        )
    shapes = TPUS[generation][1]
    if shape in shapes:
        return generation, shape
    one, many = " or ".join(shapes), _MANY[generation]
    exists = shape in many if isinstance(many, tuple) else _is_of_cubes(shape, many)
    if not exists:
        more = (
            ", ".join(many)
            if isinstance(many, tuple)
            else f"2x2x2, 2x2x4, 2x4x4 or sides in fours that do not fall, up to {many} chips"
        )
        raise ValueError(
            f"{where}: there is no slice {topology!r}: on one host {generation} can be {one}, on "
            f"several {more}."
        )
    if not several:
        raise ValueError(
            f"{where}: a run uses one host here, so {generation} can be {one}, got {shape!r}. "
            "Raise shards to use more hosts, or take --executor=gke, whose runs may have several."
        )
    return generation, shape


def _is_of_cubes(shape: str, most: int) -> bool:
    """Whether a shape of three axes is that of a slice of several hosts."""
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*x[1-9]\d*", shape):
        return False
    sides = [int(side) for side in shape.split("x")]
    if sides in ([2, 2, 2], [2, 2, 4], [2, 4, 4]):
        return True
    fours = all(side % 4 == 0 for side in sides)
    return fours and sides == sorted(sides) and num_chips(shape) <= most


def num_hosts(topology: str) -> int:
    """Hosts of a slice that ``split_topology`` takes: ``"v5e:16x16"`` has 64."""
    generation, _, shape = topology.partition(":")
    return 1 if shape in TPUS[generation][1] else num_chips(shape) // _CHIPS_OF_A_HOST


def num_chips(shape: str) -> int:
    """Chips of ``"2x2"``: 4."""
    chips = 1
    for side in shape.split("x"):
        chips *= int(side)
    return chips


def driver(batch: Batch, shard: str) -> list[str]:
    """The command of one job. One process at a time: it has all chips of its machine."""
    return [
        *("python", "-m", "launch.sweep"),
        f"--sweep={batch.sweep}",
        f"--workdir={batch.workdir}",
        "--executor=local",
        "--local.workers=1",
        f"--shard={shard}",
        *([f"--track={','.join(batch.track)}"] if batch.track else []),
        *([f"--mesh={batch.mesh}"] if batch.mesh else []),
    ]


def shell(command: list[str], **variables: str) -> str:
    """A command as a line for a shell in which the words of ``variables`` are expanded."""
    line = shlex.join(command)
    for word in command:
        for placeholder, variable in variables.items():
            if placeholder in word:
                expanded = '"' + word.replace(placeholder, variable) + '"'
                line = line.replace(shlex.quote(word), expanded)
    return line


def to_yaml(*documents: Mapping[str, Any]) -> str:
    """YAML text, keys in the order in which they are given.

    Raises:
      UsageError: PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError as error:
        raise UsageError("writing YAML needs PyYAML: pip install pyyaml.") from error
    text: str = yaml.safe_dump_all(documents, sort_keys=False, width=100)
    return text


def check_batch(where: str, batch: Batch) -> None:
    """UsageError where other machines could not run it."""
    check_whole(where, batch)
    if not is_remote(batch.workdir):
        raise UsageError(
            f"--executor={where}: --workdir={batch.workdir} must be an address that every machine "
            "reaches, such as gs://BUCKET/FOLDER."
        )


def check_whole(where: str, batch: Batch) -> None:
    """UsageError where it is only a part of the sweep."""
    if batch.shard is not None:
        raise UsageError(
            f"--executor={where}: leave --shard out; --{where.replace('-', '_')}.shards divides "
            "the sweep between machines."
        )


def as_text(files: Mapping[str, str]) -> str:
    """Files one after the other, each under its name."""
    return "\n".join(f"# --- jobs/{name}\n{text}" for name, text in files.items())


def hand_over(batch: Batch, files: Mapping[str, str], watcher: Watcher, then: str) -> None:
    """Writes the files and says what to do with them."""
    for name, text in files.items():
        write_whole(batch.layout.jobs / name, text)
    watcher.note(f"Written: {', '.join(str(batch.layout.jobs / name) for name in files)}")
    watcher.note(f"Start it:\n{then}")

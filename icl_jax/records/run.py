"""The folder of one run: its files by name."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from icl_jax.records.arrays import read_arrays, write_arrays
from icl_jax.records.files import atomic_file
from icl_jax.records.lock import FolderLock
from icl_jax.records.plain import plain, read_plain
from icl_jax.records.processes import gathered, meet, of_the_first


@dataclass(frozen=True)
class Run:
    """The folder of one run. Names are paths inside it, such as ``"descent/losses.npz"``.

    Attributes:
      workdir: the folder.
      lock: what keeps other processes out as long as it exists; None in a run that only reads.
    """

    workdir: Path
    lock: FolderLock | None = field(default=None, compare=False, repr=False)

    def path(self, name: str) -> Path:
        """The path of ``name``; ValueError where it would lie outside the folder."""
        relative = Path(name)
        inside = relative.parts and not relative.is_absolute() and ".." not in relative.parts
        if not inside or "\0" in name:
            raise ValueError(f"Run.path: {name!r} is not a path inside the run folder.")
        return self.workdir / relative

    def has(self, name: str) -> bool:
        """Whether ``name`` was written to the end: a finished stage can be skipped.

        Processes of one program agree: what the first one sees, all see.
        """
        return bool(of_the_first(self.path(name).is_file()))

    def save_json(self, name: str, value: Any) -> None:
        """Writes ``value`` as ``plain`` sees it. Raises as ``plain`` does."""
        text = json.dumps(plain(value), indent=2) + "\n"
        with atomic_file(self.path(name)) as file:
            file.write(text.encode())
        meet()

    def load_json(self, name: str) -> Any:
        """Reads what ``save_json`` wrote; tuples and arrays come back as lists.

        Raises:
          WorkdirError: the file holds no JSON, or such as ``save_json`` does not write.
        """
        return read_plain(self.path(name))

    def save_arrays(self, name: str, arrays: Mapping[str, Any]) -> None:
        """Writes named arrays (numpy, jax, bfloat16 and float8 too) as one .npz file.

        Arrays that lie on several processes are gathered from all of them, so all have to ask.

        Raises:
          TypeError: an entry is no array of numbers, truth values or text; a PRNG key, say.
        """
        whole = {key: gathered(value) for key, value in arrays.items()}
        with atomic_file(self.path(name)) as file:
            write_arrays(file, whole)
        meet()

    def load_arrays(self, name: str) -> dict[str, np.ndarray]:
        """Reads what ``save_arrays`` wrote: the same names, shapes, dtypes and bits.

        Raises:
          WorkdirError: the file is not what was written: cut off, or a bit of it flipped (every
            array has a checksum).
        """
        return read_arrays(self.path(name))

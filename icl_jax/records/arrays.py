"""Named arrays as one .npz file, with the dtypes that numpy itself cannot store."""

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np

from icl_jax.records.errors import damaged

_DTYPES = "__dtypes__"  # Entry of an .npz file: the dtypes that numpy itself cannot store.


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """What ``write_arrays`` wrote. Raises as ``Run.load_arrays``."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
        dtypes = json.loads(str(arrays.pop(_DTYPES)))
        return {
            key: array.view(jnp.dtype(dtypes[key])) if key in dtypes else array
            for key, array in arrays.items()
        }
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # zipfile, zlib and numpy have a dozen words for it.
        raise damaged(path, error) from error


def write_arrays(file: BinaryIO, arrays: Mapping[str, Any]) -> None:
    """Writes named arrays, whole ones on this process. Raises as ``Run.save_arrays``."""
    # Not np.savez: it cannot store bfloat16, nor an array called "file".
    dtypes = {}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:

        def add(name: str, array: np.ndarray) -> None:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)

        for name, value in arrays.items():
            if name == _DTYPES:
                raise ValueError(f"save_arrays: {_DTYPES!r} is taken; choose another name.")
            array = _numpy(name, value)
            if array.dtype.isbuiltin == 2:  # Registered by ml_dtypes: stored as its bits.
                dtypes[name] = array.dtype.name
                array = array.view(f"u{array.dtype.itemsize}")
            add(name, array)
        add(_DTYPES, np.asarray(json.dumps(dtypes)))
    file.write(buffer.getbuffer())


def _numpy(name: str, value: Any) -> np.ndarray:
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        raise TypeError(f"save_arrays: {name} is a PRNG key; save jax.random.key_data({name}).")
    array = np.asarray(value)
    if array.dtype == object:
        raise TypeError(f"save_arrays: {name} is no array ({type(value).__name__}).")
    return array

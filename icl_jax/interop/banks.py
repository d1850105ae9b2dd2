"""Banks and static patches in safetensors files: numbers as tensors, structure in the header.

Nothing is pickled. A bank also is a pytree of arrays, so ``pickle`` and orbax take
it as it is, and ``flax.serialization`` its leaves (``jax.tree.flatten``), as of every dataclass not
its own; this is the file that other programs can read.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from icl_jax.interop.safetensors import missing_package
from icl_jax.patches.bank import Bank
from icl_jax.patches.block import TokenPatch
from icl_jax.patches.low_rank import LowRank
from icl_jax.patches.normed import BalancedPatch, ScalePatch
from icl_jax.patches.output import BiasPatch, DownPatch
from icl_jax.patches.static_patch import StaticPatch
from icl_jax.patches.token import Conditioning, InputFactor
from icl_jax.stack.layers import PerLayer

_KINDS: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        Bank,
        PerLayer,
        TokenPatch,
        InputFactor,
        BiasPatch,
        DownPatch,
        ScalePatch,
        BalancedPatch,
        Conditioning,
        LowRank,
        StaticPatch,
    )
}
_KEY, _STATIC = "icl_jax.bank", "icl_jax.static"


def save_bank(file: str | Path, bank: Bank) -> Path:
    """Writes a bank (of one prompt or of a batch) into one file, whole or not at all.

    Args:
      file: to write; one that is there is replaced.
      bank: of ``stack_patches`` or ``prompt_patches``, compact or not.

    Returns:
      The file.

    Raises:
      ImportError: the package safetensors is not installed.

    Examples:
      >>> import pathlib, tempfile
      >>> stack = build_stack(StackConfig(width=8, num_heads=2, hidden_widths=(16,)))
      >>> tokens = jax.random.normal(jax.random.key(0), (6, 3))
      >>> params = stack.init(jax.random.key(1), tokens)["params"]
      >>> stream = stack.apply({"params": params}, tokens, method="embed")
      >>> bank = stack_patches(functional(stack, params), stream, [5])
      >>> save_bank(pathlib.Path(tempfile.mkdtemp()) / "bank.safetensors", bank).name
      'bank.safetensors'
    """
    return _save(file, bank, _KEY)


def save_static(file: str | Path, patches: PerLayer[StaticPatch]) -> Path:
    """Writes the static patches of a model (of ``compile_context``) into one file.

    Args:
      file: to write; one that is there is replaced.
      patches: one per layer.

    Returns:
      The file.

    Raises:
      ImportError: the package safetensors is not installed.

    Examples:
      >>> import pathlib, tempfile
      >>> block = Block(SoftmaxAttention(num_heads=2), Gated(hidden_width=16), norm="rms")
      >>> model = LanguageModel(repeat(block, 2), vocab_size=30, width=8)
      >>> params = model.init(jax.random.key(0), jnp.arange(3, 13))["params"]
      >>> patches = compile_context(model, params, [5, 6, 7], [[8, 9], [10, 11]])
      >>> file = save_static(pathlib.Path(tempfile.mkdtemp()) / "patches.safetensors", patches)
      >>> all(jax.tree.leaves(jax.tree.map(jnp.array_equal, load_static(file), patches)))
      True
    """
    return _save(file, patches, _STATIC)


def load_bank(file: str | Path) -> Bank:
    """Reads what ``save_bank`` wrote.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a file that is damaged or holds no bank.
      ImportError: the package safetensors is not installed.

    Examples:
      >>> import pathlib, tempfile
      >>> stack = build_stack(StackConfig(width=8, num_heads=2, hidden_widths=(16,)))
      >>> tokens = jax.random.normal(jax.random.key(0), (6, 3))
      >>> params = stack.init(jax.random.key(1), tokens)["params"]
      >>> stream = stack.apply({"params": params}, tokens, method="embed")
      >>> bank = stack_patches(functional(stack, params), stream, [5])
      >>> again = load_bank(save_bank(pathlib.Path(tempfile.mkdtemp()) / "bank.safetensors", bank))
      >>> all(jax.tree.leaves(jax.tree.map(jnp.array_equal, again, bank)))
      True
    """
    bank = _load("load_bank", file, _KEY, "bank", "save_bank")
    if not isinstance(bank, Bank):
        raise ValueError(f"load_bank: {file} holds a {type(bank).__name__}, not a bank.")
    return bank


def load_static(file: str | Path) -> PerLayer[StaticPatch]:
    """Reads what ``save_static`` wrote.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a file that is damaged or holds no static patches.
      ImportError: the package safetensors is not installed.

    Examples:
      >>> import pathlib, tempfile
      >>> block = Block(SoftmaxAttention(num_heads=2), Gated(hidden_width=16), norm="rms")
      >>> model = LanguageModel(repeat(block, 2), vocab_size=30, width=8)
      >>> params = model.init(jax.random.key(0), jnp.arange(3, 13))["params"]
      >>> patches = compile_context(model, params, [5, 6, 7], [[8, 9], [10, 11]])
      >>> file = save_static(pathlib.Path(tempfile.mkdtemp()) / "patches.safetensors", patches)
      >>> len(load_static(file))  # a patch per layer
      2
    """
    patches = _load("load_static", file, _STATIC, "static patches", "save_static")
    if not isinstance(patches, PerLayer):
        raise ValueError(
            f"load_static: {file} holds a {type(patches).__name__}, not patches of layers."
        )
    return patches


def _save(file: str | Path, record: Any, key: str) -> Path:
    safetensors = _package()
    tensors: dict[str, Any] = {}
    structure = _take_apart(record, "bank", tensors)
    file = Path(file)
    partial = file.with_name(f".{file.name}.partial")
    try:
        safetensors.save_file(tensors, partial, metadata={key: json.dumps(structure)})
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
    return file


def _load(where: str, file: str | Path, key: str, what: str, writer: str) -> Any:
    safetensors = _package()
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"{where}: {file}: no such file.")
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as opened:
            header = opened.metadata() or {}
        tensors = safetensors.load_file(file)
        structure = json.loads(header[key])
        return _put_together(structure, tensors)
    except KeyError as error:
        raise ValueError(
            f"{where}: {file} holds no {what} of icl_jax ({error} is missing). Write one with "
            f"{writer}."
        ) from None
    except (SafetensorError, json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{where}: {file} is damaged: {error}. Save the {what} again.") from None


def _take_apart(value: Any, name: str, tensors: dict[str, Any]) -> Any:
    """The structure of a value as JSON; its arrays go to ``tensors`` under their paths."""
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, tuple):
        return [_take_apart(one, f"{name}.{i}", tensors) for i, one in enumerate(value)]
    if dataclasses.is_dataclass(value):
        inner = {
            field.name: _take_apart(getattr(value, field.name), f"{name}.{field.name}", tensors)
            for field in dataclasses.fields(value)
        }
        return {"kind": type(value).__name__, "fields": inner}
    tensors[name] = np.asarray(value)
    return {"tensor": name}


def _put_together(structure: Any, tensors: dict[str, Any]) -> Any:
    if structure is None or isinstance(structure, int):
        return structure
    if isinstance(structure, list):
        return tuple(_put_together(one, tensors) for one in structure)
    if "tensor" in structure:
        return jnp.asarray(tensors[structure["tensor"]])
    fields = {name: _put_together(one, tensors) for name, one in structure["fields"].items()}
    return _KINDS[structure["kind"]](**fields)


def _package() -> Any:
    try:
        import safetensors.numpy as package
    except ImportError:
        raise missing_package("safetensors") from None
    return package

"""A model and its parameters, written as a Hugging Face checkpoint."""

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from icl_jax.interop import assemble
from icl_jax.interop.dtypes import floating, most_of
from icl_jax.interop.folders import whole_folder
from icl_jax.interop.hub import ADAPTER, CONFIG, PATTERNS
from icl_jax.interop.options import Options
from icl_jax.interop.registry import family_of
from icl_jax.interop.safetensors import INDEX, SINGLE, write_tensors
from icl_jax.interop.stacking import stacked_table


def save(
    folder: str | Path,
    model: Any,
    params: Mapping[str, Any],
    config: Mapping[str, Any],
    *,
    dtype: Any = None,
    max_shard_bytes: int = 5 * 2**30,
    tokenizer: str | Path | None = None,
) -> Path:
    """Writes a checkpoint that ``load`` and ``transformers`` read, in one step.

    Args:
      folder: to make; one that is there must be empty.
      model: the Flax module.
      params: its parameters.
      config: config.json; it names the family, and its dtype is set to that of the weights.
      dtype: to store all parameters in; by default each in its own, which loses nothing.
      max_shard_bytes: of one file; a checkpoint that has more gets several and an index.
      tokenizer: a folder to copy the files of a tokenizer from.

    Returns:
      The folder.

    Raises:
      FileExistsError: the folder has something in it.
      FileNotFoundError: the folder of the tokenizer is not there.
      ValueError: the architecture or the dtype is not supported, or the parameters are not the
        model's.

    Examples:
      >>> import tempfile
      >>> from pathlib import Path
      >>> from icl_jax.interop.huggingface import load, make_tiny
      >>> from icl_jax.interop.saving import save
      >>> folder = Path(tempfile.mkdtemp())
      >>> checkpoint = make_tiny("qwen2", folder / "tiny", jax.random.key(0))
      >>> run, tokens = (checkpoint.model, checkpoint.params), jnp.arange(3, 13)
      >>> weights = prompt_weights(*run, tokens, [0, 8, 9])  # as if it had read all ten
      >>> _ = save(folder / "patched", checkpoint.model, weights.params, checkpoint.config)
      >>> again = load(folder / "patched")
      >>> alone = alone_logits(again.model, again.params, tokens[jnp.array([0, 8, 9])], [0, 1, 2])
      >>> bool(jnp.allclose(alone[-1], full_logits(*run, tokens, [9])[0], atol=1e-4))
      True
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"save: {folder} is not empty. Choose another folder.")
    if dtype is not None:
        dtype = floating("save", dtype)
    if tokenizer is not None and not Path(tokenizer).is_dir():
        raise FileNotFoundError(f"save: tokenizer={tokenizer}: no such folder.")
    family_name, family = family_of(config)
    table = stacked_table(family.table(model, Options(config)), model)
    leaves = assemble.flatten(params)
    shapes = {path: tuple(leaf.shape) for path, leaf in leaves.items()}
    assemble.plan(f"family {family_name}", table, shapes)
    specs = {}
    for tensor in table:
        dtypes = [dtype or np.dtype(leaves[piece.path].dtype) for piece in tensor.pieces]
        specs[tensor.name] = (max(dtypes, key=lambda one: one.itemsize), tensor.shape)
    by_name = {tensor.name: tensor for tensor in table}

    def make(name: str) -> np.ndarray:
        return assemble.stored(by_name[name], leaves, specs[name][0])

    config = {**config, "dtype": str(most_of(specs.values()))}
    if "torch_dtype" in config:
        config["torch_dtype"] = config["dtype"]
    with whole_folder(folder) as partial:
        _write_json(partial / CONFIG, config)
        _write_shards(partial, specs, make, max_shard_bytes)
        if tokenizer is not None:
            _copy_tokenizer(Path(tokenizer), partial)
    return folder


def _write_shards(folder: Path, specs: dict[str, Any], make: Any, max_bytes: int) -> None:
    """One file, or several with an index, in the order of the table."""
    sizes = {name: dtype.itemsize * math.prod(shape) for name, (dtype, shape) in specs.items()}
    shards: list[dict[str, Any]] = [{}]
    filled = 0
    for name, spec in specs.items():
        if shards[-1] and filled + sizes[name] > max_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = spec
        filled += sizes[name]
    if len(shards) == 1:
        write_tensors(folder / SINGLE, shards[0], make)
        return
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_tensors(folder / file, shard, make)
        weight_map.update(dict.fromkeys(shard, file))
    total = {"total_size": sum(sizes.values())}
    _write_json(folder / INDEX, {"metadata": total, "weight_map": weight_map})


def _copy_tokenizer(source: Path, target: Path) -> None:
    """Copies what the hub would give beside configuration and weights."""
    for name in PATTERNS:
        if "safetensors" in name or name in (CONFIG, ADAPTER):
            continue
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")

"""Hugging Face checkpoints, loaded into the Flax transformer of this library.

A family of models is a module of ``interop.families``: a checked configuration and a key table.
Everything is checked before the first number is read: the architecture, the options, the names
and the shapes of all tensors. Nothing of a checkpoint is executed or unpickled.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from icl_jax import checks
from icl_jax.interop import assemble
from icl_jax.interop.dtypes import DTYPES, floating, most_of
from icl_jax.interop.generation_config import GenerationConfig, read_generation_config
from icl_jax.interop.hub import ADAPTER, CONFIG, checkpoint_folder
from icl_jax.interop.json_files import read_json
from icl_jax.interop.lengths import longest_prompt
from icl_jax.interop.options import Options
from icl_jax.interop.placement import place, placements
from icl_jax.interop.registry import (
    DEQUANTISE,
    build_model,
    descent_of,
    described_by,
    families,
    family_of,
    fitting_table,
    match_names,
)
from icl_jax.interop.safetensors import Entry, MappedTensors
from icl_jax.interop.saving import save
from icl_jax.interop.stacking import stacked_table
from icl_jax.interop.text_part import INSIDE, OTHER_PARTS, text_part
from icl_jax.shown import count

# Times what is stored, and nothing fits: what a configuration describes is not even looked at.
_FAR_TOO_MANY = 8


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint.

    Attributes:
      model: the Flax module.
      params: its parameters, nested dicts of jax arrays.
      config: config.json; that of the text model where the folder has one that reads more.
      folder: where it was read.
      family: the name of its module in ``interop.families``.
      generation: how its makers mean text to be written; nothing of it is applied by itself.
      max_positions: the most tokens that it is meant for; None where its files don't say.

    Examples:
      >>> import tempfile
      >>> from pathlib import Path
      >>> from icl_jax.interop.huggingface import make_tiny
      >>> folder = Path(tempfile.mkdtemp())
      >>> checkpoint = make_tiny("qwen2", folder / "tiny", jax.random.key(0))
      >>> logits = full_logits(checkpoint.model, checkpoint.params, jnp.arange(3, 13), [9])
      >>> logits.shape == (1, checkpoint.config["vocab_size"]), checkpoint.folder == folder / "tiny"
      (True, True)
    """

    model: Any
    params: dict[str, Any]
    config: dict[str, Any]
    folder: Path
    family: str
    generation: GenerationConfig = GenerationConfig()
    max_positions: int | None = None

    def __repr__(self) -> str:
        numbers = count(sum(leaf.size for leaf in jax.tree.leaves(self.params)))
        return f"Checkpoint({self.family}, {numbers} parameters, from {self.folder})"


def load(
    path_or_name: str | Path,
    *,
    dtype: Any = None,
    mesh: Mesh | None = None,
    shardings: Any = None,
    revision: str | None = None,
    offline: bool = False,
) -> Checkpoint:
    """Loads a checkpoint: ``config.json`` and safetensors, memory-mapped.

    Each parameter goes from the map straight to its dtype and its device. With a mesh every device
    gets its part from the map, so that no full copy of a sharded parameter is ever made.

    Args:
      path_or_name: a folder, or a name on the Hugging Face hub (or in its cache).
      dtype: of the parameters; by default the one that most of the stored numbers have. Parameters
        of norms are at least float32.
      mesh: of devices to put the parameters on; when left out the one that is set
        (``jax.set_mesh``), and the default device without one.
      shardings: with a mesh, how to: path -> PartitionSpec, as a function of the path (a tuple of
        text) or as a tree like the parameters. By default as the table of ``icl_jax.sharding``
        says: heads, hidden widths and the vocabulary over the axis ``model`` of the mesh.
      revision: of a name on the hub: a branch, a tag or a commit.
      offline: look for a name in the cache only.

    Returns:
      The checkpoint.

    Raises:
      FileNotFoundError: no such checkpoint, or files of it are missing.
      ValueError: an architecture or an option that is not supported; a damaged file; names or
        shapes of tensors that do not fit, all of them listed; shardings that do not fit; a dtype
        in which nothing is computed.
      TypeError: neither a path nor a name.
      ImportError: safetensors or huggingface_hub is needed and not installed.

    Examples:
      >>> import tempfile
      >>> from pathlib import Path
      >>> from icl_jax.interop.huggingface import load, make_tiny
      >>> folder = Path(tempfile.mkdtemp())
      >>> _ = make_tiny("qwen2", folder / "tiny", jax.random.key(0))  # or a folder that is there
      >>> checkpoint = load(folder / "tiny", dtype=jnp.bfloat16)
      >>> checkpoint.family, str(checkpoint.params["embedding"].dtype)
      ('qwen2', 'bfloat16')
    """
    asked = None if dtype is None else floating("load", dtype)  # Before anything is fetched.
    folder = checkpoint_folder(path_or_name, revision=revision, offline=offline)
    if (folder / ADAPTER).is_file():
        raise ValueError(_adapter(folder))
    config = read_json(folder / CONFIG)
    if config.get("quantization_config") is not None:
        quantization = config["quantization_config"]
        raise Options(config, str(folder / CONFIG)).unsupported(
            "quantization_config", quantization, f"unquantized weights; {DEQUANTISE}"
        )
    text = text_part(config, str(folder / CONFIG))
    where = str(folder / CONFIG) if text is None else f"{folder / CONFIG}: {INSIDE}"
    config = config if text is None else text
    family_of(config)  # Before the weights are looked for.
    tensors = MappedTensors(folder)
    options = Options(config, where, tensors.sizes)
    family_name, family, model = build_model(options)
    with described_by(options):
        shapes = parameter_shapes(model)
    _check_numbers(options, shapes)
    generation = read_generation_config(folder)
    max_positions = longest_prompt(config, options.where)
    model = model.clone(max_positions=max_positions)
    table = stacked_table(fitting_table(family, model, options, tensors), model)
    plan = assemble.plan(f"family {family_name}", table, shapes)
    tied = getattr(model, "head", None) == "tied"
    names = match_names(
        table,
        tensors,
        tied=tied,
        ignored=(*getattr(family, "IGNORED", ()), *(() if text is None else OTHER_PARTS)),
        read_as=descent_of(config),
    )
    wanted = _wanted(asked, [tensors.entries[name] for name in names.values()])
    shardings = placements(shapes, mesh, shardings)
    params = {
        path: place(
            plan[path], names, tensors, shapes[path], param_dtype(path, wanted), shardings[path]
        )
        for path in plan
    }
    return Checkpoint(
        model,
        assemble.unflatten(params),
        config,
        folder,
        family_name,
        generation,
        max_positions,
    )


def make_tiny(
    family: str,
    folder: str | Path,
    key: jax.Array,
    *,
    dtype: Any = None,
    vocab_size: int | None = None,
) -> Checkpoint:
    """Writes a tiny checkpoint with random parameters, none of them zero or one, and loads it.

    Args:
      family: a name in ``interop.families``.
      folder: to make.
      key: of the random numbers.
      dtype: to store the parameters in; float32 by default.
      vocab_size: of a tokenizer that goes with it; what the family has by default.

    Raises:
      ValueError: no such family.
      FileExistsError: the folder has something in it.
      TypeError: no PRNG key.

    Examples:
      >>> import tempfile
      >>> from pathlib import Path
      >>> from icl_jax.interop.huggingface import make_tiny
      >>> folder = Path(tempfile.mkdtemp())
      >>> checkpoint = make_tiny("qwen2", folder / "tiny", jax.random.key(0), vocab_size=300)
      >>> checkpoint.family, checkpoint.config["vocab_size"], len(checkpoint.model.blocks)
      ('qwen2', 300, 3)
      >>> sorted(path.name for path in (folder / "tiny").iterdir())
      ['config.json', 'model.safetensors']
    """
    known = families()
    if family not in known:
        raise ValueError(f"make_tiny: family must be one of {', '.join(known)}, got {family!r}.")
    checks.prng_key("make_tiny", "key", key)
    config = known[family].tiny()
    if vocab_size is not None:
        config["vocab_size"] = vocab_size
    model = known[family].build(Options(config, f"{family}.tiny()"))
    init_key, noise_key = jax.random.split(key)
    init = jax.jit(lambda key: model.init(key, jnp.zeros((2,), jnp.int32))["params"])
    leaves = assemble.flatten(init(init_key))
    for (path, leaf), leaf_key in zip(
        leaves.items(), jax.random.split(noise_key, len(leaves)), strict=True
    ):
        if leaf.size and np.ptp(np.asarray(leaf)) == 0:  # A bias or a gain, as initialised.
            leaves[path] = leaf + 0.2 * jax.random.normal(leaf_key, leaf.shape, leaf.dtype)
    save(folder, model, assemble.unflatten(leaves), config, dtype=dtype)
    return load(folder)


def parameter_shapes(model: Any) -> dict[assemble.Path, tuple[int, ...]]:
    """Path -> shape of the parameters of a Flax model of tokens; nothing is computed."""
    tokens_T = jax.ShapeDtypeStruct((2,), jnp.int32)
    tree = jax.eval_shape(model.init, jax.random.key(0), tokens_T)["params"]
    return {path: tuple(leaf.shape) for path, leaf in assemble.flatten(tree).items()}


def param_dtype(path: assemble.Path, wanted: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype of a parameter: a norm's is float32 at least, being few numbers in front of all."""
    norm = any("norm" in part.split("_") for part in path)
    return np.dtype(np.float32) if norm and wanted.itemsize < 4 else wanted


def _check_numbers(options: Options, shapes: Mapping[assemble.Path, tuple[int, ...]]) -> None:
    """Refuses what is out of all proportion; the tensors that do not fit are listed later."""
    described = sum(math.prod(shape) for shape in shapes.values())
    if described > _FAR_TOO_MANY * options.stored.numbers:
        largest = max(shapes, key=lambda path: math.prod(shapes[path]))
        raise ValueError(
            f"{options.where}: describes {described} parameters, {'/'.join(largest)} "
            f"{shapes[largest]} alone {math.prod(shapes[largest])}, but the files have "
            f"{options.stored.numbers} numbers. Are they of one checkpoint?"
        )


def _adapter(folder: Path) -> str:
    """What to do with the folder of an adapter."""
    base = read_json(folder / ADAPTER).get("base_model_name_or_path")
    return (
        f"{folder}: is an adapter of PEFT for {base}, not a checkpoint. Merge it once: "
        f'peft.AutoPeftModelForCausalLM.from_pretrained("{folder}").merge_and_unload()'
        ".save_pretrained(NEW)."
    )


def _wanted(asked: np.dtype[Any] | None, entries: list[Entry]) -> np.dtype[Any]:
    """The dtype that was asked for, or the one of most stored numbers, if jax has it."""
    wanted = asked or most_of((e.dtype, e.shape) for e in entries)
    if asked is None and wanted.name not in DTYPES:
        raise ValueError(
            f"load: most weights are stored as {wanted}, in which nothing is computed. If they "
            "are whole without scales, give the dtype to run in, such as dtype=jnp.bfloat16."
        )
    if jax.dtypes.canonicalize_dtype(wanted) != wanted:
        raise ValueError(
            f"load: parameters of dtype {wanted} need jax_enable_x64, which is off. Turn it on "
            '(jax.config.update("jax_enable_x64", True)), or give dtype=jnp.float32.'
        )
    return wanted

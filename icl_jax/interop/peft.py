"""A prompt as a LoRA adapter in the format of PEFT: of rank 1 for a token, of any for all of them.

``y (W + outer(v, u))`` is LoRA of rank 1: A = v (1, in), B = u (out, 1), scale 1. Every kernel that
reads the MLP's input gets ``u = (z_S - z_K) W``, the down kernel what carries the residual change.
A norm's gain is no matrix: it goes to ``modules_to_save``, whole. A bias is carried by the down
kernel instead; experts are refused, and families whose kernels PEFT does not touch.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from icl_jax.blocks.experts import Experts
from icl_jax.blocks.flax_block import FlaxBlock
from icl_jax.blocks.functional import functional
from icl_jax.blocks.materialise import moved_kernel, patched_gain
from icl_jax.dims import Array, Params
from icl_jax.interop.folders import whole_folder
from icl_jax.interop.huggingface import Checkpoint
from icl_jax.interop.json_files import read_json
from icl_jax.interop.options import Options
from icl_jax.interop.registry import family_of
from icl_jax.interop.safetensors import write_tensors
from icl_jax.interop.table import Tensor
from icl_jax.interop.text_part import INSIDE
from icl_jax.patches.block import TokenPatch
from icl_jax.patches.low_rank import LowRank
from icl_jax.patches.normed import BalancedPatch, ScalePatch
from icl_jax.patches.output import BiasPatch, DownPatch, OutputPolicy, down_update
from icl_jax.patches.static_patch import StaticPatch, ranked
from icl_jax.patches.token import kernel_update
from icl_jax.stack.fold import check_given
from icl_jax.stack.layers import PerLayer

#: Path of a kernel in the parameters -> its update.
Updates = dict[tuple[str, ...], LowRank]

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def adapter_policy(checkpoint: Checkpoint) -> OutputPolicy:
    """The output policy whose patches an adapter can hold.

    The down kernel carries the residual change; where a norm follows it, its gain helps.

    Raises:
      ValueError: the model has experts, or a layer norm on its MLP's output, or is of a family that
        PEFT takes no adapter of.

    Examples:
      >>> import tempfile
      >>> from pathlib import Path
      >>> from icl_jax.interop.huggingface import make_tiny
      >>> from icl_jax.interop.peft import adapter_policy
      >>> folder = Path(tempfile.mkdtemp())
      >>> [
      ...     adapter_policy(make_tiny(family, folder / family, jax.random.key(0)))
      ...     for family in ("qwen2", "gemma3")  # which has a norm on the MLP's output
      ... ]
      ['down', 'balanced']
    """
    _check_family("adapter_policy", checkpoint)
    for layer, block in enumerate(checkpoint.model.blocks):
        if isinstance(block.mlp, Experts):
            raise ValueError(
                f"adapter_policy: block {layer} has experts, whose patch differs from expert to "
                "expert; PEFT's LoRA adds one matrix to a module. Export a checkpoint instead."
            )
        if block.norms_output:
            if block.norm != "rms":
                raise ValueError(
                    f"adapter_policy: block {layer} ends in a layer norm, whose bias carries the "
                    "patch. Export a checkpoint instead."
                )
            return "balanced"
    return "down"


def save_adapter(
    folder: str | Path,
    checkpoint: Checkpoint,
    patches: Sequence[TokenPatch],
    *,
    base: str | None = None,
) -> Path:
    """Writes the adapter that turns a checkpoint into one that has read the prompt.

    Args:
      folder: to make; one that is there must be empty.
      checkpoint: what the patches belong to.
      patches: of one position, one per layer, made with ``adapter_policy``.
      base: name or path of the checkpoint, as PEFT is to find it; its folder when left out.

    Returns:
      The folder, with ``adapter_config.json`` and ``adapter_model.safetensors``.

    Raises:
      ValueError: patches of another policy, experts, or a checkpoint with more than a text model.
      FileExistsError: the folder has something in it.

    Examples:
      >>> import tempfile
      >>> from pathlib import Path
      >>> from icl_jax.interop.huggingface import make_tiny
      >>> from icl_jax.interop.peft import adapter_policy, save_adapter
      >>> folder = Path(tempfile.mkdtemp())
      >>> checkpoint = make_tiny("qwen2", folder / "base", jax.random.key(0))
      >>> run, tokens = (checkpoint.model, checkpoint.params), jnp.arange(3, 13)
      >>> weights = prompt_weights(*run, tokens, [0, 8, 9], output=adapter_policy(checkpoint))
      >>> adapter = save_adapter(folder / "adapter", checkpoint, weights.patches)
      >>> sorted(path.name for path in adapter.iterdir())
      ['adapter_config.json', 'adapter_model.safetensors']
    """
    adapter_policy(checkpoint)
    layers = functional(checkpoint.model, checkpoint.params)
    updates: Updates = {}
    gains: dict[tuple[str, ...], Array] = {}
    for layer, patch in enumerate(patches):
        block, params = layers[layer]
        for kernel, update in _updates(block, params["mlp"], layer, patch).items():
            updates[f"blocks_{layer}", "mlp", kernel, "kernel"] = update
        if isinstance(patch.output, (ScalePatch, BalancedPatch)):
            path = (f"blocks_{layer}", "norm_2_out", "scale")
            gains[path] = patched_gain(params["norm_2_out"]["scale"], patch.output)
    return _write("save_adapter", folder, checkpoint, updates, gains, 1, base)


def save_static_adapter(
    folder: str | Path,
    checkpoint: Checkpoint,
    patches: PerLayer[StaticPatch],
    *,
    base: str | None = None,
) -> Path:
    """Writes static patches as a LoRA adapter of their rank, for texts of any kind.

    ``z (I + M) W`` is LoRA with A = the left factors of ``M`` and B = their right ones times W; the
    down kernel's update is one as it is. An update of lower rank is filled up with zeros.

    Args:
      folder: to make; one that is there must be empty.
      checkpoint: what the patches belong to.
      patches: one per layer, of ``compile_context`` or ``fit_static``.
      base: as in ``save_adapter``.

    Returns:
      The folder, with ``adapter_config.json`` and ``adapter_model.safetensors``.

    Raises:
      ValueError: patches with a bias, experts, patches of another stack, a checkpoint with more
        than a text model, or of a family that PEFT takes no adapter of.
      FileExistsError: the folder has something in it.

    Examples:
      >>> import json, tempfile
      >>> from pathlib import Path
      >>> from icl_jax.interop.huggingface import make_tiny
      >>> from icl_jax.interop.peft import save_static_adapter
      >>> folder = Path(tempfile.mkdtemp())
      >>> checkpoint = make_tiny("qwen2", folder / "base", jax.random.key(0))
      >>> run, queries = (checkpoint.model, checkpoint.params), [[8, 9], [10, 11]]
      >>> patches = compile_context(*run, [5, 6, 7], queries, fit=Fit(rank=2))
      >>> adapter = save_static_adapter(folder / "adapter", checkpoint, patches)
      >>> json.loads((adapter / "adapter_config.json").read_text())["r"]
      2
    """
    where = "save_static_adapter"
    _check_family(where, checkpoint)
    layers = functional(checkpoint.model, checkpoint.params)
    check_given(layers, patches)
    updates: Updates = {}
    for layer, (patch, block) in enumerate(zip(patches, layers.blocks, strict=True)):
        if not block.shares_down:
            raise ValueError(
                f"{where}: block {layer} has experts, whose kernels are no modules of their own to "
                "PEFT. Save a checkpoint or a file of patches instead."
            )
        if patch.bias_D is not None:
            raise ValueError(
                f"{where}: the patch of layer {layer} has a bias (a thought vector), which LoRA "
                "cannot hold. Fit another rung, or save a file of patches."
            )
        params = layers.params.layer(layer)["mlp"]
        mine = {} if patch.down is None else {"down": patch.down}
        if patch.input is not None:
            for kernel in block.input_kernels:
                moved = moved_kernel(params[kernel]["kernel"], patch.input)
                if kernel in mine:  # z (I + M)(W + D): one kernel is both.
                    raise ValueError(
                        f"{where}: block {layer} has one kernel, which is the input's and the "
                        "down kernel at once. Fit one side."
                    )
                mine[kernel] = moved
        for kernel, update in mine.items():
            updates[f"blocks_{layer}", "mlp", kernel, "kernel"] = update
    rank = max(ranked(patches).values())
    return _write(where, folder, checkpoint, updates, {}, rank, base)


def _write(
    where: str,
    folder: str | Path,
    checkpoint: Checkpoint,
    updates: Updates,
    gains: Mapping[tuple[str, ...], Array],
    rank: int,
    base: str | None,
) -> Path:
    """The files of an adapter, whole or not at all."""
    if base is None and _reads_more_than_text(checkpoint.folder):
        raise ValueError(
            f"{where}: {checkpoint.folder} has more than the text model, whose modules PEFT "
            "would look for in vain. Save the text model alone, once, with interop.saving.save"
            "(NEW, checkpoint.model, checkpoint.params, checkpoint.config), and give base=NEW."
        )
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{where}: {folder} is not empty. Choose another folder.")
    _, family = family_of(checkpoint.config)
    conv1d = getattr(family, "CONV1D", False)
    factors: dict[str, np.ndarray] = {}
    targets, saved = [], []
    for tensor in family.table(checkpoint.model, Options(checkpoint.config)):
        module = tensor.name.removesuffix(".weight")
        if any(piece.path in updates for piece in tensor.pieces):
            targets.append(module)
            left_RI, right_OR = _fused(tensor, updates, rank, conv1d=conv1d)
            factors[f"base_model.model.{module}.lora_A.weight"] = left_RI
            factors[f"base_model.model.{module}.lora_B.weight"] = right_OR
        if tensor.pieces and tensor.pieces[0].path in gains:
            saved.append(module)
            gain_D = _host(gains[tensor.pieces[0].path])
            factors[f"base_model.model.{tensor.name}"] = gain_D - tensor.pieces[0].offset
    config = {
        "peft_type": "LORA",
        "task_type": None if checkpoint.model.head == "none" else "CAUSAL_LM",
        "base_model_name_or_path": base or str(checkpoint.folder),
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(targets),
        "modules_to_save": sorted(saved) or None,
        "fan_in_fan_out": conv1d,
        "inference_mode": True,
    }
    with whole_folder(folder) as partial:
        (partial / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        specs = {key: (value.dtype, value.shape) for key, value in factors.items()}
        write_tensors(partial / WEIGHTS, specs, factors.__getitem__)
    return folder


def _check_family(where: str, checkpoint: Checkpoint) -> None:
    reason = getattr(family_of(checkpoint.config)[1], "NO_LORA", None)
    if reason is not None:
        raise ValueError(f"{where}: {reason}. Export a checkpoint or a file of patches instead.")


def _reads_more_than_text(folder: Path) -> bool:
    return (folder / "config.json").is_file() and INSIDE in read_json(folder / "config.json")


def _updates(block: FlaxBlock, params: Params, layer: int, patch: TokenPatch) -> dict[str, LowRank]:
    """Name of an MLP kernel -> its update."""
    updates = {}
    if patch.input is not None:
        for name in block.input_kernels:
            kernel_DH = params[name]["kernel"].astype(patch.input.v_D.dtype)
            updates[name] = kernel_update(patch.input, kernel_DH)
    output: Any = patch.output
    if isinstance(output, BiasPatch):
        raise ValueError(
            f"save_adapter: the patch of layer {layer} changes a bias, which LoRA cannot. Make the "
            "patches with output=adapter_policy(checkpoint)."
        )
    if isinstance(output, BalancedPatch):
        output = output.down
    if isinstance(output, DownPatch):
        updates["down"] = down_update(output)
    return updates


def _fused(
    tensor: Tensor, updates: Updates, rank: int, *, conv1d: bool
) -> tuple[np.ndarray, np.ndarray]:
    """A (rank, in) and B (out, rank) of a stored tensor, from the updates of the kernels in it.

    Kernels that are stored together (gate and up of Phi-3) read the same input, and so have the
    same A; their B lie in that of the tensor as they lie in it.
    """
    rights = [_host(updates[piece.path].right_RH) for piece in tensor.pieces]
    left_RI = _host(updates[tensor.pieces[0].path].left_RD)
    right_OR = np.zeros((tensor.shape[-1 if conv1d else 0], rank), rights[0].dtype)
    count = len(left_RI)
    for piece, right_RH in zip(tensor.pieces, rights, strict=True):
        if conv1d:
            piece.of(right_OR.T)[:count] = right_RH
        else:
            piece.of(right_OR)[:count] = right_RH
    filled_RI = np.zeros((rank, left_RI.shape[1]), left_RI.dtype)
    filled_RI[:count] = left_RI
    return filled_RI, right_OR


def _host(array: Array) -> np.ndarray:
    """As numpy, in float32 at most: adapters are small, and PEFT casts them."""
    host = np.asarray(jax.device_get(array))
    return np.ascontiguousarray(host if host.dtype == np.float64 else host.astype(np.float32))

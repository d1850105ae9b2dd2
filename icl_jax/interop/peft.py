"""A prompt as a rank-1 LoRA adapter in the format of PEFT.

``y (W + outer(v, u))`` is LoRA of rank 1: A = v (1, in), B = u (out, 1), scale 1. Every kernel that
reads the MLP's input gets ``u = (z_S - z_K) W``, the down kernel what carries the residual change.
A norm's gain is no matrix: it goes to ``modules_to_save``, whole. A bias is carried by the down
kernel instead, and experts are refused.
"""

import json
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from icl_jax.blocks.experts import Experts
from icl_jax.blocks.functional import FlaxBlock, functional
from icl_jax.blocks.materialise import patched_gain
from icl_jax.dims import Array, Params
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
from icl_jax.patches.token import kernel_update

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def adapter_policy(checkpoint: Checkpoint) -> OutputPolicy:
    """The output policy whose patches an adapter can hold.

    The down kernel carries the residual change; where a norm follows it, its gain helps.

    Raises:
      ValueError: the model has experts, or a layer norm on its MLP's output.
    """
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
    """
    adapter_policy(checkpoint)
    if base is None and _reads_more_than_text(checkpoint.folder):
        raise ValueError(
            f"save_adapter: {checkpoint.folder} has more than the text model, whose modules PEFT "
            "would look for in vain. Save the text model alone, once, with interop.huggingface.save"
            "(NEW, checkpoint.model, checkpoint.params, checkpoint.config), and give base=NEW."
        )
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"save_adapter: {folder} is not empty. Choose another folder.")
    _, family = family_of(checkpoint.config)
    table = family.table(checkpoint.model, Options(checkpoint.config))
    conv1d = getattr(family, "CONV1D", False)
    factors: dict[str, np.ndarray] = {}
    targets, saved = [], []
    layers = functional(checkpoint.model, checkpoint.params)
    for layer, patch in enumerate(patches):
        name, (block, params) = f"blocks_{layer}", layers[layer]
        updates: dict[tuple[str, ...], LowRank] = {
            (name, "mlp", kernel, "kernel"): update
            for kernel, update in _updates(block, params["mlp"], layer, patch).items()
        }
        for tensor in table:
            if not any(piece.path in updates for piece in tensor.pieces):
                continue
            module = tensor.name.removesuffix(".weight")
            targets.append(module)
            left_RD, right_HR = _fused(tensor, updates, conv1d=conv1d)
            factors[f"base_model.model.{module}.lora_A.weight"] = left_RD
            factors[f"base_model.model.{module}.lora_B.weight"] = right_HR
        if isinstance(patch.output, (ScalePatch, BalancedPatch)):
            gain_D = patched_gain(params["norm_2_out"]["scale"], patch.output)
            tensor = next(t for t in table if t.pieces[0].path == (name, "norm_2_out", "scale"))
            saved.append(tensor.name.removesuffix(".weight"))
            factors[f"base_model.model.{tensor.name}"] = _host(gain_D) - tensor.pieces[0].offset
    config = {
        "peft_type": "LORA",
        "task_type": None if checkpoint.model.head == "none" else "CAUSAL_LM",
        "base_model_name_or_path": base or str(checkpoint.folder),
        "r": 1,
        "lora_alpha": 1,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(targets),
        "modules_to_save": sorted(saved) or None,
        "fan_in_fan_out": conv1d,
        "inference_mode": True,
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.partial")
    partial.mkdir()
    try:
        (partial / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        specs = {key: (value.dtype, value.shape) for key, value in factors.items()}
        write_tensors(partial / WEIGHTS, specs, factors.__getitem__)
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return folder


def _reads_more_than_text(folder: Path) -> bool:
    return (folder / "config.json").is_file() and INSIDE in read_json(folder / "config.json")


def _updates(block: FlaxBlock, params: Params, layer: int, patch: TokenPatch) -> dict[str, LowRank]:
    """Name of an MLP kernel -> its update."""
    updates = {}
    if patch.input is not None:
        for name in block.module.mlp.input_kernels:
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
    tensor: Tensor, updates: Mapping[tuple[str, ...], LowRank], *, conv1d: bool
) -> tuple[np.ndarray, np.ndarray]:
    """A (1, in) and B (out, 1) of a stored tensor, from the updates of the kernels in it.

    Kernels that are stored together (gate and up of Phi-3) read the same input, and so have the
    same A; their B lie in that of the tensor as they lie in it.
    """
    rights = [_host(updates[piece.path].right_RH) for piece in tensor.pieces]
    right_HR = np.empty((tensor.shape[-1 if conv1d else 0], 1), rights[0].dtype)
    for piece, right_RH in zip(tensor.pieces, rights, strict=True):
        piece.of(right_HR.T if conv1d else right_HR)[...] = right_RH
    return _host(updates[tensor.pieces[0].path].left_RD), right_HR


def _host(array: Array) -> np.ndarray:
    """As numpy, in float32 at most: adapters are small, and PEFT casts them."""
    host = np.asarray(jax.device_get(array))
    return np.ascontiguousarray(host if host.dtype == np.float64 else host.astype(np.float32))

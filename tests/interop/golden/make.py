"""Writes the golden files: tiny random checkpoints of transformers, and what it computes with them.

    python tests/interop/golden/make.py [NAME ...]

needs PyTorch and transformers (the extra ``parity``); the tests that read the files do not. Each
family, and each of the configurations in ``variants.py``, gets ``config.json``,
``model.safetensors`` and ``logits.npz``: token ids and mask of a padded batch, position ids, the
logits in float32 and float64, and which experts were chosen where.
transformers computes norms, softmax, rotary angles and routers in float32 whatever the dtype, so
the float64 reference runs with its float32 made wide.
"""

import contextlib
import copy
import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers

from icl_jax.interop.registry import families
from tests.interop.golden.variants import VARIANTS

HERE = Path(__file__).parent
LENGTHS = (24, 17, 9)
INPUTS = ("tokens", "mask", "positions")


def batch(vocab_size: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Rows of several lengths, the second padded on the left, the others on the right."""
    longest = max(LENGTHS)
    tokens = np.random.default_rng(seed).integers(3, vocab_size, (len(LENGTHS), longest))
    mask = np.arange(longest)[None] < np.asarray(LENGTHS)[:, None]
    mask[1] = mask[1, ::-1]
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    return {
        "tokens": tokens.astype(np.int32),
        "mask": mask,
        "positions": positions.astype(np.int32),
    }


@contextlib.contextmanager
def wide():
    """float64 wherever transformers asks for float32, from the making of a model to its logits."""
    names, method = ("float32", "float"), torch.Tensor.float
    before = {name: getattr(torch, name) for name in names}
    for name in names:
        setattr(torch, name, torch.float64)
    torch.Tensor.float = torch.Tensor.double
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        for name, dtype in before.items():
            setattr(torch, name, dtype)
        torch.Tensor.float = method
        torch.set_default_dtype(torch.float32)


def new_model(config, dtype):
    """A model of transformers in its plainest implementation."""
    encoder = config.model_type == "bert"
    made = transformers.AutoModel if encoder else transformers.AutoModelForCausalLM
    if hasattr(config, "vision_config"):
        made = transformers.AutoModelForImageTextToText
    options = {"add_pooling_layer": False} if encoder else {}
    return made.from_config(
        config,
        attn_implementation="eager",
        experts_implementation="eager",
        dtype=dtype,
        **options,
    ).eval()


def random_model(family: str, seed: int = 0, given=None):
    """A model whose parameters are all random and exact in bfloat16: no bias zero, no gain one.

    ``given`` is its config.json, that of the family's tiny model when left out.
    """
    given = given or families()[family].tiny()
    config = transformers.AutoConfig.for_model(**copy.deepcopy(given))
    config.architectures = given["architectures"]
    torch.manual_seed(seed)
    model = new_model(config, torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            size = 0.3 if parameter.ndim == 1 else 0.2
            noisy = parameter + size * torch.randn_like(parameter)
            parameter.copy_(noisy.to(torch.bfloat16))
    return model


def logits(model, given) -> np.ndarray:
    """Logits, or last states, of a batch."""
    rope = getattr(model.config, "rope_parameters", None) or {}
    if model.config.model_type == "mamba2" and model.config.use_bias and not given["mask"].all():
        return unpadded_logits(model, given)
    if rope.get("rope_type") == "longrope" and len(given["tokens"]) > 1:
        # It asks how long the longest prompt of a batch is; ours do not matter to each other.
        rows = [{key: given[key][i : i + 1] for key in INPUTS} for i in range(len(given["tokens"]))]
        return np.concatenate([logits(model, row) for row in rows])
    with torch.no_grad():
        found = model(
            input_ids=torch.as_tensor(given["tokens"], dtype=torch.long),
            attention_mask=torch.as_tensor(given["mask"], dtype=torch.long),
            position_ids=torch.as_tensor(given["positions"], dtype=torch.long),
        )
    return (found.logits if hasattr(found, "logits") else found.last_hidden_state).numpy()


def unpadded_logits(model, given) -> np.ndarray:
    """The logits of rows without their padding, and zeros there.

    A bias of Mamba 2's in_proj gets into the convolution from padding on the left.
    """
    rows = []
    for row, mask in enumerate(given["mask"]):
        found = logits(model, {key: given[key][row : row + 1, mask] for key in INPUTS})
        rows.append(np.zeros((len(mask), found.shape[-1]), found.dtype))
        rows[-1][mask] = found[0]
    return np.stack(rows)


@contextlib.contextmanager
def chosen_experts(model):
    """A list that fills as the model runs: per layer with a router, its choice (B*T, k), ranked."""
    found = []

    def keep(module, inputs, outputs):
        found.append(outputs[2].numpy())  # After the router's logits and the gates.

    handles = [
        module.register_forward_hook(keep)
        for module in model.modules()
        if type(module).__name__.endswith("TopKRouter")
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def wide_logits(model, given) -> np.ndarray:
    """The same in float64 throughout."""
    with wide():
        wider = new_model(model.config, torch.float64)
        wider.load_state_dict({k: v.double() for k, v in model.state_dict().items()})
        return logits(wider, given)


def write(name: str) -> None:
    """The golden files of one family, or of one variant."""
    folder = HERE / "variants" / name if name in VARIANTS else HERE / name
    model = random_model(name, given=VARIANTS.get(name))
    given = batch(model.config.get_text_config().vocab_size)
    with chosen_experts(model) as experts:
        found = {"float32": logits(model, given), "float64": wide_logits(model, given)}
    assert found["float64"].dtype == np.float64
    if experts:
        shape = (len(experts), *given["tokens"].shape, -1)
        found["experts"] = np.stack(experts).reshape(shape).astype(np.int8)
    folder.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    config = VARIANTS.get(name) or json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    np.savez_compressed(folder / "logits.npz", **given, **found)
    difference = np.abs(found["float32"] - found["float64"])[given["mask"]].max()
    print(f"{name}: float32 and float64 differ by {difference:.1e}")


if __name__ == "__main__":
    for name in sys.argv[1:] or (*sorted(families()), *VARIANTS):
        write(name)

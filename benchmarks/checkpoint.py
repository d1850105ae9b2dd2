"""What do a model and its patches cost? Forward pass, extraction, patched run, bank, loading.

    python -m benchmarks.checkpoint --json=FILE

A Llama-style model with random weights, in the format that both sides read. The forward pass stands
beside that of ``transformers`` on the same weights (where it is installed: the extra ``parity``),
and so does that of a mixture of experts;
extraction beside the plain forward pass over the whole prompt; the patched run beside the plain one
over the kept tokens; loading beside reading the files. The bank's size is that of the real
functions' results for a 26-layer model of width 1152, whose weights are never made.
"""

import functools
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks.harness import Side, as_row, compare, launch
from icl_jax.blocks.block import Block
from icl_jax.blocks.feedforward import Gated
from icl_jax.blocks.functional import functional
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.blocks.rotary import Rotary
from icl_jax.blocks.softmax_attention import SoftmaxAttention
from icl_jax.blocks.stack import repeat
from icl_jax.dims import Array, Params
from icl_jax.interop.huggingface import Checkpoint, load
from icl_jax.interop.options import Options
from icl_jax.interop.registry import family_of
from icl_jax.interop.saving import save
from icl_jax.language.prompt import alone_logits, full_logits, patched_logits, prompt_patches
from icl_jax.patches.bank import Bank, compact_bank
from icl_jax.patches.extraction import stack_patches

_WIDTH = flags.DEFINE_integer("width", 512, "model width", lower_bound=16)
_LAYERS = flags.DEFINE_integer("layers", 8, "layers", lower_bound=1)
_VOCAB = flags.DEFINE_integer("vocab", 8192, "tokens in the vocabulary", lower_bound=2)
_LENGTH = flags.DEFINE_integer("length", 512, "tokens of the prompt", lower_bound=2)
_KEPT = flags.DEFINE_integer("kept", 64, "tokens that are kept, at its end", lower_bound=1)
_EXPERTS = flags.DEFINE_integer("experts", 64, "of the mixture; an eighth per token", lower_bound=8)
_MEGABYTES = flags.DEFINE_integer("megabytes", 2048, "size of the checkpoint to load; 0: none")


def config(width: int, layers: int, vocab: int) -> dict[str, Any]:
    """config.json of a Llama-style model."""
    heads = max(2, width // 64)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": width,
        "intermediate_size": width * 11 // 4,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
    }


def mixture(width: int, layers: int, vocab: int, experts: int) -> dict[str, Any]:
    """config.json of a mixture in OLMoE's manner: an eighth of the experts for each token."""
    return {
        **config(width, layers, vocab),
        "architectures": ["OlmoeForCausalLM"],
        "model_type": "olmoe",
        "intermediate_size": width // 2,
        "num_experts": experts,
        "num_experts_per_tok": max(1, experts // 8),
        "norm_topk_prob": False,
    }


def write_checkpoint(folder: Path, options: dict[str, Any], *, max_shard_bytes: int) -> None:
    """A checkpoint of random weights, in the files that transformers writes."""
    model = family_of(options)[1].build(Options(options))
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(2, jnp.int32))["params"]
    random = np.random.default_rng(0)

    def draw(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        return random.standard_normal(leaf.shape, np.float32) / np.float32(leaf.shape[0] ** 0.5)

    save(folder, model, jax.tree.map(draw, shapes), options, max_shard_bytes=max_shard_bytes)


def forward_rows(
    what: str, checkpoint: Checkpoint, tokens_T: np.ndarray, sizes: dict
) -> list[dict]:
    """The forward pass beside that of transformers; nothing where it is not installed."""
    if not all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        print("transformers is not installed (the extra parity): its row is left out.")
        return []
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(checkpoint.folder).eval()

    @jax.jit
    def ours(params: Params, tokens_BT: Array) -> Array:
        return jax.vmap(lambda t: checkpoint.model.apply({"params": params}, t))(tokens_BT)

    def run_theirs(tokens_BT: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return theirs(
                torch.as_tensor(tokens_BT, dtype=torch.long), use_cache=False
            ).logits.numpy()

    rows = []
    for batch in (1, 4):
        tokens_BT = np.tile(tokens_T, (batch, 1))
        error = np.abs(np.asarray(ours(checkpoint.params, tokens_BT)) - run_theirs(tokens_BT)).max()
        if not error < 1e-2:
            raise AssertionError(f"the two sides disagree by {error}")
        rows.append(
            compare(
                f"{what}, batch {batch}: transformers against ours",
                {
                    "ours": Side(lambda t=tokens_BT: ours(checkpoint.params, t)),
                    "transformers": Side(lambda t=tokens_BT: run_theirs(t)),
                },
                sizes={**sizes, "batch": batch, "threads": torch.get_num_threads()},
            )
        )
    return rows


def patch_rows(checkpoint: Checkpoint, tokens_T: np.ndarray, sizes: dict) -> list[dict]:
    """Extraction beside the plain forward pass, and the patched run beside the plain one."""
    run = (checkpoint.model, checkpoint.params, tokens_T)
    kept_K = np.arange(sizes["length"] - sizes["kept"], sizes["length"])
    bank = prompt_patches(*run, kept_K)
    size_of = functools.partial(_bank_bytes)
    rows = [
        compare(
            f"patches of all layers, {loop} loop: extraction against the forward pass",
            {
                "forward pass": Side(lambda: full_logits(*run, kept_K)),
                "extraction": Side(
                    lambda loop=loop: prompt_patches(*run, kept_K, loop=loop), size_of
                ),
            },
            sizes=sizes,
        )
        for loop in ("open", "closed")
    ]
    for name, one in (("the whole bank", bank), ("a compact bank", compact_bank(bank))):
        rows.append(
            compare(
                f"kept tokens alone, {name}: patched against plain",
                {
                    "plain": Side(lambda: alone_logits(*run, kept_K)),
                    "patched": Side(lambda one=one: patched_logits(*run, one)),
                },
                sizes=sizes,
            )
        )
    return rows


def bank_row() -> dict:
    """The bank of a model like Gemma 3 1B: 26 layers, width 1152, 64 kept tokens of 512."""
    attention = SoftmaxAttention(
        num_heads=4, head_width=256, num_kv_heads=1, rotary=Rotary(), qk_norm="head"
    )
    mlp = Gated(hidden_width=6912, activation="gelu_tanh", use_bias=False)
    model = LanguageModel(
        repeat(Block(attention, mlp, "sandwich", "rms"), 26), vocab_size=262144, width=1152
    )
    tokens = jax.ShapeDtypeStruct((512,), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]

    def extract(params: Params, stream_TD: Array) -> Bank:
        return stack_patches(functional(model, params), stream_TD, jnp.arange(448, 512))

    hidden = jax.ShapeDtypeStruct((512, 1152), jnp.float32)
    start = time.perf_counter()
    bank = jax.eval_shape(extract, params, hidden)
    compact = jax.eval_shape(lambda p, h: compact_bank(extract(p, h)), params, hidden)
    traced = [time.perf_counter() - start]
    return as_row(
        "bank of a 26-layer model, width 1152, float32 (sizes only, nothing is run)",
        {"compact": traced, "whole": traced},
        {"compact": _bank_bytes(compact), "whole": _bank_bytes(bank)},
        sizes={"layers": 26, "width": 1152, "hidden": 6912, "kept": 64, "length": 512},
    )


_LOAD = """
import json, re, sys, time
import jax, jax.numpy as jnp
from icl_jax.interop.huggingface import load
jax.block_until_ready(jnp.ones(8) + 1)
status = lambda: open("/proc/self/status").read()
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", status()).group(1)) * 1024
before, start = peak(), time.perf_counter()
checkpoint = load(sys.argv[1], dtype=jnp.dtype(sys.argv[2]))
jax.block_until_ready(checkpoint.params)
seconds = time.perf_counter() - start
size = sum(leaf.nbytes for leaf in jax.tree.leaves(checkpoint.params))
print(json.dumps({"seconds": seconds, "peak": peak() - before, "size": size}))
"""


def load_row(folder: Path, dtype: str) -> dict:
    """Loading in a fresh process beside reading the files; memory against the parameters' size.

    The peak counts everything resident, the pages of mapped files too.
    """
    start = time.perf_counter()
    read = sum(len(path.read_bytes()) for path in sorted(folder.glob("*.safetensors")))
    read_seconds = time.perf_counter() - start
    done = subprocess.run(
        [sys.executable, "-c", _LOAD, str(folder), dtype],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    return as_row(
        f"loading {read / 2**20:.0f} MiB of float32 as {dtype}: against reading; peak against size",
        {"read the files": [read_seconds], "load": [found["seconds"]]},
        {"read the files": found["size"], "load": found["peak"]},
        sizes={"megabytes": read >> 20},
    )


def _bank_bytes(bank: Bank) -> int:
    leaves = jax.tree.leaves(bank.patches)
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def benchmark() -> list[dict]:
    """All rows."""
    sizes = {
        name: flag.value
        for name, flag in (
            ("width", _WIDTH),
            ("layers", _LAYERS),
            ("vocab", _VOCAB),
            ("length", _LENGTH),
            ("kept", _KEPT),
        )
    }
    options = config(sizes["width"], sizes["layers"], sizes["vocab"])
    tokens_T = np.random.default_rng(0).integers(0, sizes["vocab"], sizes["length"])
    rows = [bank_row()]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_checkpoint(folder / "model", options, max_shard_bytes=2**30)
        checkpoint = load(folder / "model")
        rows += forward_rows("forward pass", checkpoint, tokens_T, sizes)
        rows += patch_rows(checkpoint, tokens_T, sizes)
        experts = {**sizes, "layers": max(1, sizes["layers"] // 4), "experts": _EXPERTS.value}
        options = mixture(*(experts[name] for name in ("width", "layers", "vocab", "experts")))
        write_checkpoint(folder / "mixture", options, max_shard_bytes=2**30)
        mixed = load(folder / "mixture")
        rows += forward_rows("forward pass of a mixture", mixed, tokens_T, experts)
        if _MEGABYTES.value:
            # Layers of width 1024 have 44 MiB each, whatever number of them it takes.
            layers = max(1, _MEGABYTES.value // 44)
            big = config(1024, layers, 32000)
            write_checkpoint(folder / "big", big, max_shard_bytes=2**29)
            rows += [load_row(folder / "big", dtype) for dtype in ("float32", "bfloat16")]
    return rows


if __name__ == "__main__":
    launch(benchmark)

"""Everything that matters on an accelerator, in one call of under four minutes.

    python -m benchmarks.accelerator --json=benchmarks/accelerator.json

Each row has two sides, timed in one process: this library, and what a user would compare it with
(``transformers`` on the same card, the plain forward pass, fused attention). ``of the card`` says
which share of the measured product rate or copy rate a side reaches. Weights are random: speed does
not look at them. ``--small`` is a size for a CPU.
"""

import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

# Two frameworks share the card: neither may take all of its memory beforehand.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from absl import flags  # noqa: E402

from benchmarks.harness import Side, as_row, compare, launch  # noqa: E402
from icl_jax.blocks.block import Block  # noqa: E402
from icl_jax.blocks.feedforward import Gated  # noqa: E402
from icl_jax.blocks.functional import functional  # noqa: E402
from icl_jax.blocks.language_model import LanguageModel  # noqa: E402
from icl_jax.blocks.rotary import Rotary  # noqa: E402
from icl_jax.blocks.softmax_attention import SoftmaxAttention
from icl_jax.blocks.stack import repeat  # noqa: E402
from icl_jax.dims import Array, Params  # noqa: E402
from icl_jax.dynamics.prefixes import prefix_pass  # noqa: E402
from icl_jax.language.ends import embed, readout  # noqa: E402
from icl_jax.language.generation import generate, patched_generate  # noqa: E402
from icl_jax.language.prompt import full_logits, prompt_patches  # noqa: E402
from icl_jax.stack.block import apply_block  # noqa: E402
from icl_jax.stack.fold import fold  # noqa: E402
from icl_jax.stack.run import forward  # noqa: E402

_SMALL = flags.DEFINE_bool("small", False, "sizes for a CPU")
_SECTIONS = flags.DEFINE_list("sections", None, "only these; see SECTIONS")
_SECONDS = flags.DEFINE_float("seconds", 220.0, "no section begins after so many", lower_bound=1.0)


@dataclasses.dataclass(frozen=True)
class Shape:
    """Of a model like Llama 3.2 1B, and what is asked of it."""

    layers: int = 16
    width: int = 2048
    hidden: int = 8192
    heads: int = 32
    groups: int = 8
    vocab: int = 128256
    length: int = 2048
    kept: int = 64
    lengths: tuple[int, ...] = (4096, 8192, 16384, 32768)
    prompt: int = 512
    written: int = 128
    prefixes: int = 4096
    prefix_layers: int = 4
    prefix_width: int = 1024
    square: int = 8192

    @property
    def head_width(self) -> int:
        """F."""
        return self.width // self.heads

    @property
    def forward_flops(self) -> float:
        """Of the products of one pass over ``length`` tokens, the last states only, in FLOP."""
        kernels = 2 * self.width**2 + 2 * self.width * self.groups * self.head_width
        kernels += 3 * self.width * self.hidden
        scores = 2 * self.length * self.width  # Causal: half of T x T, for scores and values.
        return 2.0 * self.length * self.layers * (kernels + scores / 2)


SMALL = Shape(
    layers=4, width=256, hidden=512, heads=8, groups=4, vocab=1024, length=512, kept=16,
    lengths=(1024, 2048), prompt=64, written=32, prefixes=256, prefix_layers=2, prefix_width=64,
    square=1024,
)  # fmt: skip


def shape() -> Shape:
    """The size of this run."""
    return SMALL if _SMALL.value else Shape()


def dtype() -> Any:
    """bfloat16, but float32 in small: CPUs emulate the other."""
    return jnp.float32 if _SMALL.value else jnp.bfloat16


def random_model() -> tuple[LanguageModel, Params]:
    """The model and random parameters of it, made on the device."""
    size = shape()
    attention = SoftmaxAttention(
        num_heads=size.heads, num_kv_heads=size.groups, rotary=Rotary(500000.0), dtype=dtype()
    )
    mlp = Gated(hidden_width=size.hidden, activation="silu", use_bias=False, dtype=dtype())
    block = Block(attention, mlp, "pre_norm", "rms", norm_epsilon=1e-5)
    model = LanguageModel(
        repeat(block, size.layers), size.vocab, size.width, norm_epsilon=1e-5, dtype=dtype()
    )
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(2, jnp.int32))["params"]

    @jax.jit
    def draw(key: Array) -> Params:
        leaves, tree = jax.tree.flatten(shapes)
        keys = jax.random.split(key, len(leaves))
        # Tokens as long as a trained stream: layers change it, and do not replace it. (An open loop
        # of the other kind is refused in bfloat16, with reason.)
        sizes = [1.0 if leaf.shape[:1] == (size.vocab,) else 0.02 for leaf in leaves]
        drawn = [
            (scale * jax.random.normal(k, leaf.shape, jnp.float32)).astype(leaf.dtype)
            for k, scale, leaf in zip(keys, sizes, leaves, strict=True)
        ]
        return tree.unflatten(drawn)

    return model, draw(jax.random.key(0))


def tokens(count: int) -> np.ndarray:
    """Random token ids."""
    return np.random.default_rng(0).integers(0, shape().vocab, count).astype(np.int32)


def kept(length: int) -> np.ndarray:
    """The last positions of a prompt."""
    return np.arange(length - shape().kept, length)


@dataclasses.dataclass
class Bench:
    """What the sections share; made when first asked for."""

    made: dict[str, Any] = dataclasses.field(default_factory=dict)

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """``make()``, the first time."""
        if name not in self.made:
            self.made[name] = make()
        return self.made[name]

    @property
    def model(self) -> tuple[LanguageModel, Params]:
        """Ours."""
        return self.once("model", random_model)

    @property
    def theirs(self) -> Any:
        """The model of ``transformers`` of the same shape; None without the package."""
        return self.once("theirs", _transformers_model)

    @property
    def card(self) -> dict[str, float]:
        """The measured rates: products in FLOP/s, copies in bytes/s, read and written."""
        return self.once("card", _card)


def _card() -> dict[str, float]:
    side = shape().square
    matrix = jax.random.normal(jax.random.key(0), (side, side), dtype())
    product = jax.jit(lambda a: jnp.matmul(a, a))
    seconds = min(_times(lambda: product(matrix)))
    block = jnp.zeros(2**28 if not _SMALL.value else 2**22, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    copied = min(_times(lambda: copy(block)))
    return {"product": 2.0 * side**3 / seconds, "copy": 2.0 * block.nbytes / copied}


def _times(run: Callable[[], Any], repeats: int = 10) -> list[float]:
    jax.block_until_ready(run())
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        found.append(time.perf_counter() - start)
    return found


def _transformers_model() -> Any:
    try:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError:
        return None
    size = shape()
    config = LlamaConfig(
        vocab_size=size.vocab,
        hidden_size=size.width,
        intermediate_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.groups,
        rope_theta=500000.0,
        max_position_embeddings=131072,
        tie_word_embeddings=True,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = torch.float32 if _SMALL.value else torch.bfloat16
    with torch.device(device):
        model = LlamaForCausalLM(config).to(kind)
    return model.eval()


def _synchronised(run: Callable[[], Any]) -> Callable[[], Any]:
    """A torch computation that has ended when it returns, and gives JAX nothing to wait for."""
    import torch

    def both() -> Array:
        with torch.inference_mode():
            run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return jnp.zeros(())

    return both


def _share(row: dict[str, Any], label: str, amount: float, rate: float, unit: str) -> dict:
    """The row with the share of the card that a side reaches."""
    seconds = row["sides"][label]["seconds"]
    row["of the card"] = {label: amount / seconds / rate, "unit": unit}
    row["rate"] = amount / seconds
    return row


def card_section(bench: Bench) -> list[dict]:
    """What the card can do."""
    rates, side = bench.card, shape().square
    seconds = [2.0 * side**3 / rates["product"]]
    row = as_row(
        f"the card: product {side}^3 at {rates['product'] / 1e12:.0f} TFLOP/s, "
        f"copy at {rates['copy'] / 1e12:.2f} TB/s",
        {"product": seconds, "copy": [2.0 * 2**30 / rates["copy"]]},
        {"product": 1, "copy": 1},
        sizes={"square": side},
    )
    return [row]


def forward_section(bench: Bench) -> list[dict]:
    """The forward pass, with the logits of the last token, as each is called by a user."""
    model, params = bench.model
    size = shape()
    ids = tokens(size.length)
    sides = {"ours": Side(lambda: full_logits(model, params, ids, [size.length - 1]))}
    if bench.theirs is not None:
        import torch

        theirs = torch.as_tensor(ids, device=bench.theirs.device).long()[None]
        sides["transformers"] = Side(
            _synchronised(lambda: bench.theirs(theirs, use_cache=False, logits_to_keep=1))
        )
    else:
        sides["ours again"] = sides["ours"]
    row = compare(f"forward pass, {size.length} tokens", sides, sizes=_sizes(size))
    return [_share(row, "ours", size.forward_flops, bench.card["product"], "products")]


def patches_section(bench: Bench) -> list[dict]:
    """``prompt_patches`` as a user calls it, against the forward pass."""
    model, params = bench.model
    size = shape()
    ids, positions = tokens(size.length), kept(size.length)
    plain = Side(lambda: full_logits(model, params, ids, [size.length - 1]))
    rows = [
        compare(
            f"patches of {size.kept} kept tokens of {size.length}, {loop} loop",
            {
                "forward pass": plain,
                "prompt_patches": Side(
                    lambda loop=loop: (
                        prompt_patches(model, params, ids, positions, loop=loop).patches.segments
                    )
                ),
            },
            sizes=_sizes(size),
        )
        for loop in ("open", "closed")
    ]
    # The kept rows go through the kernels a second time.
    flops = size.forward_flops * (1 + size.kept / size.length)
    rate = bench.card["product"]
    return [_share(row, "prompt_patches", flops, rate, "products") for row in rows]


def mlp_section(bench: Bench) -> list[dict]:
    """All MLPs, a patch of its own for every row, against plain ones: XLA fuses what they add."""
    model, params = bench.model
    ids = tokens(shape().length)
    layers, stream = functional(model, params), embed(model, params, ids[1:])
    bank = prompt_patches(model, params, ids, np.arange(1, len(ids)))

    def step(block: Any, layer: Params, stream: Array, patch: Any) -> tuple[Array, None]:
        # No attention: the stream alone is what a norm and the MLP read.
        return apply_block(block, layer, block.join(layer, stream, 0 * stream), patch), None

    run = jax.jit(lambda layers, stream, patches: fold(layers, step, stream, patches)[0])
    size = shape()
    row = compare(
        f"the MLPs of {size.layers} layers, {len(stream)} rows with a patch each",
        {
            "plain": Side(lambda: run(layers, stream, None)),
            "patched": Side(lambda: run(layers, stream, bank.patches)),
        },
        sizes=_sizes(size),
    )
    flops = 6.0 * len(stream) * size.layers * size.width * size.hidden
    return [_share(row, "patched", flops, bench.card["product"], "products")]


def lengths_section(bench: Bench) -> list[dict]:
    """Long contexts: seconds and temporaries of the forward pass."""
    model, params = bench.model
    rows = []
    for length in shape().lengths:

        @jax.jit
        def run(params: Params, ids: Array) -> Array:
            hidden = forward(functional(model, params), embed(model, params, ids))
            return readout(model, params, hidden[-1:])

        ids = jnp.asarray(tokens(length))
        compiled = run.lower(params, ids).compile()
        memory = compiled.memory_analysis().temp_size_in_bytes
        seconds = _times(lambda compiled=compiled, ids=ids: compiled(params, ids), 3)
        before = rows[-1]["sides"]["ours"] if rows else {"seconds": seconds[0], "bytes": memory}
        row = as_row(
            f"forward pass, {length} tokens; temporaries (ratio: to half as many)",
            {"half": [before["seconds"]], "ours": seconds},
            {"half": before["bytes"], "ours": memory},
            sizes={"length": length},
        )
        flops = dataclasses.replace(shape(), length=length).forward_flops
        rows.append(_share(row, "ours", flops, bench.card["product"], "products"))
    return rows


def generation_section(bench: Bench) -> list[dict]:
    """Tokens per second, reading the prompt included."""
    model, params = bench.model
    size = shape()
    ids, positions = tokens(size.prompt), kept(size.prompt)[size.kept // 2 :]
    run = (model, params, ids)
    sides = {
        "generate": Side(lambda: jnp.asarray(generate(*run, size.written))),
        "patched_generate": Side(
            lambda: jnp.asarray(patched_generate(*run, positions, size.written).tokens_N)
        ),
    }
    if bench.theirs is not None:
        import torch

        theirs = torch.as_tensor(ids, device=bench.theirs.device).long()[None]
        sides["transformers"] = Side(
            _synchronised(
                lambda: bench.theirs.generate(
                    theirs,
                    attention_mask=torch.ones_like(theirs),
                    max_new_tokens=size.written,
                    min_new_tokens=size.written,
                    do_sample=False,
                    pad_token_id=0,
                )
            )
        )
    row = compare(
        f"{size.written} tokens after {size.prompt}", sides, sizes=_sizes(size), repeats=3
    )
    row["tokens per second"] = {
        label: size.written / side["seconds"] for label, side in row["sides"].items()
    }
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    return [_share(row, "generate", size.written * weights, bench.card["copy"], "copies")]


def prefixes_section(bench: Bench) -> list[dict]:
    """All prefixes in one pass against one causal run over twice as many tokens."""
    size = shape()
    attention = SoftmaxAttention(num_heads=size.prefix_width // 64, dtype=dtype())
    mlp = Gated(hidden_width=4 * size.prefix_width, use_bias=False, dtype=dtype())
    model = LanguageModel(
        repeat(Block(attention, mlp, "pre_norm", "rms"), size.prefix_layers),
        16, size.prefix_width, dtype=dtype(),
    )  # fmt: skip
    init = jax.jit(lambda key: model.init(key, jnp.zeros(2, jnp.int32))["params"])
    layers = functional(model, init(jax.random.key(0)))
    both = jax.random.normal(jax.random.key(1), (2 * size.prefixes, size.prefix_width), dtype())
    passed = jax.jit(lambda layers, h: prefix_pass(layers, h[: size.prefixes], h[-1]).output_MD)
    plain = jax.jit(forward)
    row = compare(
        f"{size.prefixes} prefixes, {size.prefix_layers} layers, width {size.prefix_width}",
        {
            "one causal run over 2n": Side(lambda: plain(layers, both)),
            "prefix_pass": Side(lambda: passed(layers, both)),
        },
        sizes={"prefixes": size.prefixes},
    )
    # Twice n rows of 4 + 8 kernels' widths, and two triangles of scores, each for keys and values.
    rows, width = 2 * size.prefixes, size.prefix_width
    flops = 2.0 * size.prefix_layers * width * (12 * rows * width + 2 * size.prefixes**2)
    return [_share(row, "prefix_pass", flops, bench.card["product"], "products")]


def paper_section(bench: Bench) -> list[dict]:
    """The main job, quick, in a fresh process and from an empty compilation cache."""
    del bench
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "experiments.paper", "--quick", f"--workdir={scratch}/p"]
        start = time.perf_counter()
        environment = {**os.environ, "XDG_CACHE_HOME": scratch}
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=_SECONDS.value
        )
        seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"experiments.paper failed:\n{done.stderr[-2000:]}")
    row = as_row(
        "experiments.paper --quick, from an empty cache",
        {"the goal": [90.0], "experiments.paper": [seconds]},
        {"the goal": 1, "experiments.paper": 1},
        sizes={},
    )
    row["last lines"] = done.stdout.strip().splitlines()[-3:]
    return [row]


SECTIONS: dict[str, Callable[[Bench], list[dict]]] = {
    "card": card_section,
    "forward": forward_section,
    "patches": patches_section,
    "mlp": mlp_section,
    "generation": generation_section,
    "prefixes": prefixes_section,
    "lengths": lengths_section,
    "paper": paper_section,
}


#: What a section takes at least, in seconds: it does not begin where that is not left.
NEEDS = {"paper": 90.0}


def _sizes(size: Shape) -> dict[str, int]:
    return {name: getattr(size, name) for name in ("layers", "width", "vocab", "length", "kept")}


def benchmark() -> list[dict]:
    """The rows of all sections, or of those that were asked for; a section that fails is named."""
    bench, start = Bench(), time.perf_counter()
    rows = []
    for name in _SECTIONS.value or SECTIONS:
        spent = time.perf_counter() - start
        if spent + NEEDS.get(name, 0.0) > _SECONDS.value:
            print(f"{name}: left out, {spent:.0f} s are over.", flush=True)
            continue
        print(f"{name} ...", flush=True)
        try:
            found = SECTIONS[name](bench)
        except Exception as error:  # What other sections measure is not lost.
            print(f"  {name} failed: {type(error).__name__}: {error}", flush=True)
            continue
        for row in found:
            row["section"] = name
            sides = {label: f"{side['seconds']:.4g} s" for label, side in row["sides"].items()}
            extra = {key: row[key] for key in ("of the card", "tokens per second") if key in row}
            print(f"  {row['name']}: {sides} ratio {row['ratio']:.3g} "
                  f"memory {row['bytes_ratio']:.3g} {extra}", flush=True)  # fmt: skip
        rows += found
    return rows


if __name__ == "__main__":
    launch(benchmark)

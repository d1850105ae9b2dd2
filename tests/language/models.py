"""Small language models of every kind of block, all parameters random."""

import functools

import jax
import jax.numpy as jnp

from icl_jax.blocks.block import Block
from icl_jax.blocks.experts import Experts
from icl_jax.blocks.feedforward import Dense, Gated
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.blocks.rotary import Rotary
from icl_jax.blocks.softmax_attention import SoftmaxAttention
from tests.helpers import random_params

WIDTH, VOCAB = 16, 48

_ROTARY = SoftmaxAttention(num_heads=4, num_kv_heads=2, rotary=Rotary(100.0))
_LOCAL = SoftmaxAttention(
    num_heads=4, num_kv_heads=1, rotary=Rotary(50.0), window=5, qk_norm="head", soft_cap=30.0
)
_GATED = Gated(hidden_width=24, activation="silu", use_bias=False)


def _decoder(*blocks, **options):
    return LanguageModel(blocks, vocab_size=VOCAB, width=WIDTH, **options)


MODELS = {
    "learned_positions": _decoder(
        *(
            Block(SoftmaxAttention(num_heads=4, use_bias=True), Dense(hidden_widths=(24,)))
            for _ in range(2)
        ),
        num_positions=64,
        norm="layer",
    ),
    "rotary": _decoder(*(Block(_ROTARY.clone(), _GATED.clone(), norm="rms") for _ in range(2))),
    "sandwich": _decoder(
        Block(_LOCAL.clone(), _GATED.clone(), "sandwich", "rms"),
        Block(_ROTARY.clone(), _GATED.clone(), "sandwich", "rms"),
        embedding_scale=4.0,
        soft_cap=20.0,
    ),
    "parallel": _decoder(
        *(
            Block(_ROTARY.clone(), Dense(hidden_widths=(24,)), "parallel", "layer")
            for _ in range(2)
        ),
        norm="layer",
        head="own",
        head_bias=True,
    ),
    "experts": _decoder(
        *(
            Block(
                _ROTARY.clone(),
                Experts(num_experts=4, experts_per_token=2, hidden_width=12),
                norm="rms",
            )
            for _ in range(2)
        )
    ),
    "encoder": _decoder(
        *(
            Block(
                SoftmaxAttention(num_heads=4, causal=False, use_bias=True),
                Dense(hidden_widths=(24,), activation="gelu"),
                "post_norm",
            )
            for _ in range(2)
        ),
        num_positions=64,
        num_types=2,
        embedding_norm=True,
        norm="layer",
        final_norm=False,
        head="none",
    ),
}
DECODERS = tuple(name for name in MODELS if name != "encoder")


@functools.cache
def params_of(name, dtype="float32"):
    """Random parameters; those of norms are float32 at least, as a loader leaves them."""
    params = random_params(MODELS[name], 3, jnp.zeros(2, jnp.int32))
    dtype = jnp.dtype(dtype)

    def cast(path, leaf):
        norm = any("norm" in str(part) for part in path)
        return leaf if norm and dtype.itemsize < 4 else leaf.astype(dtype)

    return jax.tree_util.tree_map_with_path(cast, params)

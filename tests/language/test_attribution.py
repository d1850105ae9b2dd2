"""Who wrote a prompt's update, for prompts of many lengths in one program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.blocks.flax_block import FlaxBlock
from icl_jax.blocks.functional import functional
from icl_jax.dynamics.attribution import attribute_block
from icl_jax.dynamics.contributions import contribution_shares, remainder_share
from icl_jax.language import attribution
from icl_jax.language.attribution import attributable, attribute
from icl_jax.patches.low_rank import frobenius_norm
from icl_jax.patches.token import token_update
from icl_jax.stack.block import apply_block
from tests.helpers import eps
from tests.language.models import MODELS, VOCAB, params_of

TOKENS = np.random.default_rng(0).integers(0, VOCAB, 24).astype(np.int32)
MANY, KEPT = [TOKENS[:18], TOKENS, TOKENS[5:22]], [[3, 9, 17], [0, 12, 22, 23], [1, 16]]


def by_hand(model, params, tokens_T, kept, row):
    """Layer after layer, without padding."""
    stream_TD = model.apply({"params": params}, tokens_T, method="embed")
    shares, remainders = [], []
    for block, layer in functional(model, params):
        found = attribute_block(block, layer, stream_TD, kept)
        one = jax.tree.map(lambda leaf: leaf[row], found)  # noqa: B023
        shares.append(contribution_shares(one))
        remainders.append(remainder_share(one))
        stream_TD = apply_block(block, layer, block.contextual(layer, stream_TD))
    return np.stack(shares), np.stack(remainders)


@pytest.mark.parametrize("name", ("encoder", pytest.param("rotary", marks=pytest.mark.slow)))
def test_a_batch_is_every_prompt_by_hand(name):
    model, params = MODELS[name], params_of(name, "float64")
    many = attribute(model, params, MANY, KEPT)
    for found, tokens_T, kept in zip(many, MANY, KEPT, strict=True):
        shares_LAT, remainder_L = by_hand(model, params, tokens_T, kept, -1)
        assert found.shares_LAT.shape == (2, 4, len(tokens_T))
        bound = eps("float64", 60, condition=1000)
        np.testing.assert_allclose(found.shares_LAT, shares_LAT, rtol=bound, atol=bound)
        np.testing.assert_allclose(found.remainder_L, remainder_L, rtol=bound, atol=bound)
        total_L = np.sum(found.shares_LAT, axis=(1, 2)) + found.remainder_L
        np.testing.assert_allclose(total_L, 1, rtol=bound)
        assert not np.any(found.shares_LAT[:, :, kept]) and np.any(found.shares_LAT)


def test_lengths_of_a_bucket_share_a_program_and_rows_do_too():
    model, params = MODELS["rotary"], params_of("rotary")
    attribution._attribute.clear_cache()
    for length in (17, 20, 31):
        tokens_T, kept = np.resize(TOKENS, length), [0, 4, length - 1]
        last, first = (attribute(model, params, tokens_T, kept, row=row) for row in (-1, 1))
        assert not np.allclose(last.shares_LAT, first.shares_LAT)
    assert attribution._attribute._cache_size() == 1


@pytest.mark.slow
def test_a_prompt_of_which_most_is_kept_is_attributed_like_any_other():
    # Tokens and kept positions are padded to one and the same number.
    model, params = MODELS["rotary"], params_of("rotary", "float64")
    kept = [*range(5), *range(7, 22)]
    found = attribute(model, params, TOKENS[:22], kept)
    shares_LAT, remainder_L = by_hand(model, params, TOKENS[:22], kept, -1)
    np.testing.assert_allclose(found.shares_LAT, shares_LAT, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(found.remainder_L, remainder_L, rtol=1e-8, atol=1e-8)


def test_what_cannot_be_attributed_is_refused():
    run = (MODELS["rotary"], params_of("rotary"))
    with pytest.raises(ValueError, match=r"attribute: row must be one of the 2 kept positions"):
        attribute(*run, MANY, KEPT, row=2)
    with pytest.raises(ValueError, match="parallel block"):
        attribute(MODELS["parallel"], params_of("parallel"), TOKENS, [0, 23])


@pytest.mark.wide(3)
@pytest.mark.parametrize("name", ("rotary", "sandwich", "learned_positions"))
def test_a_kernel_has_its_own_shares_and_its_update_is_the_token_patchs(name):
    model, params = MODELS[name], params_of(name, "float64")
    kept = [0, 12, 23]
    stream_TD = model.apply({"params": params}, TOKENS, method="embed")
    block, layer = functional(model, params)[0]
    full = block.contextual(layer, stream_TD).mlp_input_TD[23]
    alone = block.contextual(layer, stream_TD[jnp.array(kept)], positions_T=jnp.array(kept))
    for kernel in block.input_kernels:
        found = attribute(model, params, TOKENS, kept, of=kernel)
        kernel_DH = layer["mlp"][kernel]["kernel"]
        update = token_update(full, alone.mlp_input_TD[2], kernel_DH)
        np.testing.assert_allclose(found.norm_L[0], frobenius_norm(update), rtol=1e-10)
        total_L = np.sum(found.shares_LAT, axis=(1, 2)) + found.remainder_L
        np.testing.assert_allclose(total_L, 1, rtol=1e-10)
        whole = attribute(model, params, TOKENS, kept)
        assert not np.allclose(whole.shares_LAT, found.shares_LAT, rtol=1e-3)


@pytest.mark.wide(3)
@pytest.mark.parametrize("name", ("rotary", "sandwich", "parallel", "encoder", "experts"))
def test_the_change_of_the_residual_stream_is_a_sum_without_a_norm_in_between(name):
    model, params = MODELS[name], params_of(name, "float64")
    found = attribute(model, params, TOKENS, [0, 23], of="output")
    total_L = np.sum(found.shares_LAT, axis=(1, 2)) + found.remainder_L
    np.testing.assert_allclose(total_L, 1, rtol=1e-9)
    between = name in ("sandwich", "encoder")  # Norms on what is mixed, or on the sum.
    assert bool(np.any(np.abs(found.remainder_L) > 1e-6)) == between
    stream_TD = model.apply({"params": params}, TOKENS, method="embed")
    block, layer = functional(model, params)[0]
    kept_K = jnp.array([0, 23])
    full = block.contextual(layer, stream_TD).residual_TD[23]
    alone = block.contextual(layer, stream_TD[kept_K], positions_T=kept_K).residual_TD[1]
    np.testing.assert_allclose(found.norm_L[0], np.linalg.norm(full - alone), rtol=1e-10)


def test_what_can_be_attributed_has_names_and_nothing_else_is_taken():
    assert attributable(MODELS["rotary"]) == ("input", "gate", "up", "output")
    assert attributable(MODELS["learned_positions"]) == ("input", "layer_0", "output")
    assert attributable(MODELS["experts"]) == ("input", "output")
    assert attributable(MODELS["parallel"]) == ("output",)
    with pytest.raises(ValueError, match=r"of must be one of .*'gate'.*got 'down'"):
        attribute(MODELS["rotary"], params_of("rotary"), TOKENS, [0, 23], of="down")
    block, layer = functional(MODELS["rotary"], params_of("rotary"))[0]
    with pytest.raises(ValueError, match=r"of must be one of"):
        attribute_block(block, layer, jnp.ones((4, 16)), [3], of="everything")
    bare = FlaxBlock(block.module.clone(wiring="no_skip"))
    with pytest.raises(ValueError, match="of='residual' needs a block that has"):
        attribute_block(bare, layer, jnp.ones((4, 16)), [3], of="residual")

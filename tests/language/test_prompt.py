"""The patched model on the kept tokens says what the whole model says on all of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icl_jax.blocks.functional import layer_params
from icl_jax.language.prompt import alone_logits, full_logits, patched_logits, prompt_patches
from icl_jax.measures.distributions import same_top1
from icl_jax.patches.bank import compact_bank
from tests.helpers import eps, kept_sets, relative_error
from tests.language.models import MODELS, VOCAB, params_of

TOKENS = np.random.default_rng(0).integers(0, VOCAB, 24).astype(np.int32)
OTHER = np.random.default_rng(1).integers(0, VOCAB, 24).astype(np.int32)
MISS = 1e-2


@pytest.mark.wide(18)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "loop, dtype",
    (
        ("closed", "float32"),
        ("open", "float64"),
        ("closed", "float64"),
        ("open", "float32"),
    ),
)
def test_logits_of_all_kept_positions(name, loop, dtype):
    model, params = MODELS[name], params_of(name, dtype)
    kept = np.array([0, 9, 10, 22, 23])
    want = full_logits(model, params, TOKENS, kept)
    bank = prompt_patches(model, params, TOKENS, kept, loop=loop)
    # The patched run gets the kept tokens only: the others are made into something else.
    seen = np.zeros_like(TOKENS)
    seen[kept] = TOKENS[kept]
    got = patched_logits(model, params, seen, bank)
    assert want.dtype == dtype
    assert relative_error(got, want) < eps(dtype, 60, condition=20)
    shuffled = prompt_patches(model, params, np.where(seen == 0, OTHER, TOKENS), kept)
    wrong = patched_logits(model, params, seen, dataclasses.replace(bank, patches=shuffled.patches))
    for control in (alone_logits(model, params, TOKENS, kept), wrong):
        assert relative_error(control, want) > MISS


@pytest.mark.wide(2)
@pytest.mark.parametrize("name", ("rotary", "parallel"))
def test_one_nan_in_a_weight_is_refused_by_every_function(name):
    model, params = MODELS[name], params_of(name)
    kept = [0, 22, 23]
    bank = prompt_patches(model, params, TOKENS, kept)
    gains = {key: leaf.at[0].set(jnp.nan) for key, leaf in params["norm_final"].items()}
    run = (model, {**params, "norm_final": gains}, TOKENS)  # The last norm: no patch sees it.
    for function, *rest in ((full_logits, kept), (alone_logits, kept), (patched_logits, bank)):
        with pytest.raises(ValueError, match=f"{function.__name__}: the logits of row .* finite"):
            function(*run, *rest)
    # Inside jit nobody can look; the numbers are returned.
    seen = jax.jit(lambda params: full_logits(model, params, TOKENS, kept))(run[1])
    assert bool(jnp.all(jnp.isnan(seen)))


@given(kept_sets(24), st.sampled_from(("sandwich", "rotary")))
def test_any_kept_positions(kept, name):
    model, params = MODELS[name], params_of(name)
    bank = prompt_patches(model, params, TOKENS, kept)
    got = patched_logits(model, params, TOKENS, bank)
    want = full_logits(model, params, TOKENS, kept)
    assert got.shape == (len(kept), VOCAB) and bank.kept_K.tolist() == list(kept)
    assert relative_error(got, want) < eps("float32", 60, condition=20)


@pytest.mark.wide(3)
@pytest.mark.parametrize("name", ("rotary", "sandwich", "experts"))
def test_in_bfloat16_the_patched_run_repeats_the_closed_loop(name):
    model, params = MODELS[name], params_of(name, "bfloat16")
    kept = np.arange(16, 24)
    bank = prompt_patches(model, params, TOKENS, kept)
    want = full_logits(model, params, TOKENS, kept)
    got = patched_logits(model, params, TOKENS, bank)
    assert want.dtype == jnp.bfloat16
    # One layer's rounding, however many layers there are.
    assert relative_error(got, want) < 3e-2
    assert np.mean(same_top1(want, got)) >= 0.99
    assert relative_error(alone_logits(model, params, TOKENS, kept), want) > 0.1


@pytest.mark.wide(5)
@pytest.mark.parametrize("name", ("rotary", "sandwich", "experts"))
@pytest.mark.parametrize("count", (4, 8))
def test_in_bfloat16_the_patched_run_is_the_full_run_to_the_bit(name, count):
    """Down and balanced patches aim at the stored state and are rounded once, behind the sum."""
    model, params = MODELS[name], params_of(name, "bfloat16")
    kept = np.arange(24 - count, 24)
    want = full_logits(model, params, TOKENS, kept)
    bank = prompt_patches(model, params, TOKENS, kept)
    for one in (bank, compact_bank(bank)):
        np.testing.assert_array_equal(patched_logits(model, params, TOKENS, one), want)
    assert relative_error(alone_logits(model, params, TOKENS, kept), want) > 0.1


def test_the_experts_of_the_whole_prompt_are_chosen():
    model, params = MODELS["experts"], params_of("experts")
    kept = np.array([22, 23])
    bank = prompt_patches(model, params, TOKENS, kept)
    block, block_params = model.blocks[0], layer_params(model, params, 0)
    stream_TD = model.apply({"params": params}, TOKENS, method="embed")

    def chosen(rows_TD, positions_T, factor):
        midpoint = block.apply(
            {"params": block_params}, rows_TD, positions_T=positions_T, method="contextual"
        )
        read_TD = midpoint.mlp_input_TD
        if factor is not None:
            strength_K1 = jnp.sum(read_TD * factor.v_D, axis=-1, keepdims=True)
            read_TD = read_TD + strength_K1 * factor.delta_D
        return block.mlp.apply({"params": block_params["mlp"]}, read_TD, method="route")[0]

    full_TD = chosen(stream_TD, jnp.arange(24), None)[kept]
    patched = chosen(stream_TD[kept], jnp.asarray(kept), bank.patches[0].input)
    np.testing.assert_array_equal(patched, full_TD)
    assert np.any(chosen(stream_TD[kept], jnp.asarray(kept), None) != full_TD)


def test_a_compact_bank_says_the_same():
    model, params = MODELS["sandwich"], params_of("sandwich")
    bank = prompt_patches(model, params, TOKENS, [22, 23])
    want = patched_logits(model, params, TOKENS, bank)
    got = patched_logits(model, params, TOKENS, compact_bank(bank))
    assert relative_error(got, want) < eps("float32", 60)


def test_everything_works_inside_jit():
    model, params = MODELS["rotary"], params_of("rotary")

    @jax.jit
    def run(tokens_T):
        bank = prompt_patches(model, params, tokens_T, jnp.array([22, 23]))
        return patched_logits(model, params, tokens_T, bank)

    want = full_logits(model, params, TOKENS, [22, 23])
    assert relative_error(run(jnp.asarray(TOKENS)), want) < eps("float32", 60, condition=20)


class TestErrors:
    model, params = MODELS["learned_positions"], params_of("learned_positions")

    def test_tokens(self):
        run = (self.model, self.params)
        with pytest.raises(
            ValueError, match=r"must lie in \[0, 48\).* got \[48, -1\]. Use the tok"
        ):
            full_logits(*run, np.array([1, 48, -1]), [2])
        with pytest.raises(TypeError, match="tokens_T must be integers, got float64"):
            full_logits(*run, np.zeros(3), [2])
        with pytest.raises(ValueError, match="tokens_T is empty"):
            full_logits(*run, np.zeros(0, np.int32), [0])
        with pytest.raises(ValueError, match="65 tokens are needed, .* only 64 positions"):
            prompt_patches(*run, np.zeros(65, np.int32), [64])

    def test_kept_positions(self):
        with pytest.raises(ValueError, match="kept"):
            prompt_patches(self.model, self.params, TOKENS, [24])
        with pytest.raises(ValueError, match="kept"):
            prompt_patches(self.model, self.params, TOKENS, range(24))

    def test_a_policy_without_its_weights(self):
        with pytest.raises(ValueError, match="output='bias' needs a block that ends in a bias"):
            prompt_patches(MODELS["rotary"], params_of("rotary"), TOKENS, [23], output="bias")

    def test_a_position_without_a_patch(self):
        # A zero embedding: every norm of it, and so the MLP's input, is zero.
        params = {**params_of("rotary")}
        params["embedding"] = params["embedding"].at[0].set(0.0)
        tokens = TOKENS.copy()
        tokens[-1] = 0
        with pytest.raises(ValueError, match="layer 0 at index .0,. .* has length 0.0"):
            prompt_patches(MODELS["rotary"], params, tokens, [23])

"""A patch in the parameters: exact for its position, in the leaves that it names and no others.

Whole models are in tests/patches/test_bank.py; here it is one block and each policy.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icl_jax.blocks.block import Block
from icl_jax.blocks.experts import Experts
from icl_jax.blocks.feedforward import Dense, Feedforward, Gated
from icl_jax.blocks.flax_block import FlaxBlock
from icl_jax.blocks.materialise import materialise, position_patch
from icl_jax.patches.block import TokenPatch, block_patches
from icl_jax.patches.output import compact_down
from tests.helpers import (
    LAYERS,
    MLPS,
    WIDTH,
    assert_close,
    compiled,
    eps,
    normal,
    random_params,
    relative_error,
    seeds,
)

MISS = 1e-2
KEPT_K = jnp.array([2, 5])


@functools.cache
def block_with(wiring, norm, mlp):
    return FlaxBlock(Block(LAYERS["attention"], MLPS[mlp], wiring, norm))


def params_of(block, seed=0, dtype=jnp.float64):
    params = _float32_params(block, seed)
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


@functools.cache
def _float32_params(block, seed):
    return random_params(block.module, seed, jnp.zeros((2, WIDTH), jnp.float32))


@functools.partial(compiled, static_argnums=(0, 3))
def patched_halves(block, params, stream_TD, policy):
    """The bank of the kept positions, what it is to give (K, D), and their midpoints."""

    def rows(midpoint, index_K):
        return jax.tree.map(lambda array: array[index_K], midpoint)

    full = rows(block.contextual(params, stream_TD), KEPT_K)
    kept = block.contextual(params, stream_TD[KEPT_K], positions_T=KEPT_K)
    bank, numbers = block_patches(block, params, full, kept, policy)
    condition = 1 + jnp.max(numbers.relative_change)
    if numbers.max_gain_change is not None:
        condition += jnp.max(numbers.max_gain_change)
    return bank, output(block, params, full), kept, condition


def output(block, params, midpoint):
    """The second half with plain parameters."""
    hidden_TH = block.hidden(params, midpoint.mlp_input_TD, None)
    return block.output(params, midpoint, hidden_TH, None)


run = functools.partial(compiled, static_argnums=0)(output)


def changed_leaves(new, old):
    """The paths at which two trees of one structure, shapes and dtypes differ."""
    assert jax.tree.structure(new) == jax.tree.structure(old)
    names = set()
    for (path, new_leaf), old_leaf in zip(
        jax.tree.leaves_with_path(new), jax.tree.leaves(old), strict=True
    ):
        assert new_leaf.shape == old_leaf.shape and new_leaf.dtype == old_leaf.dtype
        if np.any(np.asarray(new_leaf != old_leaf)):
            names.add("/".join(key.key for key in path))
    return names


#: Wiring, norm, MLP, policy and the leaves of the block's parameters that the patch changes.
LAYER_0 = {"mlp/layer_0/kernel"}
GATED = {"mlp/gate/kernel", "mlp/up/kernel"}
DOWN = {"mlp/down/kernel"}
GAIN = {"norm_2_out/scale"}
ROUTED = {f"mlp/{name}" for name in ("router", "gate", "up")}
SHARED = {f"mlp/shared_{name}" for name in ("router", "gate", "up")}
ROUTED_DOWN = {"mlp/down", "mlp/shared_down"}
POLICIES = (
    ("no_skip", "layer", "gated", "auto", GATED),
    ("no_skip", "layer", "experts", "auto", ROUTED | SHARED),
    ("skip", "none", "dense_bias", "bias", LAYER_0 | {"mlp/down/bias"}),
    ("pre_norm", "layer", "dense_bias", "down", LAYER_0 | DOWN),
    ("pre_norm", "rms", "linear_bias", "bias", DOWN | {"mlp/down/bias"}),
    ("pre_norm", "rms", "linear", "down", DOWN),
    ("post_norm", "layer", "deep", "down", LAYER_0 | DOWN),
    ("parallel", "layer", "gated_bias", "bias", {"mlp/down/bias"}),
    ("parallel", "rms", "gated", "down", DOWN),
    ("pre_norm", "rms", "experts", "down", ROUTED | SHARED | ROUTED_DOWN),
    # A norm on the output: its own bias if it has one, and never that of the MLP.
    ("sandwich", "layer", "dense_bias", "bias", LAYER_0 | {"norm_2_out/bias"}),
    ("reordered_norm", "layer", "gated", "bias", GATED | {"norm_2_out/bias"}),
    ("sandwich", "rms", "gated", "scale", GATED | GAIN),
    ("sandwich", "rms", "dense_bias", "balanced", LAYER_0 | DOWN | GAIN),
    ("sandwich", "rms", "gated", "balanced+remainder", GATED | DOWN | GAIN),
    ("sandwich", "rms", "experts", "balanced", ROUTED | SHARED | ROUTED_DOWN | GAIN),
    ("reordered_norm", "rms", "dense", "scale", LAYER_0 | GAIN),
    ("reordered_norm", "rms", "experts", "scale", ROUTED | SHARED | GAIN),
    ("reordered_norm", "rms", "gated", "balanced", GATED | DOWN | GAIN),
    ("reordered_norm", "none", "dense_bias", "bias", LAYER_0 | {"mlp/down/bias"}),
)
NAMES = ["-".join(case[:4]) for case in POLICIES]


class TestPolicies:
    @pytest.mark.wide(27)
    @pytest.mark.parametrize("wiring, norm, mlp, policy, leaves", POLICIES, ids=NAMES)
    def test_the_patched_block_gives_alone_what_it_gave_in_context(
        self, wiring, norm, mlp, policy, leaves
    ):
        block = block_with(wiring, norm, mlp)
        params = params_of(block)
        bank, want_KD, kept, condition = patched_halves(block, params, normal(1, 6, WIDTH), policy)
        plain_KD = run(block, params, kept)
        for k in range(2):
            new = materialise(block, params, position_patch(bank, k))
            assert changed_leaves(new, params) == leaves
            got_KD = run(block, new, kept)
            assert_close(got_KD[k], want_KD[k], 60, condition=10 * float(condition))
            # Neither the old weights nor those of the other position will do.
            assert relative_error(plain_KD[k], want_KD[k]) > MISS
            assert relative_error(got_KD[1 - k], want_KD[1 - k]) > MISS

    @given(st.sampled_from(POLICIES), seeds())
    def test_whatever_the_parameters(self, case, seed):
        wiring, norm, mlp, policy, _ = case
        block = block_with(wiring, norm, mlp)
        params = params_of(block, seed)
        stream_TD = normal(seed, 6, WIDTH)
        bank, want_KD, kept, condition = patched_halves(block, params, stream_TD, policy)
        got_KD = run(block, materialise(block, params, position_patch(bank, 0)), kept)
        assert_close(got_KD[0], want_KD[0], 60, condition=10 * float(condition))

    @pytest.mark.parametrize("policy", ("scale", "balanced", "balanced+remainder"))
    def test_a_gain_of_zero_can_be_raised(self, policy):
        block = block_with("sandwich", "rms", "gated")
        params = params_of(block)
        gain_D = params["norm_2_out"]["scale"].at[3].set(0.0)
        params = {**params, "norm_2_out": {"scale": gain_D}}
        bank, want_KD, kept, condition = patched_halves(block, params, normal(1, 6, WIDTH), policy)
        new = materialise(block, params, position_patch(bank, 0))
        assert new["norm_2_out"]["scale"][3] != 0
        got_D = run(block, new, kept)[0]
        assert_close(got_D, want_KD[0], 60, condition=10 * float(condition))

    def test_the_old_parameters_are_as_they_were(self):
        for mlp in ("gated_bias", "experts"):
            block = block_with("pre_norm", "rms", mlp)
            params = params_of(block)
            copy = jax.tree.map(np.array, params)
            bank, *_ = patched_halves(block, params, normal(1, 6, WIDTH), "down")
            materialise(block, params, position_patch(bank, 0))
            assert changed_leaves(params, copy) == set()

    def test_jit_is_eager(self):
        block = block_with("sandwich", "rms", "gated")
        params = params_of(block)
        bank, *_ = patched_halves(block, params, normal(1, 6, WIDTH), "balanced")
        eager = materialise(block, params, position_patch(bank, 1))
        jitted = compiled(materialise, static_argnums=0)(block, params, position_patch(bank, 1))
        for got, want in zip(jax.tree.leaves(jitted), jax.tree.leaves(eager), strict=True):
            assert_close(got, want, 8)


class TestDtypes:
    @pytest.mark.wide(6)
    @pytest.mark.parametrize("mlp", ("gated", "experts"))
    @pytest.mark.parametrize("stored, runs", (("float32", "float64"), ("bfloat16", "float32")))
    def test_parameters_keep_theirs_whatever_the_patch_has(self, stored, runs, mlp):
        block = block_with("sandwich", "rms", mlp)
        params = params_of(block, dtype=jnp.dtype(stored))
        stream_TD = normal(1, 6, WIDTH, dtype=runs)
        bank, want_KD, kept, condition = patched_halves(block, params, stream_TD, "balanced")
        new = materialise(block, params, position_patch(bank, 0))
        # changed_leaves compares the dtypes.
        assert GAIN < changed_leaves(new, params)
        # Each weight is rounded once to what is stored.
        error = relative_error(run(block, new, kept)[0], want_KD[0])
        assert error < eps(stored, 16, condition=float(condition))
        plain_D = run(block, params, kept)[0]
        assert relative_error(plain_D, want_KD[0]) > 2 * error

    def test_a_sum_is_rounded_once(self):
        # After 256 bfloat16 has 258. A change of a little over 1 goes up, of 1 itself down.
        block = block_with("parallel", "rms", "dense_bias")
        params = params_of(block, dtype=jnp.bfloat16)
        bias_D = jnp.full(WIDTH, 256.0, jnp.bfloat16)
        params["mlp"]["down"]["bias"] = bias_D
        bank, *_ = patched_halves(block, params, normal(1, 6, WIDTH), "bias")
        patch = position_patch(bank, 0)
        patch = jax.tree.map(lambda leaf: jnp.full_like(leaf, 1 + 2**-10), patch)
        new = materialise(block, params, patch)
        np.testing.assert_array_equal(new["mlp"]["down"]["bias"], bias_D + 2)


class Mute(Feedforward):
    """An MLP whose kernels nobody knows."""

    use_bias: bool = False

    def hidden(self, mlp_input_TD, factor):
        return mlp_input_TD

    def output(self, hidden_TH, mlp_input_TD, factor):
        return hidden_TH


class TestErrors:
    @staticmethod
    def bank_of(wiring, norm, mlp, policy):
        block = block_with(wiring, norm, mlp)
        params = params_of(block)
        return block, params, patched_halves(block, params, normal(1, 6, WIDTH), policy)[0]

    @pytest.mark.parametrize("mlp", ("gated", "experts"))
    def test_a_whole_bank_is_refused(self, mlp):
        block, params, bank = self.bank_of("pre_norm", "rms", mlp, "down")
        wording = r"materialise: patch.input.v_D must have 1 axes \(D\), got 2 axes"
        with pytest.raises(ValueError, match=wording):
            materialise(block, params, bank)

    @pytest.mark.parametrize("rank_promotion", ("raise", "allow"))
    def test_a_whole_bank_is_refused_where_there_is_no_input_factor(self, rank_promotion):
        block, params, bank = self.bank_of("parallel", "rms", "dense_bias", "bias")
        assert bank.input is None
        wording = r"materialise: patch.output.delta_D must have 1 axes \(D\), got 2 axes"
        with (
            jax.numpy_rank_promotion(rank_promotion),
            pytest.raises(ValueError, match=wording),
        ):
            materialise(block, params, bank)
        block, params, bank = self.bank_of("parallel", "rms", "gated", "down")
        with pytest.raises(ValueError, match=r"must have 1 axes \(D\), got 2 axes"):
            materialise(block, params, bank)

    @pytest.mark.parametrize(
        "mlp, wording",
        (
            ("gated", "down_update: a compact patch does not hold v = "),
            ("experts", "materialise: an experts' down patch needs the token's own MLP input"),
        ),
    )
    def test_a_compact_patch_is_refused(self, mlp, wording):
        block, params, bank = self.bank_of("pre_norm", "rms", mlp, "down")
        patch = position_patch(bank, 0)
        with pytest.raises(ValueError, match=wording):
            materialise(block, params, TokenPatch(patch.input, compact_down(patch.output)))

    def test_the_experts_of_a_parallel_block_are_not_known(self):
        block, params, bank = self.bank_of("parallel", "rms", "experts", "down")
        wording = "needs the token's own MLP input, which a parallel block's patch and a compact"
        with pytest.raises(ValueError, match=wording):
            materialise(block, params, position_patch(bank, 0))

    def test_an_mlp_of_another_kind_is_refused(self):
        _, _, bank = self.bank_of("pre_norm", "rms", "gated", "down")
        block = FlaxBlock(Block(LAYERS["attention"], Mute(), "pre_norm", "rms"))
        params = {**params_of(block), "mlp": {}}
        wording = "materialise: the kernels of a Mute are not known here; Dense, Gated and Experts"
        with pytest.raises(TypeError, match=wording):
            materialise(block, params, position_patch(bank, 0))


@pytest.mark.wide(2)
@pytest.mark.parametrize(
    "mlp, names",
    (
        (Dense(hidden_widths=(12, 6)), {"layer_0"}),
        (Dense(hidden_widths=()), {"down"}),
        (Gated(hidden_width=12), {"gate", "up"}),
        (Experts(num_experts=4, hidden_width=6), {"router", "gate", "up"}),
        (
            Experts(num_experts=4, hidden_width=6, shared_width=5),
            {"router", "gate", "up", "shared_gate", "shared_up", "shared_router"},
        ),
    ),
)
def test_an_mlp_names_the_kernels_that_read_its_input(mlp, names):
    assert set(mlp.input_kernels) == names
    params = mlp.init(jax.random.key(0), normal(0, 3, 8))["params"]
    assert names <= set(params)

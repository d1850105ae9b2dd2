"""Wirings against the formulas at the top of block.py, MLPs against theirs, and the errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icl_jax.blocks.affine import Affine, dense
from icl_jax.blocks.block import Block
from icl_jax.blocks.feedforward import ACTIVATIONS, Dense, Feedforward, Gated
from icl_jax.blocks.flax_block import FlaxBlock
from icl_jax.blocks.selective import SelectiveStateSpace
from icl_jax.blocks.wiring import WIRINGS
from icl_jax.patches.token import InputFactor, input_factor
from tests.helpers import (
    LAYERS,
    MLPS,
    WIDTH,
    assert_close,
    assert_trees_close,
    normal,
    random_params,
)

HIDDEN_TD = normal(1, 6, 8)


def with_params(module, seed=0):
    """float64 parameters of a module, and the module as a function."""
    params = random_params(module, seed, jnp.zeros((2, 8), jnp.float32))
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)

    def call(*args, method=None, **kwargs):
        return module.apply({"params": params}, *args, method=method, **kwargs)

    return params, call


def reference_norm(kind, params, stream_TD):
    if kind == "none":
        return stream_TD
    if kind == "layer":
        stream_TD = stream_TD - stream_TD.mean(axis=-1, keepdims=True)
    scaled_TD = stream_TD / np.sqrt((stream_TD**2).mean(axis=-1, keepdims=True) + 1e-6)
    scaled_TD = scaled_TD * np.asarray(params["scale"])
    return scaled_TD + np.asarray(params["bias"]) if kind == "layer" else scaled_TD


def reference_block(block, params, stream_TD):
    """The table of wirings, read line by line; returns h (or None), z and the output."""

    def attend(x):
        layer = block.contextual_layer
        return np.asarray(layer.apply({"params": params["contextual_layer"]}, jnp.asarray(x)))

    def mlp(z):
        return np.asarray(block.mlp.apply({"params": params["mlp"]}, jnp.asarray(z)))

    def n1(x):
        return reference_norm(block.norm, params.get("norm_1"), x)

    def n2(x):
        return reference_norm(block.norm, params.get("norm_2"), x)

    def n1_out(x):
        return reference_norm(block.norm, params.get("norm_1_out"), x)

    def n2_out(x):
        return reference_norm(block.norm, params.get("norm_2_out"), x)

    x = np.asarray(stream_TD)
    if block.wiring == "no_skip":
        z = attend(x)
        return None, z, mlp(z)
    if block.wiring == "skip":
        h = x + attend(x)
        return h, h, h + mlp(h)
    if block.wiring == "pre_norm":
        h = x + attend(n1(x))
        return h, n2(h), h + mlp(n2(h))
    if block.wiring == "post_norm":
        h = n1(x + attend(x))
        return h, h, n2(h + mlp(h))
    if block.wiring == "sandwich":
        h = x + n1_out(attend(n1(x)))
        return h, n2(h), h + n2_out(mlp(n2(h)))
    if block.wiring == "reordered_norm":
        h = x + n1_out(attend(x))
        return h, h, h + n2_out(mlp(h))
    if block.wiring == "mixer":
        z = attend(n1(x))
        return x, z, x + mlp(z)
    if block.separate_norms:
        h = x + attend(n1(x))
        return h, n2(x), h + mlp(n2(x))
    h = x + attend(n1(x))
    return h, n1(x), h + mlp(n1(x))


class TestWirings:
    @pytest.mark.parametrize("norm", ("layer", "rms", "none"))
    @pytest.mark.parametrize("wiring", (*WIRINGS, "parallel_two_norms"))
    def test_equals_its_formula(self, wiring, norm):
        two_norms = wiring == "parallel_two_norms"
        block = Block(
            LAYERS["attention"],
            MLPS["gated_bias"],
            "parallel" if two_norms else wiring,
            norm,
            separate_norms=two_norms,
        )
        params, call = with_params(block)
        h_TD, z_TD, want_TD = reference_block(block, params, HIDDEN_TD)
        midpoint = call(HIDDEN_TD, method="contextual")
        assert_close(call(HIDDEN_TD), want_TD, 60)
        assert_close(midpoint.mlp_input_TD, z_TD, 60)
        if h_TD is None:
            assert midpoint.residual_TD is None
        else:
            assert_close(midpoint.residual_TD, h_TD, 60)

    @pytest.mark.parametrize("wiring", WIRINGS)
    def test_norms_have_parameters_where_the_wiring_has_norms(self, wiring):
        block = Block(LAYERS["attention"], MLPS["dense"], wiring, "rms")
        params, _ = with_params(block)
        inputs, outputs = {"norm_1", "norm_2"}, {"norm_1_out", "norm_2_out"}
        expected = {
            "no_skip": set(),
            "skip": set(),
            "pre_norm": inputs,
            "post_norm": inputs,
            "parallel": {"norm_1"},
            "sandwich": inputs | outputs,
            "reordered_norm": outputs,
            "mixer": {"norm_1"},
        }
        assert {name for name in params if name.startswith("norm")} == expected[wiring]

    @pytest.mark.wide(8)
    @pytest.mark.parametrize("wiring", WIRINGS)
    def test_prefixes_and_suffixes_of_the_block_equal_separate_runs(self, wiring):
        _, call = with_params(Block(LAYERS["attention_rotary"], MLPS["dense"], wiring, "layer"))
        positions = jnp.arange(6, dtype=jnp.int32)
        context_ND, query_D = HIDDEN_TD[:-1], HIDDEN_TD[-1]
        probes_MD = jnp.tile(query_D, (6, 1))
        context, probes = call(context_ND, probes_MD, positions_M=positions, method="prefixes")
        assert_trees_close(context, call(context_ND, method="contextual"), 60)
        suffixes = call(context_ND, query_D, positions_T=positions, method="suffixes")
        for i in range(6):
            sequence_TD = jnp.concatenate([context_ND[:i], query_D[None]])
            alone = call(sequence_TD, method="contextual")
            assert_trees_close(row(probes, i), row(alone, -1), 60)
            alone = call(HIDDEN_TD[i:], positions_T=positions[i:], method="contextual")
            assert_trees_close(row(suffixes, i), row(alone, -1), 60)

    @pytest.mark.parametrize("wiring", WIRINGS)
    @pytest.mark.parametrize("norm", ("layer", "none"))
    def test_parts_hold_what_the_norm_reads(self, wiring, norm):
        block = Block(LAYERS["attention"], MLPS["dense"], wiring, norm)
        params, call = with_params(block)
        weights_ATT, passed_ATD, (mixed_TD, sum_TD) = call(HIDDEN_TD, method="parts")
        want_TD = jnp.einsum("atj,ajd->td", weights_ATT, passed_ATD)
        assert_close(mixed_TD, want_TD, 60)
        if wiring in ("sandwich", "reordered_norm"):
            want_TD = reference_norm(norm, params.get("norm_1_out"), np.asarray(want_TD))
        want_TD = want_TD if wiring in ("no_skip", "mixer") else HIDDEN_TD + want_TD
        assert_close(sum_TD, want_TD, 60)

    @pytest.mark.parametrize("wiring", WIRINGS)
    def test_a_change_of_the_sum_reaches_the_mlp_through_frozen_norms(self, wiring):
        block = Block(LAYERS["attention"], MLPS["dense"], wiring, "layer")
        params, call = with_params(block)
        changes_ND, mixed_D, residual_D = normal(5, 3, 8), normal(6, 8), normal(7, 8)
        got_ND = call(changes_ND, (mixed_D, residual_D), method="to_mlp_input")
        passes = {  # the norms on the way, and where each takes its denominator
            "pre_norm": (("norm_2", residual_D),),
            "post_norm": (("norm_1", residual_D),),
            "sandwich": (("norm_1_out", mixed_D), ("norm_2", residual_D)),
            "reordered_norm": (("norm_1_out", mixed_D),),
        }.get(wiring, ())
        want_ND = jnp.zeros_like(changes_ND) if wiring == "parallel" else changes_ND
        for name, reference_D in passes:
            centred_ND = want_ND - jnp.mean(want_ND, axis=-1, keepdims=True)
            deviation = jnp.sqrt(jnp.var(reference_D) + 1e-6)
            want_ND = centred_ND / deviation * params[name]["scale"][None]
        if passes:
            assert_close(got_ND, want_ND, 16, condition=4)
        else:
            np.testing.assert_array_equal(got_ND, want_ND)

    @pytest.mark.parametrize("wiring", WIRINGS)
    def test_a_change_of_the_sum_reaches_the_stream_where_it_is_added(self, wiring):
        block = Block(LAYERS["attention"], MLPS["dense"], wiring, "none")
        _, call = with_params(block)
        changes_ND, reference_D = normal(5, 3, 8), normal(6, 8)
        got_ND = call(changes_ND, (reference_D, reference_D), method="to_residual")
        adds = wiring not in ("no_skip", "mixer")
        np.testing.assert_array_equal(got_ND, changes_ND if adds else 0 * changes_ND)
        assert FlaxBlock(block).has_skip == adds

    def test_a_mixer_leads_back_from_another_width(self):
        wide = SelectiveStateSpace(num_heads=3, key_width=2, value_width=5)
        block = Block(wide, Dense(hidden_widths=(), width=WIDTH), "mixer", "rms")
        params, call = with_params(block)
        midpoint = call(HIDDEN_TD, method="contextual")
        down = params["mlp"]["down"]
        assert midpoint.mlp_input_TD.shape == (6, 15) and down["kernel"].shape == (15, WIDTH)
        want_TD = HIDDEN_TD + midpoint.mlp_input_TD @ down["kernel"] + down["bias"][None]
        assert_close(call(HIDDEN_TD), want_TD, 15)
        positions = jnp.arange(6, dtype=jnp.int32)
        context_ND, query_D = HIDDEN_TD[:-1], HIDDEN_TD[-1]
        suffixes = call(context_ND, query_D, positions_T=positions, method="suffixes")
        assert suffixes.mlp_input_TD.shape == (6, 15) and suffixes.residual_TD.shape == (6, 8)
        assert_trees_close(row(suffixes, 0), row(midpoint, -1), 60)

    def test_widths_that_do_not_fit_the_stream_are_refused(self):
        wide = SelectiveStateSpace(num_heads=3, value_width=5)
        wording = "the stream has width 8 and {} adds vectors of width 15 to it"
        with pytest.raises(ValueError, match=wording.format("SelectiveStateSpace")):
            with_params(Block(wide, MLPS["dense"], "pre_norm"))
        with pytest.raises(ValueError, match=wording.format("Dense")):
            with_params(Block(wide, MLPS["dense"], "mixer"))
        with pytest.raises(ValueError, match="Dense: width must be an integer of at least 1"):
            with_params(Block(wide, Dense(width=0), "mixer"))

    def test_only_a_sum_over_tokens_has_parts(self):
        _, call = with_params(Block(LAYERS["recurrent"], MLPS["dense"]))
        with pytest.raises(TypeError, match="Block.parts: GatedRecurrent is not a sum over heads"):
            call(HIDDEN_TD, method="parts")

    def test_unknown_names_are_refused(self):
        with pytest.raises(ValueError, match="Block: wiring must be one of 'no_skip', .* 'cross'"):
            with_params(Block(LAYERS["attention"], MLPS["dense"], "cross"))
        with pytest.raises(ValueError, match="Block: norm must be one of 'layer', 'layer_gain', "):
            with_params(Block(LAYERS["attention"], MLPS["dense"], "skip", "batch"))


def row(midpoint, index):
    return jax.tree.map(lambda array: array[index], midpoint)


class TestFeedforward:
    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_dense_equals_its_formula(self, activation):
        mlp = Dense(hidden_widths=(5, 7), activation=activation)
        params, call = with_params(mlp)
        act = {
            "relu": lambda x: np.maximum(x, 0),
            "gelu": lambda x: x * (1 + np.vectorize(jax.scipy.special.erf)(x / np.sqrt(2))) / 2,
            "gelu_tanh": lambda x: (
                x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
            ),
            "gelu_tanh_8": lambda x: x / 2 * (1 + np.tanh(0.79788456 * (x + 0.044715 * x**3))),
            "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
            "silu": lambda x: x / (1 + np.exp(-x)),
            "tanh": np.tanh,
            "identity": lambda x: x,
        }[activation]
        p = jax.tree.map(np.asarray, params)
        hidden = np.asarray(HIDDEN_TD)
        for name in ("layer_0", "layer_1"):
            hidden = act(hidden @ p[name]["kernel"] + p[name]["bias"])
        assert_close(call(HIDDEN_TD), hidden @ p["down"]["kernel"] + p["down"]["bias"], 60)

    @pytest.mark.parametrize("scale", (1.0, 0.3))
    def test_gated_equals_its_formula(self, scale):
        mlp = Gated(hidden_width=5, activation="silu", use_bias=False, scale=scale)
        params, call = with_params(mlp)
        p = jax.tree.map(np.asarray, params)
        assert all(set(leaves) == {"kernel"} for leaves in p.values())
        z = np.asarray(HIDDEN_TD)
        gate, up = z @ p["gate"]["kernel"], z @ p["up"]["kernel"]
        want = scale * (gate / (1 + np.exp(-gate)) * up) @ p["down"]["kernel"]
        assert_close(call(HIDDEN_TD), want, 60)

    def test_without_a_hidden_layer_it_is_linear(self):
        params, call = with_params(Dense(hidden_widths=()))
        want = HIDDEN_TD @ params["down"]["kernel"] + params["down"]["bias"][None]
        assert_close(call(HIDDEN_TD), want, 8)
        # What enters the last kernel is then the MLP's own input.
        np.testing.assert_array_equal(call(HIDDEN_TD, None, method="hidden"), HIDDEN_TD)

    @given(st.sampled_from(sorted(MLPS)))
    def test_a_factor_acts_like_another_input_row_by_row(self, name):
        _, call = with_params(MLPS[name])
        other_TD = normal(2, 6, 8)
        factor = jax.vmap(input_factor)(other_TD, HIDDEN_TD)
        hidden_TH = call(HIDDEN_TD, factor, method="hidden")
        got_TD = call(hidden_TH, HIDDEN_TD, factor, method="output")
        assert_close(got_TD, call(other_TD), 60, condition=10)
        nothing = InputFactor(factor.v_D, jnp.zeros_like(factor.delta_D))
        hidden_TH = call(HIDDEN_TD, nothing, method="hidden")
        assert_close(call(hidden_TH, HIDDEN_TD, nothing, method="output"), call(HIDDEN_TD), 60)

    def test_errors_name_the_module(self):
        with pytest.raises(ValueError, match="Dense: activation must be one of 'relu', .* 'sine'"):
            with_params(Dense(hidden_widths=(4,), activation="sine"))
        with pytest.raises(ValueError, match="Gated: activation must be one of"):
            with_params(Gated(hidden_width=4, activation="sine"))
        with pytest.raises(ValueError, match="Dense: hidden_widths must be an integer of at least"):
            with_params(Dense(hidden_widths=(4, 0)))
        with pytest.raises(ValueError, match="Gated: hidden_width must be an integer of at least"):
            with_params(Gated(hidden_width=0))
        with pytest.raises(TypeError, match="Feedforward must define hidden"):
            with_params(Feedforward())


class TestAffine:
    def test_the_input_decides_the_dtype(self):
        affine = Affine(5)
        params = random_params(affine, 0, jnp.zeros((2, 8), jnp.float32))
        assert params["kernel"].dtype == params["bias"].dtype == jnp.float32
        for dtype in ("bfloat16", "float32", "float64"):
            output = affine.apply({"params": params}, HIDDEN_TD.astype(dtype))
            assert output.dtype == dtype
            want = HIDDEN_TD.astype(dtype) @ params["kernel"].astype(dtype)
            want = want + params["bias"].astype(dtype)[None]
            assert_close(output, want, 8)

    def test_contracts_any_number_of_axes(self):
        inputs, kernel, bias = normal(0, 4, 3, 2), normal(1, 3, 2, 5), normal(2, 5)
        got = dense(inputs, kernel, bias, axes=2)
        assert_close(got, np.einsum("tab,abc->tc", inputs, kernel) + np.asarray(bias), 6)
        assert_close(dense(inputs[0, 0], kernel[0]), np.asarray(inputs[0, 0] @ kernel[0]), 6)

    def test_may_go_without_a_bias(self):
        params, _ = with_params(Affine(5, use_bias=False))
        assert set(params) == {"kernel"}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("wiring", WIRINGS)
@pytest.mark.parametrize("norm", ("layer", "none"))
def test_a_flax_block_says_what_it_is(layer, wiring, norm):
    block = FlaxBlock(Block(LAYERS[layer], MLPS["dense_bias"], wiring, norm))
    assert block.patches_input == (wiring != "parallel")
    # A layer norm on the output ends in a bias of its own; a norm there hides that of the MLP.
    normed_output = norm != "none" and wiring in ("sandwich", "reordered_norm")
    assert block.norms_output == normed_output
    assert block.has_output_bias
    without = FlaxBlock(Block(LAYERS[layer], MLPS["gated"], wiring, norm))
    assert without.has_output_bias == normed_output
    assert block.causal == ("bidirectional" not in layer)
    # Layers that are no sum over tokens have no weights that could add up to anything.
    is_sum = "attention" in layer or "linear" in layer
    assert block.normalised is (layer.startswith("attention") if is_sum else None)
    assert block.has_memory == block.causal
    reads_normed = wiring in ("pre_norm", "post_norm", "sandwich", "reordered_norm")
    assert block.has_norm == (norm != "none" and reads_normed)
    assert hash(block) == hash(FlaxBlock(Block(LAYERS[layer], MLPS["dense_bias"], wiring, norm)))

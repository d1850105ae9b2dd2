"""Each contextual layer against a slow NumPy reference, and what all of them share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from icl_jax.blocks.attention import Attention
from icl_jax.blocks.contextual import ContextualLayer
from icl_jax.blocks.linear_attention import LinearAttention
from icl_jax.blocks.recurrent import GatedRecurrent, StateSpace
from icl_jax.blocks.rotary import Rotary, rotate
from icl_jax.blocks.softmax_attention import SoftmaxAttention
from tests.helpers import (
    LAYERS,
    WIDTH,
    assert_close,
    compiled,
    normal,
    random_params,
)

HIDDEN_TD = normal(1, 6, WIDTH)


def with_params(layer, seed=0):
    """float64 parameters, and the layer as a function ``call(params, *args, **kwargs)``."""
    params = random_params(layer, seed, jnp.zeros((2, WIDTH), jnp.float32))
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)

    def call(*args, method=None, **kwargs):
        return layer.apply({"params": params}, *args, method=method, **kwargs)

    return params, call


def reference_attention(params, stream_TD, *, softmax, causal, positions_T=None, base=None):
    """Attention by loops over heads and positions."""
    p = {name: np.asarray(leaf) for name, leaf in params.items()}
    stream_TD = np.asarray(stream_TD)
    length, num_heads, features = len(stream_TD), *p["query"].shape[1:]
    output_TD = np.tile(p.get("out_bias", np.zeros(WIDTH)), (length, 1))
    for head in range(num_heads):
        query_TF, key_TF, value_TF = (
            stream_TD @ p[name][:, head] + (p[f"{name}_bias"][head] if "out_bias" in p else 0)
            for name in ("query", "key", "value")
        )
        if base is not None:
            query_TF, key_TF = (turned(x, positions_T, base) for x in (query_TF, key_TF))
        for t in range(length):
            seen = range(t + 1) if causal else range(length)
            scores = np.array([query_TF[t] @ key_TF[j] / np.sqrt(features) for j in seen])
            if softmax:
                scores = np.exp(scores - scores.max())
                scores = scores / scores.sum()
            mixed_F = sum(w * value_TF[j] for w, j in zip(scores, seen, strict=True))
            output_TD[t] += mixed_F @ p["out"][head]
    return output_TD


def turned(features_TF, positions_T, base):
    """Rotary embedding as a product of complex numbers: an independent way to write it."""
    half = features_TF.shape[1] // 2
    pairs = features_TF[:, :half] + 1j * features_TF[:, half:]
    rates = base ** (-np.arange(half) / half)
    pairs = pairs * np.exp(1j * np.asarray(positions_T)[:, None] * rates)
    return np.concatenate([pairs.real, pairs.imag], axis=1)


class TestAttention:
    @pytest.mark.parametrize("causal", (True, False))
    @pytest.mark.parametrize("use_bias", (True, False))
    @pytest.mark.parametrize("num_heads, head_width", ((1, None), (4, None), (2, 3)))
    @pytest.mark.parametrize("kind", (SoftmaxAttention, LinearAttention))
    def test_equals_loops_over_heads_and_positions(
        self, kind, num_heads, head_width, use_bias, causal
    ):
        layer = kind(num_heads=num_heads, head_width=head_width, use_bias=use_bias, causal=causal)
        params, call = with_params(layer)
        assert ("out_bias" in params) == use_bias
        softmax = kind is SoftmaxAttention
        want_TD = reference_attention(params, HIDDEN_TD, softmax=softmax, causal=causal)
        assert_close(call(HIDDEN_TD), want_TD, 50)

    @pytest.mark.parametrize("kind", (SoftmaxAttention, LinearAttention))
    def test_rotary_attention_equals_its_reference(self, kind):
        params, call = with_params(kind(num_heads=2, rotary=Rotary(30.0)))
        positions_T = jnp.array([0, 1, 5, 6, 20, 21])
        want_TD = reference_attention(
            params,
            HIDDEN_TD,
            softmax=kind is SoftmaxAttention,
            causal=True,
            positions_T=positions_T,
            base=30.0,
        )
        assert_close(call(HIDDEN_TD, positions_T=positions_T), want_TD, 50)

    def test_rotary_attention_sees_relative_positions_only(self):
        _, call = with_params(LAYERS["attention_rotary"])
        positions_T = jnp.array([0, 1, 5, 6, 20, 21])
        want_TD = call(HIDDEN_TD, positions_T=positions_T)
        assert_close(call(HIDDEN_TD, positions_T=positions_T + 100), want_TD, 50, condition=100)
        moved_TD = call(HIDDEN_TD, positions_T=positions_T.at[0].set(3))
        assert np.max(np.abs(moved_TD - want_TD)) > 1e-3
        np.testing.assert_array_equal(
            call(HIDDEN_TD), call(HIDDEN_TD, positions_T=jnp.arange(6, dtype=jnp.int32))
        )

    def test_without_rotary_the_order_of_the_context_does_not_matter(self):
        _, call = with_params(LAYERS["attention"])
        order = jnp.array([3, 0, 4, 1, 2, 5])
        assert_close(call(HIDDEN_TD[order])[-1], call(HIDDEN_TD)[-1], 50)

    @pytest.mark.parametrize("name", [name for name in LAYERS if "linear" in name or "att" in name])
    def test_parts_add_up_to_the_output(self, name):
        params, call = with_params(LAYERS[name])
        weights_ATT, passed_ATD = call(HIDDEN_TD, method="parts")
        got_TD = jnp.einsum("atj,ajd->td", weights_ATT, passed_ATD)
        if "out_bias" in params:
            got_TD = got_TD + params["out_bias"][None]
        assert_close(got_TD, call(HIDDEN_TD), 50)
        if isinstance(LAYERS[name], SoftmaxAttention):
            sums_AT = jnp.sum(weights_ATT, axis=-1)
            if LAYERS[name].has_sink:
                assert np.all(sums_AT < 0.99)
                sums_AT = sums_AT + call(HIDDEN_TD, method="sink_weights")
            assert_close(sums_AT, jnp.ones_like(sums_AT), 6)

    def test_huge_scores_stay_finite(self):
        _, call = with_params(LAYERS["attention"])
        output_TD = call(1e4 * HIDDEN_TD.astype(jnp.float32))
        assert np.all(np.isfinite(output_TD))

    def test_heads_that_do_not_divide_the_width_are_refused(self):
        with pytest.raises(ValueError, match="num_heads=3 does not divide the width 8. Choose a"):
            with_params(SoftmaxAttention(num_heads=3))
        with_params(SoftmaxAttention(num_heads=3, head_width=2))
        with pytest.raises(ValueError, match="LinearAttention: num_heads must be an integer"):
            with_params(LinearAttention(num_heads=0))

    def test_rotary_needs_an_even_head_width(self):
        with pytest.raises(ValueError, match="turn an even number of at most 3 features"):
            with_params(SoftmaxAttention(num_heads=2, head_width=3, rotary=Rotary(10.0)))

    def test_a_batch_is_sent_to_vmap(self):
        _, call = with_params(LAYERS["attention"])
        with pytest.raises(ValueError, match=r"SoftmaxAttention: stream_TD must have 2 axes"):
            call(HIDDEN_TD[None])

    def test_a_subclass_says_what_weighs(self):
        with pytest.raises(TypeError, match="Mute must define weigh"):

            class Mute(Attention):
                pass

            with_params(Mute())

    def test_rotation_keeps_lengths(self):
        features_TAF = normal(0, 5, 2, 6)
        turned_TAF = rotate(features_TAF, jnp.arange(5), Rotary(10.0))
        assert_close(
            jnp.linalg.norm(turned_TAF, axis=-1), jnp.linalg.norm(features_TAF, axis=-1), 6
        )


class TestStateSpace:
    @pytest.mark.parametrize("state_width", (None, 3))
    def test_equals_a_loop(self, state_width):
        params, call = with_params(StateSpace(state_width=state_width))
        p = {name: np.asarray(leaf) for name, leaf in params.items()}
        decay_S = 1 / (1 + np.exp(-p["decay_logit"]))
        state_S, rows = np.zeros_like(decay_S), []
        for token_D in np.asarray(HIDDEN_TD):
            state_S = decay_S * state_S + token_D @ p["in"]
            rows.append(state_S @ p["out"] + p["skip"] * token_D)
        assert_close(call(HIDDEN_TD), np.stack(rows), 30)

    def test_decays_start_between_a_half_and_the_slowest(self):
        layer = StateSpace(state_width=7, slowest=0.95)
        params = compiled(layer.init)(jax.random.key(0), HIDDEN_TD)["params"]
        decay_S = jax.nn.sigmoid(params["decay_logit"])
        np.testing.assert_allclose(decay_S[jnp.array([0, -1])], [0.5, 0.95], rtol=1e-5)
        assert np.all(np.diff(decay_S) > 0)

    @pytest.mark.parametrize("slowest", (0.3, 1.0, float("nan")))
    def test_a_slowest_decay_out_of_range_is_refused(self, slowest):
        with pytest.raises(ValueError, match=r"StateSpace: slowest must lie in \[0.5, 1\), got"):
            with_params(StateSpace(slowest=slowest))


class TestGatedRecurrent:
    @pytest.mark.parametrize("state_width", (None, 3))
    def test_equals_a_loop(self, state_width):
        params, call = with_params(GatedRecurrent(state_width=state_width))
        p = {name: np.asarray(leaf) for name, leaf in params.items()}
        states = p["out"].shape[0]
        reset, keep, new = (slice(i * states, (i + 1) * states) for i in range(3))

        def sigmoid(x):
            return 1 / (1 + np.exp(-x))

        state_S, rows = np.zeros(states), []
        for token_D in np.asarray(HIDDEN_TD):
            drive, recur = token_D @ p["in"] + p["bias"], state_S @ p["recurrent"]
            reset_S = sigmoid(drive[reset] + recur[reset])
            keep_S = sigmoid(drive[keep] + recur[keep])
            new_S = np.tanh(drive[new] + reset_S * recur[new])
            state_S = keep_S * state_S + (1 - keep_S) * new_S
            rows.append(state_S @ p["out"])
        assert_close(call(HIDDEN_TD), np.stack(rows), 60)

    def test_equals_the_cell_of_flax(self):
        params, call = with_params(GatedRecurrent())
        kernels = {
            name: (params["in"][:, i : i + 8], params["recurrent"][:, i : i + 8])
            for i, name in ((0, "r"), (8, "z"), (16, "n"))
        }
        biases = {name: params["bias"][i : i + 8] for i, name in ((0, "r"), (8, "z"), (16, "n"))}
        flax_params = {}
        for name, (into, recurrent) in kernels.items():
            flax_params[f"i{name}"] = {"kernel": into, "bias": biases[name]}
            flax_params[f"h{name}"] = {"kernel": recurrent}
        flax_params["hn"]["bias"] = jnp.zeros(8)
        cell = nn.GRUCell(8, param_dtype=jnp.float64, dtype=jnp.float64)
        state_S, rows = jnp.zeros(8), []
        for token_D in HIDDEN_TD:
            state_S, out_S = cell.apply({"params": flax_params}, state_S, token_D)
            rows.append(out_S @ params["out"])
        assert_close(call(HIDDEN_TD), jnp.stack(rows), 60)


@pytest.mark.parametrize("name", LAYERS)
class TestEveryLayer:
    @pytest.mark.wide(10)
    def test_absent_is_removed(self, name):
        _, call = with_params(LAYERS[name])
        present_T = jnp.array([True, False, True, True, False, True])
        there = jnp.array([0, 2, 3, 5])
        spoilt_TD = HIDDEN_TD.at[jnp.array([1, 4])].set(1e3)
        got_TD = call(spoilt_TD, present_T=present_T, positions_T=jnp.arange(6))[there]
        want_TD = call(HIDDEN_TD[there], positions_T=there)
        assert_close(got_TD, want_TD, 60)
        assert np.all(np.isfinite(call(spoilt_TD, present_T=present_T)))
        everything = call(HIDDEN_TD, present_T=jnp.ones(6, bool))
        assert_close(everything, call(HIDDEN_TD), 60)

    def test_a_causal_layer_reads_backwards_only(self, name):
        layer = LAYERS[name]
        _, call = with_params(layer)
        changed_TD = call(HIDDEN_TD.at[-1].add(1.0))[:-1]
        same = np.allclose(changed_TD, call(HIDDEN_TD)[:-1], rtol=1e-12, atol=0)
        assert same == layer.causal

    @pytest.mark.wide(6)
    def test_prefixes_equal_one_run_per_prefix(self, name):
        _, call = with_params(LAYERS[name])
        context_ND, probes_MD = HIDDEN_TD[:-1], normal(9, 6, WIDTH)
        positions_M = jnp.array([2, 3, 5, 8, 13, 21])
        got_ND, got_MD = call(context_ND, probes_MD, positions_M=positions_M, method="prefixes")
        assert_close(got_ND, call(context_ND, positions_T=positions_M[:-1]), 60)
        for i in range(6):
            sequence_TD = jnp.concatenate([context_ND[:i], probes_MD[i : i + 1]])
            want_D = call(sequence_TD, positions_T=positions_M[: i + 1])[-1]
            assert_close(got_MD[i], want_D, 60)

    @pytest.mark.wide(4)
    def test_suffixes_equal_one_run_per_suffix(self, name):
        _, call = with_params(LAYERS[name])
        positions_T = jnp.array([2, 3, 5, 8, 13, 21])
        got_MD = call(HIDDEN_TD[:-1], HIDDEN_TD[-1], positions_T=positions_T, method="suffixes")
        assert got_MD.shape == (6, WIDTH)
        for i in range(6):
            assert_close(got_MD[i], call(HIDDEN_TD[i:], positions_T=positions_T[i:])[-1], 60)

    @pytest.mark.wide(6)
    def test_the_defaults_of_the_base_class_agree(self, name):
        layer = LAYERS[name]
        _, call = with_params(layer)
        positions_M = jnp.array([2, 3, 5, 8, 13, 21])
        arguments = (HIDDEN_TD[:-1], normal(9, 6, WIDTH))
        own = call(*arguments, positions_M=positions_M, method="prefixes")
        default = call(*arguments, positions_M=positions_M, method=ContextualLayer.prefixes)
        for got, want in zip(own, default, strict=True):
            assert_close(got, want, 60)
        arguments = (HIDDEN_TD[:-1], HIDDEN_TD[-1])
        own = call(*arguments, positions_T=positions_M, method="suffixes")
        default = call(*arguments, positions_T=positions_M, method=ContextualLayer.suffixes)
        assert_close(own, default, 60)

    @pytest.mark.wide(6)
    def test_float32_parameters_compute_in_the_dtype_of_the_input(self, name):
        layer = LAYERS[name]
        params = random_params(layer, 0, jnp.zeros((2, WIDTH), jnp.float32))
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
        wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
        got_TD = layer.apply({"params": params}, HIDDEN_TD)
        assert_close(got_TD, layer.apply({"params": wide}, HIDDEN_TD), 60)
        for dtype in ("float32", "bfloat16"):
            narrow_TD = layer.apply({"params": params}, HIDDEN_TD.astype(dtype))
            # Both the input and each of the few products in a row are rounded.
            assert_close(narrow_TD, got_TD.astype(dtype), 1 if dtype == "bfloat16" else 60)

    def test_vmap_is_a_loop_and_jit_is_eager_and_neighbours_do_not_matter(self, name):
        _, call = with_params(LAYERS[name])
        stream_BTD = normal(2, 3, 6, WIDTH)
        batched = compiled(jax.vmap(call))
        got_BTD = batched(stream_BTD)
        for b in range(3):
            assert_close(got_BTD[b], call(stream_BTD[b]), 60)
        spoilt_BTD = batched(stream_BTD.at[1:].set(jnp.nan))
        np.testing.assert_array_equal(spoilt_BTD[0], got_BTD[0])

    @pytest.mark.wide(5)
    def test_one_token_alone(self, name):
        _, call = with_params(LAYERS[name])
        lone_1D = call(HIDDEN_TD[:1])
        got_ND, got_MD = call(
            HIDDEN_TD[:0], HIDDEN_TD[:1], positions_M=jnp.arange(1), method="prefixes"
        )
        assert got_ND.shape == (0, WIDTH)
        assert_close(got_MD, lone_1D, 60)
        suffix_MD = call(HIDDEN_TD[:0], HIDDEN_TD[0], positions_T=jnp.arange(1), method="suffixes")
        assert_close(suffix_MD, lone_1D, 60)


def test_the_base_class_asks_for_a_call():
    with pytest.raises(TypeError, match="ContextualLayer must define __call__"):
        ContextualLayer().init(jax.random.key(0), HIDDEN_TD)


@pytest.mark.parametrize("name", LAYERS)
def test_a_mask_of_numbers_is_refused_by_every_layer(name):
    _, call = with_params(LAYERS[name])
    for bad in (jnp.full(6, 2), jnp.ones(6)):
        with pytest.raises(TypeError, match="present_T must be a boolean mask, got dtype"):
            call(HIDDEN_TD, present_T=bad)

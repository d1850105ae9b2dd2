"""Each option of attention against loops in NumPy, and in every pass that shares work."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icl_jax.blocks.linear_attention import LinearAttention
from icl_jax.blocks.rotary import Rotary, Scaling
from icl_jax.blocks.softmax_attention import SoftmaxAttention
from tests.helpers import (
    WIDTH,
    assert_close,
    normal,
    random_params,
    relative_error,
    seeds,
)

HIDDEN_TD = normal(1, 6, WIDTH)
#: With gaps, so that a window counts ids and not tokens.
POSITIONS_T = jnp.array([2, 3, 5, 8, 9, 10])

OPTIONS = {
    "multi_query": dict(num_kv_heads=1),
    "grouped": dict(num_kv_heads=2, use_bias=True),
    "window": dict(window=3),
    "window_both_ways": dict(window=3, causal=False),
    "scale": dict(scale=0.9),
    "soft_cap": dict(soft_cap=0.7),
    "norm_of_each_head": dict(qk_norm="head", norm_epsilon=0.1),
    "norm_of_all_heads": dict(qk_norm="all", norm_epsilon=0.1),
    "norm_of_all_heads_grouped": dict(qk_norm="all", num_kv_heads=2, rotary=Rotary(50.0)),
    "layer_norm_of_each_head": dict(qk_norm="layer", head_width=4, norm_epsilon=0.1),
    "clip": dict(clip=0.6, use_bias=True),
    "value_scale": dict(value_scale=0.3, use_bias=True, out_bias=True),
    "temper": dict(temper=(0.5, 4), rotary=Rotary(50.0, interleaved=True)),
    "slopes": dict(slopes=(0.5, 0.25, 0.0, 0.1)),
    "sinks": dict(sinks=True),
    "sinks_in_a_window": dict(sinks=True, window=3, num_kv_heads=2, soft_cap=0.7),
    "output_gate": dict(output_gate=True, use_bias=True, num_kv_heads=2, rotary=Rotary(50.0)),
    "out_bias_alone": dict(out_bias=True),
    "no_out_bias": dict(use_bias=True, out_bias=False),
    "everything": dict(
        num_kv_heads=2,
        use_bias=True,
        out_bias=True,
        rotary=Rotary(50.0, features=2, scaling=Scaling("linear", 2.0)),
        window=4,
        scale=0.9,
        soft_cap=2.0,
        qk_norm="all",
        slopes=(0.5, 0.25, 0.0, 0.1),
        sinks=True,
    ),
}


@functools.cache
def with_params(layer, seed=0):
    """float64 parameters, and the layer's methods as functions."""
    params = random_params(layer, seed, jnp.zeros((2, WIDTH), jnp.float32))
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)

    def call(*args, method=None, **kwargs):
        return layer.apply({"params": params}, *args, method=method, **kwargs)

    return params, call


def layer_with(**options):
    return SoftmaxAttention(**{"num_heads": 4, **options})


def reference(layer, params, stream_TD, positions_T=None):
    """Attention with every option, by loops over heads, rows and columns."""
    p = {name: np.asarray(leaf) for name, leaf in params.items()}
    stream_TD = np.asarray(stream_TD)
    length = len(stream_TD)
    ids = np.arange(length) if positions_T is None else np.asarray(positions_T)
    groups, features = p["key"].shape[1:]

    def projected(name):
        heads_TAF = np.einsum("td,daf->taf", stream_TD, p[name])
        return heads_TAF + p[f"{name}_bias"] if layer.use_bias else heads_TAF

    query_TAF, key_TGF, value_TGF = (projected(name) for name in ("query", "key", "value"))
    if layer.clip is not None:
        query_TAF, key_TGF, value_TGF = (
            np.clip(x, -layer.clip, layer.clip) for x in (query_TAF, key_TGF, value_TGF)
        )
    value_TGF = value_TGF * layer.value_scale
    if layer.qk_norm != "none":
        axes = (1, 2) if layer.qk_norm == "all" else (2,)

        def normed(x, gain):
            if layer.qk_norm == "layer":
                x = x - np.mean(x, axis=2, keepdims=True)
            square = np.mean(x**2, axis=axes, keepdims=True)
            return x / np.sqrt(square + layer.norm_epsilon) * gain

        query_TAF, key_TGF = normed(query_TAF, p["query_norm"]), normed(key_TGF, p["key_norm"])
    if layer.rotary is not None:
        rotary = layer.rotary
        turning = features if rotary.features is None else rotary.features
        slower = 1.0 if rotary.scaling is None else rotary.scaling.factor

        def rotated(x_TF):
            half = turning // 2
            first, second = slice(half), slice(half, turning)
            if rotary.interleaved:
                first, second = slice(0, turning, 2), slice(1, turning, 2)
            pairs = x_TF[:, first] + 1j * x_TF[:, second]
            angles = ids[:, None] / slower * rotary.base ** (-np.arange(half) / half)
            pairs = pairs * np.exp(1j * angles)
            x_TF = x_TF.copy()
            x_TF[:, first], x_TF[:, second] = pairs.real, pairs.imag
            return x_TF

        query_TAF, key_TGF = (
            np.stack([rotated(x[:, a]) for a in range(x.shape[1])], axis=1)
            for x in (query_TAF, key_TGF)
        )
    if layer.temper is not None:
        beta, period = layer.temper
        query_TAF = query_TAF * (1 + beta * np.log(1 + ids // period))[:, None, None]
    scale = features**-0.5 if layer.scale is None else layer.scale
    output_TD = np.zeros_like(stream_TD)
    gate_TAF = np.ones_like(query_TAF)
    if layer.output_gate:
        gate_TAF = 1 / (1 + np.exp(-projected("gate")))
    for head in range(layer.num_heads):
        group = head // (layer.num_heads // groups)
        for t in range(length):
            seen = [
                j
                for j in range(length)
                if (j <= t or not layer.causal)
                and (layer.window is None or abs(ids[t] - ids[j]) < layer.window)
            ]
            weights = np.array([scale * query_TAF[t, head] @ key_TGF[j, group] for j in seen])
            if isinstance(layer, SoftmaxAttention):
                if layer.slopes is not None:
                    weights -= layer.slopes[head] * np.array([abs(ids[t] - ids[j]) for j in seen])
                if layer.soft_cap is not None:
                    weights = layer.soft_cap * np.tanh(weights / layer.soft_cap)
                sink = np.exp(p["sink"][head]) if layer.sinks else 0.0
                weights = np.exp(weights) / (np.sum(np.exp(weights)) + sink)
            mixed_F = sum(w * value_TGF[j, group] for w, j in zip(weights, seen, strict=True))
            output_TD[t] += (gate_TAF[t, head] * mixed_F) @ p["out"][head]
    return output_TD + p["out_bias"] if "out_bias" in p else output_TD


@pytest.mark.parametrize("name", OPTIONS)
class TestEveryOption:
    @pytest.mark.wide(6)
    @pytest.mark.parametrize("kind", (SoftmaxAttention, LinearAttention))
    def test_equals_loops_over_heads_rows_and_columns(self, name, kind):
        options = dict(OPTIONS[name])
        if kind is LinearAttention:
            for option in ("soft_cap", "slopes", "sinks"):
                options.pop(option, None)
        layer = kind(num_heads=4, **options)
        params, call = with_params(layer)
        for positions_T in (None, POSITIONS_T):
            want_TD = reference(layer, params, HIDDEN_TD, positions_T)
            assert_close(call(HIDDEN_TD, positions_T=positions_T), want_TD, 60)

    def test_matters(self, name):
        layer = layer_with(**OPTIONS[name])
        params, call = with_params(layer)
        got_TD = call(HIDDEN_TD, positions_T=POSITIONS_T)
        for option, value in OPTIONS[name].items():
            if option in ("num_kv_heads", "use_bias", "out_bias", "head_width"):
                continue  # These show in the shapes of the parameters.
            if option == "norm_epsilon":
                other = layer.clone(norm_epsilon=2 * value)
            elif option == "value_scale":
                other = layer.clone(value_scale=1.0)
            elif option == "causal":
                other = layer.clone(causal=True)
            elif option == "qk_norm":
                other = layer.clone(qk_norm="none")
            else:
                other = layer.clone(**{option: None})
            changed_TD = other.apply({"params": params}, HIDDEN_TD, positions_T=POSITIONS_T)
            assert relative_error(changed_TD, got_TD) > 1e-4, option

    @pytest.mark.wide(18)
    def test_prefixes_equal_one_run_per_prefix(self, name):
        layer = layer_with(**OPTIONS[name])
        _, call = with_params(layer)
        context_ND, probes_MD = HIDDEN_TD[:-1], normal(9, 6, WIDTH)
        got_ND, got_MD = call(context_ND, probes_MD, positions_M=POSITIONS_T, method="prefixes")
        assert_close(got_ND, call(context_ND, positions_T=POSITIONS_T[:-1]), 60)
        for i in (0, 2, 5):
            sequence_TD = jnp.concatenate([context_ND[:i], probes_MD[i : i + 1]])
            want_D = call(sequence_TD, positions_T=POSITIONS_T[: i + 1])[-1]
            assert_close(got_MD[i], want_D, 60)

    @pytest.mark.wide(4)
    def test_suffixes_equal_one_run_per_suffix(self, name):
        _, call = with_params(layer_with(**OPTIONS[name]))
        got_MD = call(HIDDEN_TD[:-1], HIDDEN_TD[-1], positions_T=POSITIONS_T, method="suffixes")
        for i in (0, 2, 5):
            assert_close(got_MD[i], call(HIDDEN_TD[i:], positions_T=POSITIONS_T[i:])[-1], 60)

    def test_parts_add_up_to_the_output(self, name):
        params, call = with_params(layer_with(**OPTIONS[name]))
        if name == "output_gate":
            with pytest.raises(TypeError, match="passes on depends on who reads it"):
                call(HIDDEN_TD, method="parts")
            return
        present_T = jnp.array([True, False, True, True, True, True])
        for present in (None, present_T):
            arguments = dict(positions_T=POSITIONS_T, present_T=present)
            weights_ATT, passed_ATD = call(HIDDEN_TD, method="parts", **arguments)
            assert weights_ATT.shape == (4, 6, 6) and passed_ATD.shape == (4, 6, WIDTH)
            got_TD = jnp.einsum("atj,ajd->td", weights_ATT, passed_ATD)
            if "out_bias" in params:
                got_TD = got_TD + params["out_bias"][None]
            assert_close(got_TD, call(HIDDEN_TD, **arguments), 60)

    def test_absent_is_removed(self, name):
        _, call = with_params(layer_with(**OPTIONS[name]))
        there = jnp.array([0, 2, 3, 5])
        present_T = jnp.zeros(6, bool).at[there].set(True)
        spoilt_TD = jnp.where(present_T[:, None], HIDDEN_TD, 1e3)
        got_TD = call(spoilt_TD, positions_T=POSITIONS_T, present_T=present_T)
        assert_close(got_TD[there], call(HIDDEN_TD[there], positions_T=POSITIONS_T[there]), 60)
        assert np.all(np.isfinite(got_TD))


class TestParameters:
    def test_there_is_a_slope_for_each_head(self):
        with pytest.raises(ValueError, match="slopes must have one .* num_heads=4 heads, got 2"):
            with_params(layer_with(slopes=(1.0, 0.5)))

    @pytest.mark.parametrize("num_kv_heads, groups", ((None, 4), (4, 4), (2, 2), (1, 1)))
    def test_keys_and_values_have_one_head_per_group(self, num_kv_heads, groups):
        params, _ = with_params(layer_with(num_kv_heads=num_kv_heads, use_bias=True, head_width=3))
        assert params["query"].shape == (8, 4, 3) and params["out"].shape == (4, 3, 8)
        assert params["query_bias"].shape == (4, 3)
        for name in ("key", "value"):
            assert params[name].shape == (8, groups, 3)
            assert params[f"{name}_bias"].shape == (groups, 3)

    @pytest.mark.parametrize("use_bias", (False, True))
    @pytest.mark.parametrize("out_bias", (None, False, True))
    def test_the_output_has_a_bias_where_the_others_have_unless_told(self, use_bias, out_bias):
        params, _ = with_params(layer_with(use_bias=use_bias, out_bias=out_bias))
        assert ("out_bias" in params) == (use_bias if out_bias is None else out_bias)
        for name in ("query", "key", "value"):
            assert (f"{name}_bias" in params) == use_bias

    @pytest.mark.parametrize(
        "qk_norm, shapes",
        (
            ("none", None),
            ("head", ((2,), (2,))),
            ("all", ((4, 2), (2, 2))),
            ("layer", ((4, 2), (2, 2))),
        ),
    )
    def test_query_and_key_norms_have_gains(self, qk_norm, shapes):
        params, _ = with_params(layer_with(num_kv_heads=2, qk_norm=qk_norm))
        names = ("query_norm", "key_norm")
        if shapes is None:
            assert not set(names) & set(params)
        else:
            assert tuple(params[name].shape for name in names) == shapes
        fresh = layer_with(qk_norm=qk_norm).init(jax.random.key(0), HIDDEN_TD)["params"]
        assert all(np.all(fresh[name] == 1) for name in names if name in fresh)


class TestProperties:
    @given(st.sampled_from((1, 2)), seeds())
    def test_grouped_heads_are_heads_with_repeated_keys_and_values(self, groups, seed):
        params, call = with_params(layer_with(num_kv_heads=groups, use_bias=True), seed)
        wide = dict(params)
        for name in ("key", "value"):
            wide[name] = jnp.repeat(params[name], 4 // groups, axis=1)
            wide[f"{name}_bias"] = jnp.repeat(params[f"{name}_bias"], 4 // groups, axis=0)
        want_TD = layer_with(use_bias=True).apply({"params": wide}, HIDDEN_TD)
        assert_close(call(HIDDEN_TD), want_TD, 60)

    @given(st.integers(1, 7), seeds())
    def test_a_token_outside_the_window_is_not_read(self, window, seed):
        _, call = with_params(layer_with(window=window), seed)
        want_TD, changed_TD = call(HIDDEN_TD), call(HIDDEN_TD.at[0].add(1.0))
        reads = np.any(np.asarray(want_TD != changed_TD), axis=1)
        np.testing.assert_array_equal(reads, np.arange(6) < window)

    def test_a_window_of_one_reads_nothing_but_oneself(self):
        _, call = with_params(layer_with(window=1))
        alone_TD = jnp.concatenate([call(HIDDEN_TD[t : t + 1]) for t in range(6)])
        assert_close(call(HIDDEN_TD), alone_TD, 30)

    def test_a_window_as_long_as_the_sequence_is_none(self):
        params, call = with_params(layer_with(window=6))
        want_TD = layer_with().apply({"params": params}, HIDDEN_TD)
        np.testing.assert_array_equal(call(HIDDEN_TD), want_TD)

    def test_normed_queries_and_keys_ignore_lengths(self):
        for qk_norm in ("head", "all"):
            layer = layer_with(qk_norm=qk_norm, norm_epsilon=0.0)
            params, call = with_params(layer)
            longer = {**params, "query": 100 * params["query"], "key": 0.01 * params["key"]}
            got_TD = layer.apply({"params": longer}, HIDDEN_TD)
            assert_close(got_TD, call(HIDDEN_TD), 60)

    def test_a_small_cap_weighs_all_alike(self):
        params, call = with_params(layer_with(soft_cap=1e-12))
        uniform = {**params, "query": jnp.zeros_like(params["query"])}
        want_TD = layer_with().apply({"params": uniform}, HIDDEN_TD)
        # Scores within 1e-12 of zero give weights that near to each other.
        assert_close(call(HIDDEN_TD), want_TD, 60, condition=1e4)


class TestErrors:
    def test_groups_have_to_divide_the_heads(self):
        with pytest.raises(ValueError, match="num_kv_heads=3 does not divide num_heads=4"):
            with_params(layer_with(num_kv_heads=3))
        with pytest.raises(ValueError, match="num_kv_heads=8 does not divide num_heads=4"):
            with_params(layer_with(num_kv_heads=8))

    def test_an_unknown_norm_is_refused(self):
        wording = "SoftmaxAttention: qk_norm must be one of 'none', 'head', 'all', 'layer', got 'b'"
        with pytest.raises(ValueError, match=wording):
            with_params(layer_with(qk_norm="b"))

    @pytest.mark.parametrize("window", (0, -1, 2.5))
    def test_a_window_holds_at_least_the_token_itself(self, window):
        wording = f"SoftmaxAttention: window must be an integer of at least 1, got {window}"
        with pytest.raises(ValueError, match=wording):
            with_params(layer_with(window=window))

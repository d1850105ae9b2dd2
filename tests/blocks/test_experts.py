"""A mixture of experts against a loop over tokens, and the patches that go through it."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icl_jax.blocks.experts import Experts
from icl_jax.patches.low_rank import as_matrix
from icl_jax.patches.output import down_patch, down_update
from icl_jax.patches.token import InputFactor, input_factor, kernel_update
from tests.helpers import (
    WIDTH,
    assert_close,
    compiled,
    normal,
    random_params,
    relative_error,
    seeds,
)

INPUT_TD = normal(1, 6, WIDTH)

EXPERTS = {
    "plain": Experts(num_experts=4, experts_per_token=2, hidden_width=5),
    "raw_gates": Experts(num_experts=4, experts_per_token=2, hidden_width=5, renormalise=False),
    "one_of_many": Experts(num_experts=5, experts_per_token=1, hidden_width=3, activation="gelu"),
    "one_raw": Experts(num_experts=5, experts_per_token=1, hidden_width=3, renormalise=False),
    "all": Experts(num_experts=3, experts_per_token=3, hidden_width=4, activation="relu"),
    "shared": Experts(num_experts=4, experts_per_token=2, hidden_width=5, shared_width=3),
    "shared_raw": Experts(
        num_experts=4, experts_per_token=3, hidden_width=5, shared_width=7, renormalise=False
    ),
    "biased": Experts(num_experts=4, experts_per_token=2, hidden_width=5, use_bias=True),
    "limited": Experts(
        num_experts=4,
        experts_per_token=2,
        hidden_width=5,
        activation="quick_gelu",
        use_bias=True,
        limit=0.5,
        up_offset=1.0,
    ),
}


@functools.cache
def with_params(module, seed=0):
    """float64 parameters, and the module's methods as functions."""
    params = random_params(module, seed, jnp.zeros((2, WIDTH), jnp.float32))
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)

    @functools.partial(compiled, static_argnames="method")
    def apply(params, *args, method):
        return module.apply({"params": params}, *args, method=method)

    def call(*args, method=None, params=params):
        return apply(params, *args, method=method)

    return params, call


def activation(name, x):
    if name == "silu":
        return x / (1 + np.exp(-x))
    if name == "relu":
        return np.maximum(x, 0)
    if name == "quick_gelu":
        return x / (1 + np.exp(-1.702 * x))
    return x * (1 + np.vectorize(math.erf)(x / np.sqrt(2))) / 2


def reference_token(experts, params, z_D):
    """The chosen experts of one token, their gates, all hidden activations and the output."""
    p = {name: np.asarray(leaf) for name, leaf in params.items()}

    def affine(name, expert=...):
        bias = p[f"{name}_bias"][expert] if experts.use_bias else 0.0
        return z_D @ p[name][expert] + bias

    logits_E = affine("router")
    softmax_E = np.exp(logits_E) / np.sum(np.exp(logits_E))
    chosen = sorted(range(experts.num_experts), key=lambda e: -softmax_E[e])
    chosen = chosen[: experts.experts_per_token]
    gates = np.array([softmax_E[e] for e in chosen])
    if experts.renormalise:
        gates = gates / gates.sum()
    hidden, output_D = [], np.zeros(WIDTH)
    for expert, gate in zip(chosen, gates, strict=True):
        into, up = affine("gate", expert), affine("up", expert)
        if experts.limit is not None:
            into, up = np.minimum(into, experts.limit), np.clip(up, -experts.limit, experts.limit)
        hidden.append(gate * activation(experts.activation, into) * (up + experts.up_offset))
        output_D = output_D + hidden[-1] @ p["down"][expert]
        if experts.use_bias:
            output_D = output_D + gate * p["down_bias"][expert]
    if experts.shared_width is not None:
        weight = 1 / (1 + np.exp(-(z_D @ p["shared_router"])))
        into = activation(experts.activation, z_D @ p["shared_gate"])
        hidden.append(weight * into * (z_D @ p["shared_up"]))
        output_D = output_D + hidden[-1] @ p["shared_down"]
    return chosen, gates, np.concatenate(hidden), output_D


def side_by_side(experts, params, chosen_k):
    """The down kernels (k F + S, D) that one token's hidden activations meet."""
    kernels = [params["down"][expert] for expert in chosen_k]
    if experts.shared_width is not None:
        kernels.append(params["shared_down"])
    return np.concatenate(kernels)


class TestEqualsALoopOverTokens:
    @pytest.mark.wide(3)
    @pytest.mark.parametrize("name", EXPERTS)
    def test_choice_gates_hidden_and_output(self, name):
        experts = EXPERTS[name]
        params, call = with_params(experts)
        rows = [reference_token(experts, params, z_D) for z_D in np.asarray(INPUT_TD)]
        chosen, gates, hidden, outputs = (np.stack(column) for column in zip(*rows, strict=True))
        chosen_Tk, gates_Tk = call(INPUT_TD, method="route")
        np.testing.assert_array_equal(chosen_Tk, chosen)
        assert chosen_Tk.dtype == jnp.int32
        assert_close(gates_Tk, gates, 16)
        assert_close(call(INPUT_TD, None, method="hidden"), hidden, 60)
        assert_close(call(INPUT_TD), outputs, 60)

    def test_every_expert_is_chosen_by_some_token(self):
        # Otherwise the loop above would have tested less than it says.
        for name in ("plain", "shared", "one_of_many"):
            _, call = with_params(EXPERTS[name])
            chosen_Tk, _ = call(normal(1, 64, WIDTH), method="route")
            assert set(np.unique(chosen_Tk)) == set(range(EXPERTS[name].num_experts))

    @given(st.sampled_from(sorted(EXPERTS)), seeds())
    def test_gates_fall_and_add_up(self, name, seed):
        _, call = with_params(EXPERTS[name])
        chosen_Tk, gates_Tk = call(normal(seed, 6, WIDTH), method="route")
        assert np.all(np.diff(gates_Tk, axis=-1) <= 0)
        assert all(len(set(row)) == len(row) for row in np.asarray(chosen_Tk).tolist())
        sums_T = jnp.sum(gates_Tk, axis=-1)
        if EXPERTS[name].renormalise:
            assert_close(sums_T, jnp.ones_like(sums_T), 4)
        else:
            assert np.all(sums_T < 1)

    def test_options_change_the_output(self):
        params, call = with_params(EXPERTS["plain"])
        want_TD = call(INPUT_TD)
        for option in (dict(renormalise=False), dict(experts_per_token=1), dict(activation="tanh")):
            other_TD = EXPERTS["plain"].clone(**option).apply({"params": params}, INPUT_TD)
            assert relative_error(other_TD, want_TD) > 1e-2
        params, call = with_params(EXPERTS["shared"])
        silent = {**params, "shared_down": jnp.zeros_like(params["shared_down"])}
        assert relative_error(call(INPUT_TD, params=silent), call(INPUT_TD)) > 1e-2

    def test_a_token_that_is_not_sent_to_an_expert_does_not_depend_on_it(self):
        params, call = with_params(EXPERTS["plain"])
        chosen_Tk, _ = call(INPUT_TD, method="route")
        spoilt = {name: params[name].at[0].set(1e3) for name in ("gate", "up", "down")}
        changed_T = np.any(call(INPUT_TD, params={**params, **spoilt}) != call(INPUT_TD), axis=1)
        np.testing.assert_array_equal(changed_T, np.any(chosen_Tk == 0, axis=1))
        assert 0 < changed_T.sum() < 6

    def test_gates_of_low_precision_are_computed_in_float32(self):
        params, _ = with_params(EXPERTS["shared"])
        _, gates_Tk = EXPERTS["shared"].apply(
            {"params": params}, INPUT_TD.astype("bfloat16"), method="route"
        )
        assert gates_Tk.dtype == jnp.float32

    def test_float32_parameters_compute_in_the_dtype_of_the_input(self):
        experts = EXPERTS["shared"]
        params = random_params(experts, 0, jnp.zeros((2, WIDTH), jnp.float32))
        _, call = with_params(experts)
        want_TD = call(INPUT_TD)
        assert_close(experts.apply({"params": params}, INPUT_TD), want_TD, 60)
        narrow_TD = experts.apply({"params": params}, INPUT_TD.astype("float32"))
        assert_close(narrow_TD, want_TD.astype("float32"), 60)

    def test_vmap_is_a_loop_and_jit_is_eager(self):
        params, _ = with_params(EXPERTS["shared"])
        eager = functools.partial(EXPERTS["shared"].apply, {"params": params})
        input_BTD = normal(2, 3, 6, WIDTH)
        got_BTD = compiled(jax.vmap(eager))(input_BTD)
        assert_close(got_BTD, jnp.stack([eager(input_TD) for input_TD in input_BTD]), 60)


class TestInputFactor:
    @given(st.sampled_from(sorted(EXPERTS)), seeds())
    def test_the_patched_router_chooses_what_it_chose_with_the_context(self, name, seed):
        _, call = with_params(EXPERTS[name])
        full_TD, kept_TD = normal(seed, 6, WIDTH), normal(seed + 1, 6, WIDTH)
        factor = jax.vmap(input_factor)(full_TD, kept_TD)
        want_Tk, want_gates_Tk = call(full_TD, method="route")
        hidden_TH = call(kept_TD, factor, method="hidden")
        assert_close(hidden_TH, call(full_TD, None, method="hidden"), 60, condition=10)
        got_TD = call(hidden_TH, kept_TD, factor, method="output")
        assert_close(got_TD, call(full_TD), 60, condition=10)

        # The same with the matrix: the router itself, patched for one token.
        params, _ = with_params(EXPERTS[name])
        one = jax.tree.map(lambda rows: rows[0], factor)
        router_DE = params["router"] + as_matrix(kernel_update(one, params["router"]))
        patched = {**params, "router": router_DE}
        got_1k, gates_1k = call(kept_TD[:1], method="route", params=patched)
        np.testing.assert_array_equal(got_1k, want_Tk[:1])
        assert_close(gates_1k, want_gates_Tk[:1], 16, condition=10)

    def test_without_the_factor_other_experts_are_chosen(self):
        _, call = with_params(EXPERTS["plain"])
        full_TD, kept_TD = normal(0, 6, WIDTH), normal(1, 6, WIDTH)
        chosen = [call(z, method="route")[0] for z in (full_TD, kept_TD)]
        assert np.any(chosen[0] != chosen[1])

    def test_both_halves_need_it(self):
        _, call = with_params(EXPERTS["plain"])
        full_TD, kept_TD = normal(0, 6, WIDTH), normal(1, 6, WIDTH)
        factor = jax.vmap(input_factor)(full_TD, kept_TD)
        hidden_TH = call(kept_TD, factor, method="hidden")
        # The down kernels of the experts that the kept token would go to are the wrong ones.
        wrong_TD = call(hidden_TH, kept_TD, None, method="output")
        assert relative_error(wrong_TD, call(full_TD)) > 1e-2
        nothing = InputFactor(factor.v_D, jnp.zeros_like(factor.delta_D))
        same_TH = call(kept_TD, nothing, method="hidden")
        np.testing.assert_array_equal(same_TH, call(kept_TD, None, method="hidden"))


class TestDownPatch:
    @given(st.sampled_from(sorted(EXPERTS)), seeds())
    def test_is_exact_and_of_least_norm_on_the_kernels_side_by_side(self, name, seed):
        experts = EXPERTS[name]
        params, call = with_params(experts)
        token_1D, change_D = normal(seed, 1, WIDTH), normal(seed + 1, WIDTH)
        chosen_1k, gates_1k = map(np.asarray, call(token_1D, method="route"))
        hidden_H = call(token_1D, None, method="hidden")[0]
        update_HD = np.asarray(as_matrix(down_update(down_patch(hidden_H, change_D))))
        kernel_HD = side_by_side(experts, params, chosen_1k[0])
        # What the down kernels' biases add, by gate, stays as it is.
        biases_D = np.zeros(WIDTH)
        if experts.use_bias:
            biases_D = gates_1k[0] @ np.asarray(params["down_bias"])[chosen_1k[0]]
        hidden_H = np.asarray(hidden_H)
        assert_close(hidden_H @ kernel_HD + biases_D, np.asarray(call(token_1D)[0]), 60)
        got_D = hidden_H @ (kernel_HD + update_HD) + biases_D
        # The update is as long as the change is in units of the hidden activations.
        condition = 1 + np.linalg.norm(update_HD) / np.linalg.norm(kernel_HD)
        assert_close(got_D, np.asarray(call(token_1D)[0] + change_D), 60, condition=condition)

        least_HD = np.linalg.pinv(hidden_H[None]) @ np.asarray(change_D)[None]
        assert_close(update_HD, least_HD, 60)

    @pytest.mark.parametrize("name", ("plain", "shared", "shared_raw"))
    def test_each_expert_takes_its_share(self, name):
        """``g_e outer(a_e, r) / sum_f g_f^2 |a_f|^2``, written into each expert's own kernel."""
        experts = EXPERTS[name]
        params, call = with_params(experts)
        token_D, change_D = np.asarray(INPUT_TD[0]), np.asarray(normal(5, WIDTH))
        chosen, _, hidden_H, output_D = reference_token(experts, params, token_D)
        patched = dict(params)
        width = experts.hidden_width
        for rank, expert in enumerate(chosen):
            share_F = hidden_H[rank * width : (rank + 1) * width] / np.sum(hidden_H**2)
            patched["down"] = patched["down"].at[expert].add(np.outer(share_F, change_D))
        if experts.shared_width is not None:
            share_S = hidden_H[len(chosen) * width :] / np.sum(hidden_H**2)
            patched["shared_down"] = params["shared_down"] + np.outer(share_S, change_D)
        got_D = call(INPUT_TD[:1], params=patched)[0]
        assert_close(got_D, output_D + change_D, 60, condition=10)
        want_HD = side_by_side(experts, patched, chosen) - side_by_side(experts, params, chosen)
        got_HD = as_matrix(down_update(down_patch(jnp.asarray(hidden_H), jnp.asarray(change_D))))
        assert_close(np.asarray(got_HD), want_HD, 60, condition=10)


class TestErrors:
    @pytest.mark.parametrize("field", ("num_experts", "experts_per_token", "hidden_width"))
    def test_numbers_are_positive(self, field):
        with pytest.raises(ValueError, match=f"Experts: {field} must be an integer of at least 1"):
            with_params(EXPERTS["plain"].clone(**{field: 0}))

    def test_a_token_cannot_have_more_experts_than_there_are(self):
        wording = "Experts: experts_per_token=5 is more than num_experts=4"
        with pytest.raises(ValueError, match=wording):
            with_params(EXPERTS["plain"].clone(experts_per_token=5))

    def test_a_limit_is_a_number_above_zero(self):
        with pytest.raises(ValueError, match="Experts: limit must be a finite number above 0"):
            with_params(EXPERTS["limited"].clone(limit=0.0))

    def test_an_unknown_activation_is_refused(self):
        with pytest.raises(ValueError, match="Experts: activation must be one of 'relu', .*'sine'"):
            with_params(EXPERTS["plain"].clone(activation="sine"))

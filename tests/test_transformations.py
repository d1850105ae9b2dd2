"""Under ``shard_map`` and ``jax.debug_nans`` functions say what they say without them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from icl_jax.descent.linear_steps import descent_prediction, gd_plus_plus, gradient_steps
from icl_jax.dynamics.anchored import anchored_trajectory
from icl_jax.dynamics.peel_off import peel_off_trajectory
from icl_jax.measures.distributions import kl_divergence
from icl_jax.measures.function_space import implicit_linear_weights
from icl_jax.measures.representation import kendall_tau
from icl_jax.measures.subspaces import (
    effective_rank_of_updates,
    leading_angles,
    principal_angles,
)
from icl_jax.oracles.closed_form import least_squares, ridge
from icl_jax.patches.carry import varying_like
from icl_jax.patches.low_rank import LowRank, frobenius_norm, singular_values
from icl_jax.patches.vectors import nan_unless
from tests.helpers import assert_trees_close, normal


def _mesh():
    return jax.make_mesh((4,), ("tasks",), (AxisType.Explicit,), devices=jax.devices()[:4])


#: By name: a function of one task, and what it takes: (shape, ...), a leading axis for the tasks.
FUNCTIONS = {
    "gradient_steps": (
        functools.partial(gradient_steps, num_steps=3, rate=0.1),
        ((6, 3), (6,)),
    ),
    "descent_prediction": (
        functools.partial(descent_prediction, num_steps=3, rate=0.1),
        ((6, 3), (6,), (3,)),
    ),
    "gd_plus_plus": (
        functools.partial(gd_plus_plus, num_steps=3, rate=0.1, correction=0.05),
        ((6, 3), (6,), (3,)),
    ),
    "least_squares": (least_squares, ((6, 3), (6,), (3,))),
    "ridge": (ridge, ((6, 3), (6,), (3,))),
    "principal_angles": (principal_angles, ((2, 5), (3, 5))),
    "effective_rank_of_updates": (
        lambda left, right: effective_rank_of_updates(LowRank(left, right)),
        ((4, 1, 5), (4, 1, 6)),
    ),
    "leading_angles": (
        lambda left, right, other: leading_angles(LowRank(left, right), other, 2),
        ((4, 1, 5), (4, 1, 6), (3, 5, 6)),
    ),
    "implicit_linear_weights": (implicit_linear_weights, ((7, 3), (7,))),
    "kendall_tau": (kendall_tau, ((9,), (9,))),
    "kl_divergence": (kl_divergence, ((9,), (9,))),
    "frobenius_norm": (lambda left, right: frobenius_norm(LowRank(left, right)), ((3, 5), (3, 6))),
    "singular_values": (
        lambda left, right: singular_values(LowRank(left, right)),
        ((3, 5), (3, 6)),
    ),
    "anchored_trajectory": (anchored_trajectory, ((5, 4), (4, 6))),
    "peel_off_trajectory": (peel_off_trajectory, ((5, 4), (4, 6))),
}


def _inputs(name, batch=8):
    return [normal(20 + i, batch, *shape) for i, shape in enumerate(FUNCTIONS[name][1])]


@pytest.mark.wide(9)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_task_per_device_is_a_task_per_call(name):
    function, inputs = FUNCTIONS[name][0], _inputs(name)
    mesh = _mesh()
    placed = [jax.device_put(array, jax.NamedSharding(mesh, P("tasks"))) for array in inputs]
    with jax.set_mesh(mesh):
        share = jax.shard_map(jax.vmap(function), in_specs=P("tasks"), out_specs=P("tasks"))
        got = jax.jit(share)(*placed)
    assert_trees_close(jax.device_get(got), jax.device_get(jax.vmap(function)(*inputs)), 60)


@pytest.mark.wide(9)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_good_inputs_do_not_stop_the_search_for_nans(name):
    function, inputs = FUNCTIONS[name][0], [array[0] for array in _inputs(name, 1)]
    want = function(*inputs)
    with jax.debug_nans(True):
        got, compiled = function(*inputs), jax.jit(function)(*inputs)
    assert_trees_close(got, want, 60)
    assert_trees_close(compiled, want, 60)


def test_prompts_without_examples_do_not_stop_the_search_for_nans():
    inputs_ND, targets_N, query_D = normal(0, 5, 3), normal(1, 5), normal(2, 3)
    with jax.debug_nans(True):
        for count in (0, 1, 5):
            present_N = jnp.arange(5) < count
            for oracle in (least_squares, ridge):
                oracle(inputs_ND, targets_N, query_D, present_N=present_N).block_until_ready()


def test_what_has_no_answer_stops_it():
    nothing = jnp.zeros((2, 5)).at[:, 0].set(1.0)
    assert np.all(np.isnan(principal_angles(nothing, nothing)))
    with jax.debug_nans(True), pytest.raises(FloatingPointError):
        principal_angles(nothing, nothing)


def test_a_value_is_kept_bit_for_bit_or_is_nan():
    values = jnp.array([1e300, 5e-300, -0.0, jnp.inf, 3.0])
    got = nan_unless(jnp.array([True, True, True, True, False]), values)
    assert got[:4].tobytes() == values[:4].tobytes() and np.isnan(got[4])
    assert jax.grad(lambda x: nan_unless(x > 0, x))(2.0) == 1.0


def test_a_carry_is_marked_inside_a_map_and_left_alone_outside():
    start = {"state": jnp.zeros(3)}
    assert varying_like(start, jnp.ones(2))["state"] is start["state"]
    mesh = _mesh()

    def total(rows):
        start = varying_like(jnp.zeros(()), {"rows": rows})
        return jax.lax.fori_loop(0, 2, lambda i, sum: sum + rows[i], start)[None]

    with jax.set_mesh(mesh):
        rows = jax.device_put(jnp.arange(8.0), jax.NamedSharding(mesh, P("tasks")))
        got = jax.jit(jax.shard_map(total, in_specs=P("tasks"), out_specs=P("tasks")))(rows)
    np.testing.assert_array_equal(got, [1.0, 5.0, 9.0, 13.0])

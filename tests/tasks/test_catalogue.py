"""Tasks by name, and what holds for every one of them."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.tasks.catalogue import TASKS, make_task
from icl_jax.tasks.linear import LinearRegression
from icl_jax.tasks.networks import TwoLayerNetwork
from icl_jax.tasks.sparse import SparseLinearRegression
from icl_jax.tasks.tabular import Diabetes
from icl_jax.tasks.trees import DecisionTree

KEY = jax.random.key(0)
TRACED = []


@functools.partial(
    jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0}
)
def _jitted(task, key):
    TRACED.append(task)
    return task.sample(key, num_examples=4, dtype=jnp.float64)


def test_a_name_gives_the_task_at_its_usual_settings():
    assert make_task("linear", 2, noise_std=0.5) == LinearRegression(2, noise_std=0.5)
    assert make_task("sparse", 20) == SparseLinearRegression(20, num_nonzero=3)
    assert make_task("sparse", 2, noise_std=1) == SparseLinearRegression(2, 1, noise_std=1)
    assert make_task("network", 3, noise_std=0.5) == TwoLayerNetwork(3, 100, noise_std=0.5)
    assert make_task("tree", 4, noise_std=0.5) == DecisionTree(4, depth=4, noise_std=0.5)
    assert make_task("diabetes", 2, split="test") == Diabetes(2, split="test")


@pytest.mark.wide(3)
@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_a_static_value_that_jit_traces_once_and_each_key_draws_anew(name):
    TRACED.clear()
    first, second = (_jitted(make_task(name, 3), jax.random.key(seed)) for seed in (0, 1))
    assert TRACED == [make_task(name, 3)]
    eager = make_task(name, 3).sample(jax.random.key(0), num_examples=4, dtype=jnp.float64)
    chex.assert_trees_all_close(first, eager, rtol=1e-13, atol=1e-13)
    # Another key, another prompt, in every part of it.
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert not np.array_equal(one, other)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_a_prompt_has_the_shapes_and_the_dtype_asked_for(name, dtype):
    task = make_task(name, 3)
    prompt = jax.eval_shape(lambda key: task.sample(key, num_examples=4, dtype=dtype), KEY)
    assert task.input_width == 3
    assert [leaf.shape for leaf in jax.tree.leaves(prompt)] == [(4, 3), (4,), (3,), ()]
    assert {leaf.dtype for leaf in jax.tree.leaves(prompt)} == {jnp.dtype(dtype)}


@pytest.mark.parametrize("name", TASKS)
def test_bad_requests_are_refused(name):
    task = make_task(name, 3)
    with pytest.raises(ValueError, match=r"sample: num_examples must be an integer .*got 0"):
        task.sample(KEY, num_examples=0)
    with pytest.raises(TypeError, match=r"sample: dtype must be floating point, got int32"):
        task.sample(KEY, num_examples=1, dtype=jnp.int32)
    with pytest.raises(ValueError, match=r"input_width must be an integer of at least 1, got 0"):
        make_task(name, 0)


@pytest.mark.parametrize("name", TASKS)
def test_noise_must_be_a_finite_number(name):
    with pytest.raises(ValueError, match=r"noise_std must be .*got -1"):
        make_task(name, 3, noise_std=-1.0)


def test_an_unknown_name_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'linear', 'sparse', .*'diabetes', got 'quadratic'"):
        make_task("quadratic", 2)
    with pytest.raises(ValueError, match=r"split must be one of 'train', 'test', got 'valid'"):
        make_task("linear", 2, split="valid")

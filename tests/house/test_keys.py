"""Whoever draws and is given no key says so, by the name of the argument."""

import inspect

import jax
import jax.numpy as jnp
import optax
import pytest

import icl_jax
from icl_jax import (
    LowRank,
    Sampling,
    SoftmaxAttention,
    check_layer,
    compare_with_nulls,
    fleet,
    make_task,
    random_orders,
    random_update,
    shuffled_labels,
)
from tests.language.test_doors import MODEL, PARAMS, TOKENS

UPDATE = LowRank(jnp.ones((1, 3)), jnp.ones((1, 2)))
VALUES = jnp.linspace(0.0, 1.0, 4)
DRAWN = Sampling(1.0)


def zeros(key):
    return jnp.zeros(2)


def loss(params, key):
    return jnp.sum(params**2), {}


#: Name -> the arguments beside the key.
ARGUMENTS = {
    "sample_prompts": lambda key: icl_jax.sample_prompts(
        make_task("linear", input_width=2), key, num_prompts=2, num_examples=3
    ),
    "check_layer": lambda key: check_layer(SoftmaxAttention(num_heads=2), length=4, key=key),
    "generate": lambda key: icl_jax.generate(MODEL, PARAMS, TOKENS, 2, sampling=DRAWN, key=key),
    "observed_generate": lambda key: icl_jax.observed_generate(
        MODEL, PARAMS, TOKENS, 2, sampling=DRAWN, key=key
    ),
    "patched_generate": lambda key: icl_jax.patched_generate(
        MODEL, PARAMS, TOKENS, [2, 11], 2, sampling=DRAWN, key=key
    ),
    "self_study": lambda key: icl_jax.self_study(MODEL, PARAMS, [5, 6], [[]], 2, key),
    "fleet": lambda key: fleet(
        lambda task, rate, one: task * rate + jax.random.normal(one), VALUES, VALUES, key
    ),
    "new_adapters": lambda key: icl_jax.new_adapters(
        key, {"up": {"kernel": jnp.ones((4, 6))}}, ("up",), 2
    ),
    "bootstrap_mean": lambda key: icl_jax.bootstrap_mean(key, VALUES),
    "compare_with_nulls": lambda key: compare_with_nulls(
        key, VALUES, {"random": VALUES}, larger_is_closer=True
    ),
    "random_orders": lambda key: random_orders(key, 2, 3),
    "random_update": lambda key: random_update(key, UPDATE),
    "random_vector": lambda key: icl_jax.random_vector(key, VALUES),
    "shapley_values": lambda key: icl_jax.shapley_values(
        key, icl_jax.all_orders(2), jnp.array([[0.0, 1.0, 3.0], [0.0, 2.0, 3.0]])
    ),
    "shuffled_labels": lambda key: shuffled_labels(key, VALUES),
    "train": lambda key: icl_jax.train(zeros, loss, optax.sgd(0.1), key, num_steps=1),
}


def test_no_public_function_that_draws_is_left_out():
    found = {
        name
        for name in icl_jax.__all__
        if inspect.isfunction(function := getattr(icl_jax, name))
        and {"key", "keys_S"} & set(inspect.signature(function).parameters)
    }
    assert found == set(ARGUMENTS)


@pytest.mark.parametrize("name", sorted(ARGUMENTS))
def test_what_is_no_key_is_refused_by_name(name):
    argument = "keys_S" if name == "fleet" else "key"
    for bad in (7, "seed", jnp.zeros(2), jax.random.split(jax.random.key(0), (2, 2))):
        with pytest.raises(TypeError, match=f"{name}: {argument} must be .*PRNG key.*jax.random"):
            ARGUMENTS[name](bad)


@pytest.mark.parametrize("name", ["random_update", "shuffled_labels", "compare_with_nulls"])
def test_a_typed_key_and_its_bits_draw_the_same(name):
    typed = jax.random.key(3)
    found = [ARGUMENTS[name](key) for key in (typed, jax.random.key_data(typed))]
    assert all(jax.tree.leaves(jax.tree.map(jnp.array_equal, *found)))


def test_seeds_may_be_typed_keys_or_their_bits():
    typed = jax.random.split(jax.random.key(3), 2)
    found = [ARGUMENTS["fleet"](keys) for keys in (typed, jax.random.key_data(typed))]
    assert jnp.array_equal(*found) and found[0].shape == (4, 4, 2)

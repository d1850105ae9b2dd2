"""The prompt record, its token format, and batches of prompts."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.tasks.linear import LinearRegression
from icl_jax.tasks.prompt import (
    Prompt,
    example_queries,
    noisy_prompt,
    prompt_tokens,
    query_token,
    sample_prompts,
)


def _prompt(dtype=jnp.float64):
    return Prompt(
        jnp.array([[1, 2], [3, 4], [5, 6]], dtype),
        jnp.array([7, 8, 9], dtype),
        jnp.array([10, 11], dtype),
        jnp.array(12, dtype),
    )


def test_tokens_are_the_labelled_examples_and_then_the_query_with_a_zero():
    expected = [[1, 2, 7], [3, 4, 8], [5, 6, 9], [10, 11, 0]]
    np.testing.assert_array_equal(prompt_tokens(_prompt()), np.array(expected, np.float64))


def test_the_query_token_is_the_last_prompt_token():
    np.testing.assert_array_equal(query_token(_prompt()), prompt_tokens(_prompt())[-1])


def test_example_queries_hide_every_label():
    expected = np.array([[1, 2, 0], [3, 4, 0], [5, 6, 0]], np.float64)
    np.testing.assert_array_equal(example_queries(_prompt()), expected)


def test_no_token_contains_the_querys_target():
    other = Prompt(*jax.tree.leaves(_prompt())[:3], query_target=jnp.array(-1.0))
    np.testing.assert_array_equal(prompt_tokens(other), prompt_tokens(_prompt()))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_tokens_keep_the_dtype_of_the_prompt(dtype):
    for make in (prompt_tokens, query_token, example_queries):
        assert make(_prompt(dtype)).dtype == dtype


def test_the_last_point_is_the_query_and_only_examples_get_noise():
    inputs_TD = np.random.default_rng(0).normal(size=(4001, 2))
    values_T = np.arange(4001.0)
    prompt = noisy_prompt(jax.random.key(1), inputs_TD, values_T, noise_std=0.5)
    noise_N = prompt.targets_N - values_T[:-1]
    np.testing.assert_array_equal(prompt.query_D, inputs_TD[-1])
    np.testing.assert_array_equal(prompt.inputs_ND, inputs_TD[:-1])
    assert prompt.query_target == 4000.0
    # The mean of 4000 draws deviates by 0.5 / sqrt(4000), their deviation by that over sqrt(2).
    assert abs(float(noise_N.mean())) < 4 * 0.5 / 4000**0.5
    assert abs(float(noise_N.std()) - 0.5) < 4 * 0.5 / 8000**0.5


def test_a_batch_is_one_prompt_per_key(draw):
    task = LinearRegression(2, noise_std=0.5)
    batch = draw(task, seed=3, num_prompts=4, num_examples=8)
    sample = jax.jit(
        lambda key: task.sample(key, num_examples=8, dtype=jnp.float64),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    alone = [jax.device_get(sample(key)) for key in jax.random.split(jax.random.key(3), 4)]
    chex.assert_shape(batch.inputs_ND, (4, 8, 2))
    chex.assert_trees_all_close(batch, jax.tree.map(lambda *p: np.stack(p), *alone), rtol=1e-14)


def test_prompts_of_a_batch_differ_in_their_function_as_well_as_in_their_inputs(draw):
    batch = draw(LinearRegression(2), num_prompts=4, num_examples=8)
    weights_BD = np.stack(
        [
            np.linalg.lstsq(inputs, targets, rcond=None)[0]
            for inputs, targets in zip(batch.inputs_ND, batch.targets_N, strict=True)
        ]
    )
    for table in (weights_BD, batch.query_D, batch.inputs_ND[:, 0]):
        assert len(np.unique(table[:, 0])) == 4


def test_a_batch_of_prompts_is_refused_where_one_is_meant():
    batch = jax.tree.map(lambda leaf: leaf[None], _prompt())
    with pytest.raises(ValueError, match=r"prompt_tokens: inputs_ND must have 2 axes .*jax.vmap"):
        prompt_tokens(batch)
    assert jax.vmap(prompt_tokens)(batch).shape == (1, 4, 3)
    with pytest.raises(ValueError, match=r"query_token: query_D must have 1 axes"):
        query_token(batch)
    with pytest.raises(ValueError, match=r"example_queries: inputs_ND must have 2 axes"):
        example_queries(batch)


def test_arrays_that_disagree_are_named():
    inputs_ND, targets_N, query_D, query_target = jax.tree.leaves(_prompt())
    with pytest.raises(ValueError, match=r"axis 0 of targets_N must have 3 entries"):
        prompt_tokens(Prompt(inputs_ND, targets_N[:2], query_D, query_target))
    with pytest.raises(ValueError, match=r"axis 0 of query_D must have 2 entries"):
        prompt_tokens(Prompt(inputs_ND, targets_N, query_D[:1], query_target))
    with pytest.raises(TypeError, match=r"must share one dtype, got .*targets_N: float32"):
        prompt_tokens(Prompt(inputs_ND, targets_N.astype(jnp.float32), query_D, query_target))


def test_the_number_of_prompts_is_checked():
    with pytest.raises(ValueError, match=r"sample_prompts: num_prompts must be an integer .*got 0"):
        sample_prompts(LinearRegression(2), jax.random.key(0), num_prompts=0, num_examples=2)

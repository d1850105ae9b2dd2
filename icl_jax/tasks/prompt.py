"""One in-context regression problem, and the tokens that a model reads.

Here ``D`` is the width of an input ``x`` and ``C = D + 1`` that of a token ``(x, y)``; ``N`` counts
the labelled examples and ``T = N + 1`` adds the query.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from icl_jax import checks
from icl_jax.dims import Array
from icl_jax.sharding import constrain


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Prompt:
    """Labelled examples of an unknown function, and a query. Batches have a leading B axis.

    Attributes:
      inputs_ND: (N, D), the inputs of the examples.
      targets_N: (N,), their labels, with the task's noise.
      query_D: (D,), the input whose label is asked for.
      query_target: (), what a prediction is scored against: the function's value, without noise
        (real data know only noisy ones).

    Examples:
      >>> task = make_task("linear", input_width=2)
      >>> prompts = sample_prompts(task, jax.random.key(0), num_prompts=3, num_examples=5)
      >>> first = jax.tree.map(lambda leaf: leaf[0], prompts)
      >>> first.inputs_ND.shape, first.targets_N.shape, prompt_tokens(first).shape
      ((5, 2), (5,), (6, 3))
    """

    inputs_ND: Array
    targets_N: Array
    query_D: Array
    query_target: Array


class Task(Protocol):
    """A distribution over prompts. Implementations are frozen dataclasses: hashable, so static.

    Examples:
      >>> from dataclasses import dataclass
      >>> @dataclass(frozen=True)
      ... class Sums:  # a task of your own
      ...     input_width: int
      ...     def sample(self, key, *, num_examples, dtype=jnp.float32):
      ...         inputs = jax.random.normal(key, (num_examples + 1, self.input_width), dtype)
      ...         targets = inputs.sum(1)
      ...         return Prompt(inputs[:-1], targets[:-1], inputs[-1], targets[-1])
      >>> prompts = sample_prompts(Sums(2), jax.random.key(0), num_prompts=3, num_examples=5)
      >>> prompts.inputs_ND.shape, prompts.query_target.shape
      ((3, 5, 2), (3,))
    """

    @property
    def input_width(self) -> int:
        """The width D of an input."""
        ...

    def sample(self, key: Array, *, num_examples: int, dtype: Any = jnp.float32) -> Prompt:
        """Draws one problem of ``num_examples`` examples; all arrays have the dtype ``dtype``."""
        ...


def prompt_tokens(prompt: Prompt) -> Array:
    """The tokens ``(x_1, y_1), ..., (x_N, y_N), (x_query, 0)``: (N + 1, D + 1).

    Raises:
      ValueError: the prompt is a batch, or its shapes disagree.
      TypeError: its dtypes disagree.

    Examples:
      >>> from icl_jax.tasks.prompt import Prompt
      >>> inputs, targets = jnp.array([[1.0], [2.0]]), jnp.array([5.0, 6.0])
      >>> prompt = Prompt(inputs, targets, jnp.array([3.0]), jnp.array(7.0))
      >>> prompt_tokens(prompt).tolist()
      [[1.0, 5.0], [2.0, 6.0], [3.0, 0.0]]

    Source: Garg et al. 2022 (arXiv 2208.01066), in the one-token-per-example format of Dherin et
    al. 2025 (arXiv 2507.16003), section 4.
    """
    _check("prompt_tokens", prompt)
    examples_NC = jnp.concatenate([prompt.inputs_ND, prompt.targets_N[:, None]], axis=1)
    return jnp.concatenate([examples_NC, query_token(prompt)[None, :]])


def query_token(prompt: Prompt) -> Array:
    """The last token alone, ``(x_query, 0)``: (D + 1,), what the model sees without context.

    Examples:
      >>> inputs, targets = jnp.array([[1.0], [2.0]]), jnp.array([5.0, 6.0])
      >>> query_token(Prompt(inputs, targets, jnp.array([3.0]), jnp.array(7.0))).tolist()
      [3.0, 0.0]
    """
    checks.rank("query_token", "query_D", prompt.query_D, 1, "(D)")
    return jnp.append(prompt.query_D, jnp.zeros((), prompt.query_D.dtype))


def example_queries(prompt: Prompt) -> Array:
    """Every example as a query without its label, ``(x_i, 0)``: (N, D + 1).

    With ``targets_N`` these are the training pairs of a gradient descent on the same examples
    (Dherin et al. 2025, section 4.3).

    Examples:
      >>> inputs, targets = jnp.array([[1.0], [2.0]]), jnp.array([5.0, 6.0])
      >>> example_queries(Prompt(inputs, targets, jnp.array([3.0]), jnp.array(7.0))).tolist()
      [[1.0, 0.0], [2.0, 0.0]]
    """
    checks.rank("example_queries", "inputs_ND", prompt.inputs_ND, 2, "(N, D)")
    return jnp.pad(prompt.inputs_ND, ((0, 0), (0, 1)))


@jax.named_scope("tasks")
def sample_prompts(
    task: Task, key: Array, *, num_prompts: int, num_examples: int, dtype: Any = jnp.float32
) -> Prompt:
    """Draws ``num_prompts`` independent problems of one task.

    Everything but ``key`` is static: ``jax.jit`` it with ``static_argnames``.

    Args:
      task: what to draw from.
      key: a PRNG key; prompt ``i`` uses the ``i``-th key of ``jax.random.split``.
      num_prompts: B.
      num_examples: N, of each prompt.
      dtype: of every array.

    Returns:
      A ``Prompt`` whose arrays have a leading axis B; divided over the mesh that is set, if any.

    Examples:
      >>> task = make_task("linear", input_width=3)
      >>> prompts = sample_prompts(task, jax.random.key(0), num_prompts=4, num_examples=10)
      >>> prompts.inputs_ND.shape, prompts.targets_N.shape, prompts.query_D.shape
      ((4, 10, 3), (4, 10), (4, 3))
    """
    checks.positive_int("sample_prompts", "num_prompts", num_prompts)
    checks.prng_key("sample_prompts", "key", key)
    prompts = jax.vmap(lambda one: task.sample(one, num_examples=num_examples, dtype=dtype))(
        jax.random.split(key, num_prompts)
    )
    return constrain(prompts, leading="B")


def check_sample(where: str, num_examples: int, dtype: Any) -> None:
    """Raises unless ``num_examples`` is a positive integer and ``dtype`` is floating point."""
    checks.positive_int(where, "num_examples", num_examples)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"{where}: dtype must be floating point, got {jnp.dtype(dtype)}. Use jnp.float32."
        )


def noisy_prompt(key: Array, inputs_TD: Array, values_T: Array, noise_std: float) -> Prompt:
    """A prompt of ``T`` points of a function: the last one is the query, the others get noise.

    Args:
      key: for the noise.
      inputs_TD: (T, D), the inputs.
      values_T: (T,), the function's values there.
      noise_std: standard deviation of the Gaussian noise on the examples' labels. The query's
        target stays clean: a perfect learner has loss zero, whatever the noise.
    """
    noise_N = noise_std * jax.random.normal(key, values_T[:-1].shape, values_T.dtype)
    return Prompt(inputs_TD[:-1], values_T[:-1] + noise_N, inputs_TD[-1], values_T[-1])


def _check(where: str, prompt: Prompt) -> None:
    checks.rank(where, "inputs_ND", prompt.inputs_ND, 2, "(N, D)")
    checks.rank(where, "targets_N", prompt.targets_N, 1, "(N)")
    checks.rank(where, "query_D", prompt.query_D, 1, "(D)")
    num_examples, width = prompt.inputs_ND.shape
    checks.axis_size(where, "targets_N", prompt.targets_N, 0, num_examples, "one per example")
    checks.axis_size(where, "query_D", prompt.query_D, 0, width, "the width of an input")
    checks.same_dtype(
        where, inputs_ND=prompt.inputs_ND, targets_N=prompt.targets_N, query_D=prompt.query_D
    )

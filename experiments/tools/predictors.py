"""Two predictors of a query's label as functions of the query, prompt by prompt, with the nulls."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from experiments.tools.comparisons import Measured, with_nulls
from icl_jax.dims import Array
from icl_jax.measures.function_space import (
    ilwd,
    implicit_linear_weights,
    prediction_difference,
    relative_model_difference,
    sensitivity,
    sensitivity_cosine,
    squared_prediction_difference,
)
from icl_jax.measures.nulls import another_prompts, random_vector, shuffled_labels
from icl_jax.tasks.prompt import Prompt

#: The query's label from a prompt, ().
Predictor = Callable[[Prompt], Array]

#: What ``against`` and ``over_queries`` measure.
AGAINST = ("prediction_difference", "sensitivity_cosine", "model_difference")
OVER_QUERIES = ("squared_prediction_difference", "ilwd")
#: What the nulls of ``against`` are, for a caption.
THE_NULLS = (
    "Nulls: the learner before training; the reference on shuffled labels; a random vector of the "
    "same length in place of the reference's sensitivity; the reference on another task."
)


def predict_and_differentiate(predict: Predictor, prompt: Prompt) -> tuple[Array, Array]:
    """The prediction, (), and its derivative with respect to the query's input, (D,)."""

    def of_query(query_D: Array) -> Array:
        return predict(dataclasses.replace(prompt, query_D=query_D))

    return of_query(prompt.query_D), sensitivity(of_query, prompt.query_D)


def against(
    reference: Predictor, trained: Predictor, untrained: Predictor, prompts: Prompt, key: Array
) -> dict[str, Measured]:
    """The measures of von Oswald et al. for a learner and a reference, (B,) each, and the nulls.

    The random null predicts what a linear function with its random sensitivity predicts.
    """

    def sides(prompt: Prompt, key: Array) -> dict[str, tuple[Array, Array]]:
        shuffle_key, random_key = jax.random.split(key)
        confused = dataclasses.replace(
            prompt, targets_N=shuffled_labels(shuffle_key, prompt.targets_N)
        )
        found = {
            "trained": predict_and_differentiate(trained, prompt),
            "untrained": predict_and_differentiate(untrained, prompt),
            "reference": predict_and_differentiate(reference, prompt),
            "shuffled": predict_and_differentiate(reference, confused),
        }
        random_D = random_vector(random_key, found["reference"][1])
        predicted = jnp.vdot(random_D, prompt.query_D, precision=jax.lax.Precision.HIGHEST)
        return found | {"random": (predicted, random_D)}

    found = jax.vmap(sides)(prompts, jax.random.split(key, prompts.query_target.shape[0]))
    measure = jax.vmap(_measures)
    nulls = {
        "untrained": measure(found["untrained"], found["reference"]),
        "shuffled": measure(found["trained"], found["shuffled"]),
        "random": measure(found["trained"], found["random"]),
        "another": measure(found["trained"], another_prompts(found["reference"])),
    }
    return with_nulls(measure(found["trained"], found["reference"]), nulls)


def over_queries(
    reference: Predictor,
    trained: Predictor,
    untrained: Predictor,
    prompts: Prompt,
    key: Array,
    *,
    num_queries: int,
) -> dict[str, Measured]:
    """SPD and ILWD of Akyurek et al. for a learner and a reference, (B,) each, and the nulls.

    Both are asked about the same fresh queries, which are standard normal; ILWD compares the linear
    functions nearest to their answers. The random null answers with a random one of the same
    length.
    """

    def ask(predict: Predictor, prompt: Prompt, queries_QD: Array) -> Array:
        return jax.vmap(lambda query_D: predict(dataclasses.replace(prompt, query_D=query_D)))(
            queries_QD
        )

    def sides(prompt: Prompt, another: Prompt, key: Array) -> dict[str, dict[str, Array]]:
        query_key, shuffle_key, random_key = jax.random.split(key, 3)
        shape = (num_queries, prompt.query_D.shape[0])
        queries_QD = jax.random.normal(query_key, shape, prompt.query_D.dtype)
        confused = dataclasses.replace(
            prompt, targets_N=shuffled_labels(shuffle_key, prompt.targets_N)
        )

        def side(predict: Predictor, prompt: Prompt) -> tuple[Array, Array]:
            answers_Q = ask(predict, prompt, queries_QD)
            return answers_Q, implicit_linear_weights(queries_QD, answers_Q)

        learner, right = side(trained, prompt), side(reference, prompt)
        random_D = random_vector(random_key, right[1])
        random_Q = jnp.matmul(queries_QD, random_D, precision=jax.lax.Precision.HIGHEST)
        pairs = {
            "": (learner, right),
            "untrained": (side(untrained, prompt), right),
            "shuffled": (learner, side(reference, confused)),
            "random": (learner, (random_Q, random_D)),
            "another": (learner, side(reference, another)),
        }
        return {
            name: {
                "squared_prediction_difference": squared_prediction_difference(mine[0], theirs[0]),
                "ilwd": ilwd(mine[1], theirs[1]),
            }
            for name, (mine, theirs) in pairs.items()
        }

    keys = jax.random.split(key, prompts.query_target.shape[0])
    found = jax.vmap(sides)(prompts, another_prompts(prompts), keys)
    return with_nulls(found.pop(""), found)


def _measures(first: tuple[Array, Array], second: tuple[Array, Array]) -> dict[str, Array]:
    (first_prediction, first_D), (second_prediction, second_D) = first, second
    return {
        "prediction_difference": prediction_difference(
            first_prediction[None], second_prediction[None]
        ),
        "sensitivity_cosine": sensitivity_cosine(first_D, second_D),
        "model_difference": relative_model_difference(first_D, second_D),
    }

"""What one would fit to the examples of a prompt instead: the baseline of each function class.

Garg et al. 2022 (arXiv 2208.01066), section 5, hold their learners against the method that suits
the class: Lasso for sparse functions, a greedy tree for trees, and for two-layer networks another
one, fitted by gradient descent.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.tools.conduct import each
from icl_jax.descent.finetune import descend
from icl_jax.dims import Array, Params
from icl_jax.tasks.catalogue import TaskName
from icl_jax.tasks.prompt import Prompt

#: The penalties of the Lasso, of which every number of examples has the best on average.
PENALTIES = (0.01, 0.03, 0.1, 0.3)
HIDDEN = 100


def lasso_losses(prompts: Prompt) -> np.ndarray:
    """Query losses (B, M) of the Lasso, at the penalty that is best at each number of examples.

    Chosen on the test prompts themselves, in the baseline's favour.
    """
    from sklearn.linear_model import Lasso

    def lasso(penalty: float) -> Callable[[], Any]:
        return functools.partial(Lasso, alpha=penalty, fit_intercept=False, max_iter=20_000)

    losses = [_refitted(prompts, lasso(penalty), "Lasso") for penalty in PENALTIES]
    best_M = np.argmin([array.mean(axis=0) for array in losses], axis=0)
    return np.stack([losses[best][:, shot] for shot, best in enumerate(best_M)], axis=1)


def greedy_tree_losses(prompts: Prompt) -> np.ndarray:
    """Query losses (B, M) of a tree that is grown split by split until its leaves are pure."""
    from sklearn.tree import DecisionTreeRegressor

    return _refitted(prompts, functools.partial(DecisionTreeRegressor, random_state=0), "trees")


def _refitted(prompts: Prompt, make: Callable[[], Any], what: str) -> np.ndarray:
    """A scikit-learn regressor, fitted anew to every prefix of every prompt; zero before any."""
    inputs_BND, targets_BN, query_BD, answers_B = (
        np.asarray(leaf, np.float64)
        for leaf in (prompts.inputs_ND, prompts.targets_N, prompts.query_D, prompts.query_target)
    )
    predictions_BM = np.zeros((len(answers_B), targets_BN.shape[1] + 1))
    for shot in each(range(1, predictions_BM.shape[1]), what):
        for index in range(len(answers_B)):
            fitted = make().fit(inputs_BND[index, :shot], targets_BN[index, :shot])
            predictions_BM[index, shot] = fitted.predict(query_BD[index, None])[0]
    return np.asarray((predictions_BM - answers_B[:, None]) ** 2, np.float32)


@functools.partial(jax.jit, static_argnames="num_steps")
def network_losses(prompts: Prompt, *, num_steps: int = 500) -> Array:
    """Query losses (B, M) of a two-layer ReLU network, fitted to every prefix by Adam."""
    count, width = prompts.inputs_ND.shape[1:]
    dtype = prompts.inputs_ND.dtype
    first = jax.random.normal(jax.random.key(0), (width, HIDDEN), dtype) * (2 / width) ** 0.5
    # A second layer of zeros: a network that has seen nothing says nothing.
    start = {"first": first, "bias": jnp.zeros(HIDDEN, dtype), "second": jnp.zeros(HIDDEN, dtype)}

    def predict(params: Params, inputs_XD: Array) -> Array:
        highest = jax.lax.Precision.HIGHEST
        into_XH = jnp.matmul(inputs_XD, params["first"], precision=highest)
        hidden_XH = jax.nn.relu(into_XH + params["bias"][None])
        return jnp.matmul(hidden_XH, params["second"], precision=highest)

    def fit(prompt: Prompt, shot: Array) -> Array:
        shown_N = (jnp.arange(count, dtype=shot.dtype) < shot).astype(dtype)

        def loss(params: Params) -> Array:
            errors_N = predict(params, prompt.inputs_ND) - prompt.targets_N
            return jnp.sum(shown_N * errors_N**2) / jnp.maximum(jnp.sum(shown_N), 1.0)

        done = descend(
            loss, start, optax.adam(5e-3), num_steps=num_steps, record=lambda params: ()
        ).final
        return (predict(done, prompt.query_D[None])[0] - prompt.query_target) ** 2

    shots_M = jnp.arange(count + 1, dtype=jnp.int32)
    every_shot = jax.vmap(fit, in_axes=(None, 0))
    return jax.lax.map(lambda prompt: every_shot(prompt, shots_M), prompts, batch_size=16)


#: Function class -> what a report calls its baseline, and its losses.
OWN: Mapping[TaskName, tuple[str, Callable[[Prompt], Any]]] = {
    "sparse": ("Lasso, best penalty", lasso_losses),
    "network": ("fitted network", network_losses),
    "tree": ("greedy tree", greedy_tree_losses),
}

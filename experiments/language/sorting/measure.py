"""Every step of the model on a few inputs, and the weights that each token's context amounts to."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.language.sorting.model import LENGTH, sequences
from icl_jax.blocks.functional import functional
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.dims import Array, Params
from icl_jax.language.attribution import attribute
from icl_jax.language.observed import observe
from icl_jax.language.prompt import prompt_patches
from icl_jax.language.walk import Walk, walk_through
from icl_jax.patches.bank import Bank
from icl_jax.patches.low_rank import frobenius_norm
from icl_jax.patches.token import kernel_update

#: The first kernel of the MLP, in the model's parameters.
KERNEL = "layer_0"


@dataclass(frozen=True)
class Steps:
    """The forward pass of N inputs; see ``icl_jax.language.walk``.

    Attributes:
      letter: (N, T, D), the embedding of the letter alone.
      position: (T, D), that of the position.
      residual, read, mixed, joined, mlp_input, mlp_output, output: (N, L, T, D).
      query, key, value, heads: (N, L, T, A, F).
      scores, weights: (N, L, A, T, T).
      hidden: (N, L, T, H).
      final: (N, T, D).
      logits, probability: (N, T, V).
    """

    letter: np.ndarray
    position: np.ndarray
    residual: np.ndarray
    read: np.ndarray
    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    scores: np.ndarray
    weights: np.ndarray
    heads: np.ndarray
    mixed: np.ndarray
    joined: np.ndarray
    mlp_input: np.ndarray
    hidden: np.ndarray
    mlp_output: np.ndarray
    output: np.ndarray
    final: np.ndarray
    logits: np.ndarray
    probability: np.ndarray


@dataclass(frozen=True)
class Changes:
    """What the tokens before each token amount to; zero at the first, which has none before it.

    Attributes:
      v: (N, T, L, D), the left vector of ``dW = outer(v, right)``.
      right: (N, T, L, H), ``delta W``, its right vector.
      bias: (N, T, L, D), the change of the output bias.
      relative: (N, T, L), ``|dW|_F / |W|_F``.
      shares: (N, T, L, A, T), who wrote ``dW``.
      remainder: (N, T, L), the norm's share of it.
      bias_shares: (N, T, L, A, T), who wrote the change of the bias.
      patched, alone: (N, T, L, D), the block's output for the token alone, with the changed weights
        and with the weights as they are.
      patched_error, alone_error, other_error: (N, T, L), relative to the output with the context:
        with the changed weights, the weights as they are, and those of another input.
    """

    v: np.ndarray
    right: np.ndarray
    bias: np.ndarray
    relative: np.ndarray
    shares: np.ndarray
    remainder: np.ndarray
    bias_shares: np.ndarray
    patched: np.ndarray
    alone: np.ndarray
    patched_error: np.ndarray
    alone_error: np.ndarray
    other_error: np.ndarray


@dataclass(frozen=True)
class Arrays:
    """All numbers of the page, the metrics of the training (S,), and how well it sorts, ().

    Attributes:
      letters: (N, 6), the inputs.
      step, loss: of the training.
      held_out, untrained: the share of held-out inputs that is sorted, after training and before.
      steps: the forward pass.
      changes: of the weights.
    """

    letters: np.ndarray
    step: np.ndarray
    loss: np.ndarray
    held_out: np.ndarray
    untrained: np.ndarray
    steps: Steps
    changes: Changes


def steps_of(model: LanguageModel, params: Params, read_NT: np.ndarray) -> Steps:
    """Runs every input (N, 11) and keeps all of it."""
    walk: Walk = jax.vmap(lambda tokens_T: walk_through(model, params, tokens_T))(
        jnp.asarray(read_NT)
    )
    layers, attention = walk.layers, walk.layers.attention
    found: dict[str, Any] = {
        "letter": params["embedding"][read_NT],
        "position": params["position_embedding"][:LENGTH],
        "residual": layers.residual_TD,
        "read": layers.read_TD,
        "query": attention.query_TAF,
        "key": attention.key_TGF,
        "value": attention.value_TGF,
        "scores": attention.scores_ATT,
        "weights": attention.weights_ATT,
        "heads": attention.heads_TAF,
        "mixed": attention.mixed_TD,
        "joined": layers.joined_TD,
        "mlp_input": layers.mlp_input_TD,
        "hidden": layers.hidden_TH,
        "mlp_output": layers.mlp_output_TD,
        "output": layers.output_TD,
        "final": walk.final_TD,
        "logits": walk.logits_TV,
        "probability": jax.nn.softmax(walk.logits_TV, axis=-1),
    }
    return Steps(**{name: np.asarray(value) for name, value in found.items()})


def changes_of(
    model: LanguageModel, params: Params, read_NT: np.ndarray, output_NLTD: np.ndarray
) -> Changes:
    """The patch of every token of every input, kept alone; what it is made of; what it does.

    Args:
      model, params: the model.
      read_NT: (N, 11), the inputs.
      output_NLTD: (N, L, T, D), every block's output with everything there.
    """
    count, length = read_NT.shape
    run = (model, params)
    # One by one: of many, as a batch, each would be cut out by a program of its own.
    banks: dict[tuple[int, int], Bank] = {
        (one, token): prompt_patches(*run, read_NT[one], [token])
        for one in range(count)
        for token in range(1, length)
    }
    rows = []
    for one in range(count):
        row = [_nothing(model, params, output_NLTD[one, :, 0])]
        for token in range(1, length):
            bank, other = banks[one, token], banks[(one + 1) % count, token]
            full_LD = output_NLTD[one, :, token]
            of_kernel = attribute(*run, read_NT[one], [token], of=KERNEL)
            of_bias = attribute(*run, read_NT[one], [token], of="output")
            alone_LD = _outputs(model, params, read_NT[one, token : token + 1], token, None)
            patched_LD = _outputs(model, params, read_NT[one], token, bank)
            other_LD = _outputs(model, params, read_NT[one], token, other)
            row.append(
                {
                    **_vectors(model, params, bank),
                    "shares": of_kernel.shares_LAT,
                    "remainder": of_kernel.remainder_L,
                    "bias_shares": of_bias.shares_LAT,
                    "patched": patched_LD,
                    "alone": alone_LD,
                    "patched_error": _error(patched_LD, full_LD),
                    "alone_error": _error(alone_LD, full_LD),
                    "other_error": _error(other_LD, full_LD),
                }
            )
        rows.append(row)
    stacked = jax.tree.map(
        lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]).reshape(
            count, length, *leaves[0].shape
        ),
        *[entry for row in rows for entry in row],
    )
    return Changes(**stacked)


@functools.partial(jax.jit, static_argnames="model")
def _vectors(model: LanguageModel, params: Params, bank: Bank) -> dict[str, Array]:
    """The two vectors of every layer's update, the change of its bias, and how large it is."""
    # Leaves (L, ...), of the one kept position.
    patch = jax.tree.map(lambda leaf: leaf[:, 0], bank.patches.joined())
    kernel_LDH = functional(model, params).params.joined()["mlp"][KERNEL]["kernel"]
    update = jax.vmap(kernel_update)(patch.input, kernel_LDH)
    size_L = jnp.linalg.norm(kernel_LDH, axis=(1, 2))
    return {
        "v": update.left_RD[:, 0],
        "right": update.right_RH[:, 0],
        "bias": patch.output.delta_D,
        "relative": jax.vmap(frobenius_norm)(update) / size_L,
    }


def _outputs(
    model: LanguageModel, params: Params, tokens_T: np.ndarray, token: int, bank: Bank | None
) -> np.ndarray:
    """What every block gives (L, D) for one token alone, patched or as it is."""
    # A bank has the position of its token; without one, the token keeps it, too.
    positions_T = None if bank is not None else np.asarray([token], np.int32)
    seen = observe(
        model, params, tokens_T, capture=("layers.*.output",), bank=bank, positions_T=positions_T
    )
    return np.asarray(seen.activations["layers.*.output"])[:, 0]


def _error(found_LD: np.ndarray, full_LD: np.ndarray) -> np.ndarray:
    gap_L: np.ndarray = np.linalg.norm(found_LD - full_LD, axis=-1)
    return gap_L / np.linalg.norm(full_LD, axis=-1)


def _nothing(model: LanguageModel, params: Params, output_LD: np.ndarray) -> dict[str, np.ndarray]:
    """The entries of the first token, which is alone anyway."""
    depth, width = output_LD.shape
    heads = model.blocks[0].contextual_layer.num_heads
    hidden = functional(model, params).params.joined()["mlp"][KERNEL]["kernel"].shape[-1]
    zero_L, zero_LAT = np.zeros(depth, "f4"), np.zeros((depth, heads, LENGTH), "f4")
    return {
        "v": np.zeros((depth, width), "f4"),
        "right": np.zeros((depth, hidden), "f4"),
        "bias": np.zeros((depth, width), "f4"),
        "relative": zero_L,
        "shares": zero_LAT,
        "remainder": zero_L,
        "bias_shares": zero_LAT,
        "patched": output_LD,
        "alone": output_LD,
        "patched_error": zero_L,
        "alone_error": zero_L,
        "other_error": zero_L,
    }


def walked(model: LanguageModel, params: Params, letters_N6: np.ndarray) -> tuple[Steps, Changes]:
    """All of the page's numbers about some inputs (N, 6)."""
    read_NT = np.asarray(sequences(jnp.asarray(letters_N6))[0])
    steps = steps_of(model, params, read_NT)
    return steps, changes_of(model, params, read_NT, steps.output)

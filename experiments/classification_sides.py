"""A language model's answer to a classification prompt: in context, and fine-tuned instead."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.descent_sides import ExplicitConfig, random_points
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.blocks.stack import functional
from icl_jax.descent.finetune import descend, finetune
from icl_jax.descent.layer_causal import layer_causal_loss
from icl_jax.descent.parameters import merge, select
from icl_jax.dims import Array, Params
from icl_jax.interop.tokenizer import Tokenizer
from icl_jax.language.activations import Attended, attend
from icl_jax.measures.distributions import kl_divergence, top_k_overlap, total_variation
from icl_jax.measures.representation import attention_similarity, kendall_tau, update_similarity
from icl_jax.patches.bank import forward
from icl_jax.tasks.classification import ClassificationPrompt


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Question:
    """A prompt in tokens, padded at the ends so that all prompts share one shape.

    Attributes:
      context_T: (T,), the demonstrations with their labels, and the query.
      context_last: (), where the query ends in it; the label comes next.
      query_Q: (Q,), the query alone.
      query_last: (), where it ends.
      examples_NU: (N, U), every demonstration up to its label.
      example_lasts_N: (N,), where each ends.
      labels_N: (N,), the token of each label.
      answer: (), the class of the query.
    """

    context_T: Array
    context_last: Array
    query_Q: Array
    query_last: Array
    examples_NU: Array
    example_lasts_N: Array
    labels_N: Array
    answer: Array


def label_tokens(tokenizer: Tokenizer, words: Sequence[str]) -> np.ndarray:
    """The first token of every label, (C,), by which it is told.

    Raises:
      ValueError: two labels that begin with the same token.
    """
    tokens = np.array(
        [tokenizer.encode(f" {word}", add_special=False).tokens_T[0] for word in words]
    )
    for token in np.unique(tokens):
        same = [word for word, other in zip(words, tokens, strict=True) if other == token]
        if len(same) > 1:
            raise ValueError(
                f"classification: the labels {', '.join(same)} begin with the same token of this "
                "tokenizer and cannot be told apart by it. Give others with --labels."
            )
    return tokens.astype(np.int32)


def questions(
    tokenizer: Tokenizer, prompts: Sequence[ClassificationPrompt], words: Sequence[str]
) -> Question:
    """All prompts in tokens, with a leading axis B."""
    labels_C = label_tokens(tokenizer, words)
    asked = [f"{prompt.query} ->" for prompt in prompts]
    shown = [[f"{text} ->" for text in prompt.demonstrations] for prompt in prompts]
    contexts = [
        "".join(
            f"{text} {words[label]}\n" for text, label in zip(texts, prompt.labels, strict=True)
        )
        + query
        for texts, prompt, query in zip(shown, prompts, asked, strict=True)
    ]

    def padded(texts: Sequence[str]) -> tuple[Array, Array]:
        rows = [tokenizer.encode(text).tokens_T for text in texts]
        if tokenizer.adds_eos:
            rows = [row[:-1] for row in rows]
        width = max(map(len, rows))
        tokens = np.stack([np.pad(row, (0, width - len(row)), mode="edge") for row in rows])
        lasts = [len(row) - 1 for row in rows]
        return jnp.asarray(tokens, jnp.int32), jnp.asarray(lasts, jnp.int32)

    examples_XU, lasts_X = padded([text for texts in shown for text in texts])
    shape = (len(prompts), len(shown[0]))
    return Question(
        *padded(contexts),
        *padded(asked),
        examples_XU.reshape(*shape, -1),
        lasts_X.reshape(shape),
        jnp.asarray(labels_C[np.array([prompt.labels for prompt in prompts])]),
        jnp.asarray([prompt.answer for prompt in prompts], jnp.int32),
    )


def fine_tuned(
    model: LanguageModel, params: Params, config: ExplicitConfig, question: Question, rate: Array
) -> Params:
    """The chosen weights after descent on the demonstrations' labels, none of which it sees."""
    part, rest = select(params, config.trains)
    blocks, _ = functional(model, params)

    def loss(part: Params, example: tuple[Array, Array, Array]) -> Array:
        tokens_U, last, label = example
        whole = merge(part, rest)

        def read_loss(hidden_UD: Array) -> Array:
            logits_1V: Any = model.apply({"params": whole}, hidden_UD[last][None], method="readout")
            return optax.softmax_cross_entropy_with_integer_labels(logits_1V[0], label)

        _, block_params = functional(model, whole)
        hidden_UD: Any = model.apply({"params": whole}, tokens_U, method="embed")
        if not config.layer_causal:
            return read_loss(forward(blocks, block_params, hidden_UD))
        layers = [
            lambda params, hidden_UD, block=block: forward((block,), (params,), hidden_UD)
            for block in blocks
        ]
        return layer_causal_loss(layers, block_params, hidden_UD, read_loss)

    examples = (question.examples_NU, question.example_lasts_N, question.labels_N)
    if config.batch == "one":
        optimizer = config.optimizer.make(rate, question.labels_N.shape[0])
        return finetune(loss, part, examples, optimizer, record=lambda part: ()).final
    optimizer = config.optimizer.make(rate, config.num_steps)
    return descend(
        lambda part: jnp.mean(jax.vmap(lambda example: loss(part, example))(examples)),
        part,
        optimizer,
        num_steps=config.num_steps,
        record=lambda part: (),
    ).final


class Answers(NamedTuple):
    """The label's position, seen three ways.

    Attributes:
      in_context: with the demonstrations.
      zero_shot: the query alone.
      tuned: the query alone, by every fine-tuned (or random) set of weights, with a leading axis.
    """

    in_context: Attended
    zero_shot: Attended
    tuned: Attended


def answers(
    model: LanguageModel, params: Params, config: ExplicitConfig, question: Question, parts: Params
) -> Answers:
    """Runs the query every way; ``parts`` are chosen weights with a leading axis."""
    _, rest = select(params, config.trains)

    def alone(part: Params) -> Attended:
        return attend(model, merge(part, rest), question.query_Q, question.query_last)

    return Answers(
        attend(model, params, question.context_T, question.context_last),
        attend(model, params, question.query_Q, question.query_last),
        jax.vmap(alone)(parts),
    )


def measures(found: Answers, question: Question, top_k: int) -> dict[str, Array]:
    """In context against every set of fine-tuned weights, one value of each measure per set.

    Attention is that to the query's own tokens, after the softmax: what they have in common with
    one another is not touched by what goes to the demonstrations.
    """
    steps_Q = jnp.arange(question.query_Q.shape[0], dtype=question.query_last.dtype)
    # The same tokens in both settings; those behind the query are padding.
    places_Q = question.context_last - question.query_last + steps_Q
    asked_Q = steps_Q <= question.query_last
    context_LAQ = jnp.where(asked_Q, found.in_context.weights_LAT[..., places_Q], 0.0)
    rank_correlation = functools.partial(kendall_tau, present_T=asked_Q)

    def one(tuned: Attended) -> dict[str, Array]:
        tuned_LAQ = jnp.where(asked_Q, tuned.weights_LAT, 0.0)
        layers_L = jax.vmap(update_similarity)(
            found.in_context.outputs_LD, tuned.outputs_LD, found.zero_shot.outputs_LD
        )
        over_heads = jax.vmap(jax.vmap(attention_similarity))
        ranks = jax.vmap(jax.vmap(rank_correlation))
        logits = (found.in_context.logits_V, tuned.logits_V)
        return {
            "kl": kl_divergence(*logits),
            "total_variation": total_variation(*logits),
            "top_k_overlap": top_k_overlap(*logits, k=top_k),
            "update_similarity": jnp.mean(layers_L),
            "attention_similarity": jnp.mean(over_heads(context_LAQ, tuned_LAQ)),
            "attention_rank_correlation": jnp.mean(ranks(context_LAQ, tuned_LAQ)),
            "layers": layers_L,
        }

    return jax.vmap(one)(found.tuned)


def random_part(key: Array, before: Params, after: Params) -> Params:
    """Weights as far from ``before`` as ``after`` is, leaf by leaf, in a random direction."""
    points = jax.tree.map(lambda first, last: jnp.stack([first, last]), before, after)
    walk = random_points(key, points)
    return jax.tree.map(lambda leaf: leaf[1], walk)

"""A language model's answer to a classification prompt: in context, and fine-tuned instead."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.tools.trained import trained_part
from icl_jax.blocks.experts import Experts
from icl_jax.blocks.functional import functional, layer_params
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.descent.explicit import MOVES_KERNEL, ExplicitConfig
from icl_jax.descent.finetune import descend, finetune
from icl_jax.descent.layer_causal import layer_causal_loss
from icl_jax.descent.parameters import kernel_of, merge
from icl_jax.dims import Array, Params
from icl_jax.interop.tokenizer import Encoded, Tokenizer
from icl_jax.language.activations import Attended, attend
from icl_jax.measures.distributions import kl_divergence, top_k_overlap, total_variation
from icl_jax.measures.nulls import random_points
from icl_jax.measures.representation import attention_similarity, kendall_tau, update_similarity
from icl_jax.measures.weight_space import cosine
from icl_jax.patches.token import token_update
from icl_jax.stack.run import forward
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
      query_places_Q: (Q,), where each of its tokens stands in the context; -1 for what does not
        (BOS, padding).
      examples_NU: (N, U), every demonstration up to its label.
      example_lasts_N: (N,), where each ends.
      example_places_NU: (N, U), where each of their tokens stands in the context, or -1.
      labels_N: (N,), the token of each label.
      answer: (), the class of the query.
    """

    context_T: Array
    context_last: Array
    query_Q: Array
    query_last: Array
    query_places_Q: Array
    examples_NU: Array
    example_lasts_N: Array
    example_places_NU: Array
    labels_N: Array
    answer: Array


def label_tokens(tokenizer: Tokenizer, words: Sequence[str]) -> np.ndarray:
    """The first token of every label, (C,), by which it is told.

    Raises:
      ValueError: two labels that begin with the same token, or one that the tokenizer joins to the
        arrow before it.
    """
    arrow = tokenizer.encode("x ->", add_special=False).tokens_T
    found = []
    for word in words:
        tokens = tokenizer.encode(f"x -> {word}", add_special=False).tokens_T
        if len(tokens) <= len(arrow) or not np.array_equal(tokens[: len(arrow)], arrow):
            raise ValueError(
                f"classification: this tokenizer joins the label {word!r} to the arrow before it, "
                "so no token of its own says it. Give another with --labels."
            )
        found.append(tokens[len(arrow)])
    for token in np.unique(found):
        same = [word for word, other in zip(words, found, strict=True) if other == token]
        if len(same) > 1:
            raise ValueError(
                f"classification: the labels {', '.join(same)} begin with the same token of this "
                "tokenizer and cannot be told apart by it. Give others with --labels."
            )
    return np.array(found, np.int32)


def _places(text: Encoded, context: Encoded, start: int) -> np.ndarray:
    """Where the tokens of a text stand in a context that has it from ``start`` on; -1: nowhere."""
    real = np.flatnonzero(context.offsets_T2[:, 1] > context.offsets_T2[:, 0])
    at = np.searchsorted(context.offsets_T2[real, 0], start + text.offsets_T2[:, 0], side="right")
    stands = text.offsets_T2[:, 1] > text.offsets_T2[:, 0]  # What stands for no text does not.
    return np.where(stands, real[np.maximum(at - 1, 0)], -1)


def _padded(rows: Sequence[np.ndarray], mode: Literal["edge", "constant"]) -> Array:
    """Rows of any lengths in one array: padded with their last entry, or with -1."""
    width = max(map(len, rows))
    fill: dict[str, Any] = {"constant_values": -1} if mode == "constant" else {}
    padded = [np.pad(row, (0, width - len(row)), mode=mode, **fill) for row in rows]
    return jnp.asarray(np.stack(padded), jnp.int32)


def questions(
    tokenizer: Tokenizer, prompts: Sequence[ClassificationPrompt], words: Sequence[str]
) -> Question:
    """All prompts in tokens, with a leading axis B."""
    labels_C = label_tokens(tokenizer, words)

    def encode(text: str) -> Encoded:
        found = tokenizer.encode(text)
        end = len(found.tokens_T) - int(tokenizer.adds_eos)
        return Encoded(found.tokens_T[:end], found.offsets_T2[:end])

    contexts, asked, shown, asked_places, shown_places = [], [], [], [], []
    for prompt in prompts:
        context, starts = "", []
        for text, label in zip(prompt.demonstrations, prompt.labels, strict=True):
            starts.append(len(context))
            context += f"{text} -> {words[label]}\n"
        starts.append(len(context))
        whole = encode(f"{context}{prompt.query} ->")
        alone = [encode(f"{text} ->") for text in (*prompt.demonstrations, prompt.query)]
        places = [_places(text, whole, start) for text, start in zip(alone, starts, strict=True)]
        contexts.append(whole.tokens_T)
        *examples, query = (text.tokens_T for text in alone)
        shown += examples
        asked.append(query)
        shown_places += places[:-1]
        asked_places.append(places[-1])

    def lasts(rows: Sequence[np.ndarray]) -> Array:
        return jnp.asarray([len(row) - 1 for row in rows], jnp.int32)

    shape = (len(prompts), len(prompts[0].demonstrations))
    return Question(
        _padded(contexts, "edge"),
        lasts(contexts),
        _padded(asked, "edge"),
        lasts(asked),
        _padded(asked_places, "constant"),
        _padded(shown, "edge").reshape(*shape, -1),
        lasts(shown).reshape(shape),
        _padded(shown_places, "constant").reshape(*shape, -1),
        jnp.asarray(labels_C[np.array([prompt.labels for prompt in prompts])]),
        jnp.asarray([prompt.answer for prompt in prompts], jnp.int32),
    )


def fine_tuned(
    model: LanguageModel, params: Params, config: ExplicitConfig, question: Question, rate: Array
) -> Params:
    """The chosen weights after descent on the demonstrations' labels, none of which it sees."""
    part, rest = trained_part(model, params, config.trains)

    def loss(part: Params, example: tuple[Array, Array, Array]) -> Array:
        tokens_U, last, label = example
        whole = merge(part, rest)

        def read_loss(stream_UD: Array) -> Array:
            logits_1V: Any = model.apply({"params": whole}, stream_UD[last][None], method="readout")
            return optax.softmax_cross_entropy_with_integer_labels(logits_1V[0], label)

        layers = functional(model, whole)
        stream_UD: Any = model.apply({"params": whole}, tokens_U, method="embed")
        if not config.layer_causal:
            return read_loss(forward(layers, stream_UD))
        return layer_causal_loss(layers, stream_UD, read_loss)

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
      tuned: the query alone, by every fine-tuned (or random) set of weights, with a leading axis W.
      dual_WLNU: (W, L, N, U), how much the query attends to the demonstrations' tokens by descent:
        the inner products of what each layer's attention reads at the query's end and at them, each
        demonstration alone. A gradient of what reads ``x_i`` is a sum of outer products with
        ``x_i``, so what it adds to the query's run weighs them by these (Dai et al. 2023,
        section 3).
    """

    in_context: Attended
    zero_shot: Attended
    tuned: Attended
    dual_WLNU: Array


def answers(
    model: LanguageModel, params: Params, config: ExplicitConfig, question: Question, parts: Params
) -> Answers:
    """Runs the query every way; ``parts`` are chosen weights with a leading axis."""
    _, rest = trained_part(model, params, config.trains)

    def alone(part: Params) -> tuple[Attended, Array]:
        whole = merge(part, rest)
        query = attend(model, whole, question.query_Q, question.query_last)
        examples = jax.vmap(functools.partial(attend, model, whole))(
            question.examples_NU, question.example_lasts_N
        )
        dual_LNU = jnp.einsum(
            "nlud,ld->lnu",
            examples.inputs_LTD,
            query.inputs_LTD[:, question.query_last],
            precision=jax.lax.Precision.HIGHEST,
        )
        return query, dual_LNU

    return Answers(
        attend(model, params, question.context_T, question.context_last),
        attend(model, params, question.query_Q, question.query_last),
        *jax.vmap(alone)(parts),
    )


#: The first layer whose attention a choice of weights can change: an MLP is read by the next one.
FIRST_REACHED = {"first_kernel": 1, "mlp": 1}


#: The measure that only what attention sees has.
BY_ORDER = "attention_rank_correlation"
#: What ``measures`` gives, and the layers behind one of them.
MEASURED = (
    "kl",
    "total_variation",
    "top_k_overlap",
    "update_similarity",
    "attention_similarity",
    BY_ORDER,
)


def measures(
    found: Answers, question: Question, config: ExplicitConfig, top_k: int
) -> dict[str, Array]:
    """In context against every set of fine-tuned weights, one value of each measure per set.

    The three of attention are those of Dai et al. 2023 (arXiv 2212.10559), section 4: the change of
    its output, its scores of the query's own tokens before the softmax, and the order of what it
    pays to the demonstrations' tokens, summed over heads, beside descent's dual form of it.
    """
    asked_Q, shown_NU = question.query_places_Q >= 0, question.example_places_NU >= 0
    scores_LAQ = found.in_context.scores_LAT[..., question.query_places_Q]
    paid_LNU = jnp.sum(found.in_context.weights_LAT, axis=1)[:, question.example_places_NU]
    reached = FIRST_REACHED.get(config.trains, 0)

    def one(tuned: Attended, dual_LNU: Array) -> dict[str, Array]:
        layers_L = jax.vmap(update_similarity)(
            found.in_context.outputs_LD[reached:],
            tuned.outputs_LD[reached:],
            found.zero_shot.outputs_LD[reached:],
        )
        over_heads = jax.vmap(jax.vmap(attention_similarity))
        ranks_L = jax.vmap(functools.partial(kendall_tau, present_T=shown_NU.ravel()))(
            paid_LNU.reshape(len(paid_LNU), -1), dual_LNU.reshape(len(dual_LNU), -1)
        )
        logits = (found.in_context.logits_V, tuned.logits_V)
        return {
            "kl": kl_divergence(*logits),
            "total_variation": total_variation(*logits),
            "top_k_overlap": top_k_overlap(*logits, k=top_k),
            "update_similarity": jnp.mean(layers_L),
            "attention_similarity": jnp.mean(
                over_heads(
                    jnp.where(asked_Q, scores_LAQ, 0.0), jnp.where(asked_Q, tuned.scores_LAT, 0.0)
                )
            ),
            # A layer whose window ends before the demonstrations has no order of them.
            "attention_rank_correlation": jnp.nanmean(ranks_L),
            "layers": layers_L,
        }

    return jax.vmap(one)(found.tuned, found.dual_WLNU)


def compares_kernels(model: LanguageModel, config: ExplicitConfig) -> bool:
    """Whether descent moves the kernel that the context updates, in every layer."""
    plain = all(
        block.wired.reads_context and not isinstance(block.mlp, Experts) for block in model.blocks
    )
    return plain and config.trains in MOVES_KERNEL


def update_cosines(model: LanguageModel, params: Params, found: Answers, parts: Params) -> Array:
    """The context's update of the MLP's first kernel beside each descent's: cosines (W,).

    The update is that of the query's last token between the two runs of the model as it is (open
    loop); the mean over layers.
    """
    cosines = []
    layers = functional(model, params)
    for layer, one_params in enumerate(layers.params):
        block = layers.block(layer)
        kernel_DH = kernel_of(block, one_params)
        update = token_update(
            found.in_context.mlp_inputs_LD[layer], found.zero_shot.mlp_inputs_LD[layer], kernel_DH
        )
        there = layer_params(model, parts, layer, axis=1)
        moved_WDH = kernel_of(block, there) - kernel_DH[None]
        cosines.append(jax.vmap(functools.partial(cosine, update))(moved_WDH))
    return jnp.mean(jnp.stack(cosines), axis=0)


def random_part(key: Array, before: Params, after: Params) -> Params:
    """Weights as far from ``before`` as ``after`` is, leaf by leaf, in a random direction."""
    points = jax.tree.map(lambda first, last: jnp.stack([first, last]), before, after)
    walk = random_points(key, points)
    return jax.tree.map(lambda leaf: leaf[1], walk)

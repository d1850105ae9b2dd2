"""Generation with the context in a memory, and without it from patched weights.

Each new token gets one patch per layer, made from the two runs' midpoints and used at once, so the
patched run goes on in closed loop. It reads the kept tokens and its own; the run with everything
goes on beside it, over the same tokens, to make the patches and to be compared with. Everything
happens on the device (``writing.py``); the host waits for the end, or for a chunk of tokens where
somebody wants to see progress.
"""

import functools
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from icl_jax import checks
from icl_jax.blocks.functional import functional
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.dims import Array, Params
from icl_jax.language.batch import Prompts, bucket, cut_rows, is_batch, pad_prompts, pad_whole
from icl_jax.language.ends import check_position_ids
from icl_jax.language.loop import Loop, stop_ids
from icl_jax.language.sampling import GREEDY, Sampling
from icl_jax.language.text import Text
from icl_jax.language.writing import ENDS, begin, begin_patched, go_on, go_on_patched
from icl_jax.patches.bank import Bank, check_patchable
from icl_jax.patches.output import OutputPolicy
from icl_jax.shown import short
from icl_jax.stack.sites import Edits, Watch, watch


@dataclass(frozen=True)
class PatchedGeneration:
    """Tokens written without the context, and how close each step's logits were.

    Attributes:
      tokens_N: (N,), the new token ids.
      relative_error_N: (N,), of the logits that each token was drawn from, against the run with
        everything over the same tokens.
      kl_N: (N,), nats.
      same_top1_N: (N,), whether both runs' most probable token is the same.
      bank: compact patches of the kept positions and of all new tokens but the last, which was
        written and never read.
    """

    tokens_N: np.ndarray
    relative_error_N: np.ndarray
    kl_N: np.ndarray
    same_top1_N: np.ndarray
    bank: Bank

    __repr__ = short


def generate(
    model: LanguageModel,
    params: Params,
    tokens: Any,
    num_tokens: int,
    *,
    positions_T: Any = None,
    sampling: Sampling = GREEDY,
    key: Array | None = None,
    stop: Collection[int] = (),
    edit: Edits | None = None,
    progress: Callable[[], None] | None = None,
) -> Any:
    """Ordinary decoding with a memory of what is before: new token ids (N,), N <= ``num_tokens``.

    Args:
      model: a causal model with a head.
      params: its parameters.
      tokens: (T,), the prompt; or those of several prompts, of any lengths.
      num_tokens: how many to write.
      positions_T: (T,), increasing position ids of the prompt, or a list of those of several;
        0..T-1 when left out.
      sampling: greedy by default.
      key: of the draws; needed unless greedy. Step i uses ``fold_in(key, i)``, and in a batch
        prompt b the key ``fold_in(key, b)``.
      stop: token ids after which to stop (they are kept).
      edit: name of an activation -> a function of its rows, or an array (D) in their place, of the
        prompt and of every new token; see ``observed_generate``, which also reads them.
      progress: called for every token, a chunk of them at a time.

    Returns:
      The new token ids, or a list of them for several prompts.

    Raises:
      ValueError: a model that cannot generate, bad tokens, more tokens than positions, no key, a
        stop token that the model does not have; logits that are not finite.
      TypeError: tokens or stop tokens that are not integers, a key that is none.

    Examples:
      >>> block = Block(SoftmaxAttention(num_heads=2), Gated(hidden_width=16), norm="rms")
      >>> model = LanguageModel(repeat(block, 2), vocab_size=30, width=8)
      >>> tokens = jnp.arange(3, 13)
      >>> params = model.init(jax.random.key(0), tokens)["params"]
      >>> written = generate(model, params, tokens, 4)
      >>> most_probable = full_logits(model, params, tokens, [9])[0].argmax()
      >>> len(written), bool(written[0] == most_probable)
      (4, True)
    """
    watching = watch("generate", functional(model, params), (), edit, ENDS)
    written, _, _ = write(
        "generate",
        model,
        params,
        tokens,
        num_tokens,
        positions_T=positions_T,
        sampling=sampling,
        key=key,
        stop=stop,
        progress=progress,
        watching=watching,
    )
    return written if is_batch(tokens) else written[0]


def write(
    where: str,
    model: LanguageModel,
    params: Params,
    tokens: Any,
    num_tokens: int,
    *,
    sampling: Sampling,
    key: Array | None,
    stop: Collection[int],
    progress: Callable[[], None] | None,
    watching: Watch,
    positions_T: Any = None,
) -> tuple[list[np.ndarray], Text, Prompts]:
    """``generate``, watched: the new tokens of every prompt, the texts, and the prompts."""
    key = _check(where, model, num_tokens, sampling, key)
    stop_S = stop_ids(where, model, stop)
    batched = is_batch(tokens)
    prompts = pad_whole(where, model, tokens, extra=num_tokens)
    positions_BT = None
    if positions_T is not None:
        each = positions_T if batched else [positions_T]
        positions_BT = _padded_ids(where, model, prompts, each, num_tokens)
    run = Loop(where, num_tokens, stop_S, progress)
    text = begin(
        model,
        params,
        prompts,
        positions_BT,
        _keys(key, prompts, batched),
        run.stop_S,
        watching,
        room=bucket(num_tokens),
        sampling=sampling,
    )
    for limit in run.limits(text):
        text = go_on(model, params, text, limit, run.stop_S, watching, sampling=sampling)
        run.report(text)
    tokens_BN, counts_B, finite_B = run.last(text)
    run.check(tokens_BN, counts_B, finite_B)
    written = [row[:count] for row, count in zip(tokens_BN, counts_B, strict=True)]
    return written, text, prompts


def patched_generate(
    model: LanguageModel,
    params: Params,
    tokens: Any,
    kept: Any,
    num_tokens: int,
    *,
    output: OutputPolicy = "auto",
    sampling: Sampling = GREEDY,
    key: Array | None = None,
    stop: Collection[int] = (),
    progress: Callable[[], None] | None = None,
) -> Any:
    """Decoding without the context: one new patch per token and layer, in closed loop.

    Args:
      model: a causal model with a head.
      params: its parameters.
      tokens: (T,), the whole prompt; or those of several prompts.
      kept: (K,), the positions to keep, increasing; the last one of the prompt is among them.
      num_tokens: how many to write.
      output: which weight carries the residual change.
      sampling: greedy by default; the same key gives the draws of ``generate``.
      key: of the draws; needed unless greedy.
      stop: token ids after which to stop (they are kept).
      progress: called for every token, a chunk of them at a time.

    Returns:
      A ``PatchedGeneration``, or a list of them for several prompts.

    Raises:
      ValueError: as ``generate`` and ``prompt_patches``, or the prompt's last token is not kept.

    Examples:
      >>> block = Block(SoftmaxAttention(num_heads=2), Gated(hidden_width=16), norm="rms")
      >>> model = LanguageModel(repeat(block, 2), vocab_size=30, width=8)
      >>> tokens = jnp.arange(3, 13)
      >>> params = model.init(jax.random.key(0), tokens)["params"]
      >>> written = patched_generate(model, params, tokens, [0, 8, 9], 4)
      >>> written.same_top1_N.tolist()  # as the model that reads everything
      [True, True, True, True]
    """
    where = "patched_generate"
    key = _check(where, model, num_tokens, sampling, key)
    stop_S = stop_ids(where, model, stop)
    batched = is_batch(tokens)
    prompts = pad_prompts(where, model, tokens, kept, extra=num_tokens)
    for last, length in zip(prompts.kept_BK[:, -1], prompts.length_B, strict=True):
        if last != length - 1:
            raise ValueError(
                f"{where}: kept_K must end with the prompt's last position, {length - 1}, got "
                f"{last}: that is where the first new token is written. Keep it."
            )
    run = Loop(where, num_tokens, stop_S, progress)
    text = begin_patched(
        model,
        params,
        prompts,
        _keys(key, prompts, batched),
        run.stop_S,
        room=bucket(num_tokens),
        sampling=sampling,
        output=output,
    )
    for limit in run.limits(text):
        text = go_on_patched(
            model, params, text, limit, run.stop_S, sampling=sampling, output=output
        )
        run.report(text)
    fields = (text.sound_B, text.relative_error_BN, text.kl_BN, text.same_top1_BN)
    tokens_BN, counts_B, finite_B, sound_B, *measured = run.last(text, *fields)
    if not np.all(sound_B):
        check_patchable(text.prompt_bank)
    each = []
    for number, count in enumerate(counts_B):
        error_N, kl_N, same_N = (array_BN[number, :count] for array_BN in measured)
        counts = {"num_kept": int(prompts.num_kept_B[number]), "num_new": int(count) - 1}
        bank = _joined(text.prompt_bank, text.written_bank, number, **counts)
        if not sound_B[number]:
            check_patchable(bank)
        each.append(PatchedGeneration(tokens_BN[number, :count], error_N, kl_N, same_N, bank))
    run.check(tokens_BN, counts_B, finite_B)
    return each if batched else each[0]


def token_agreement(expected_N: np.ndarray, actual_N: np.ndarray) -> float:
    """The share of steps with the same token; a step that only one text has counts as different.

    Raises:
      ValueError: two texts without a token, which neither agree nor differ; or several at once.
      TypeError: lists.

    Examples:
      >>> token_agreement(np.array([1, 2, 3, 4]), np.array([1, 2, 0, 4]))
      0.75
    """
    for name, tokens_N in (("expected_N", expected_N), ("actual_N", actual_N)):
        checks.rank("token_agreement", name, tokens_N, 1, "(N)")
    steps = max(len(expected_N), len(actual_N))
    if not steps:
        raise ValueError(
            "token_agreement: expected_N and actual_N are both empty; give texts with a token."
        )
    shared = min(len(expected_N), len(actual_N))
    return float(np.sum(expected_N[:shared] == actual_N[:shared]) / steps)


@functools.partial(jax.jit, static_argnames=("num_kept", "num_new"))
def _joined(kept: Bank, new: Bank, number: Array | int, num_kept: int, num_new: int) -> Bank:
    """The patches of a prompt's kept positions and of its new tokens as one bank."""
    parts = []
    for bank, count in ((kept, num_kept), (new, num_new)):
        if count:
            layered = cut_rows((bank.patches, bank.conditioning), number, count, axis=1)
            kept_K, positions_K = cut_rows((bank.kept_K, bank.positions_K), number, count)
            parts.append(Bank(layered[0], kept_K, positions_K, layered[1]))
    if len(parts) == 1:
        return parts[0]

    def joined(axis: int, *trees: Any) -> Any:
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis), *trees)

    return Bank(
        joined(1, *(part.patches for part in parts)),
        joined(0, *(part.kept_K for part in parts)),
        joined(0, *(part.positions_K for part in parts)),
        joined(1, *(part.conditioning for part in parts)),
    )


def _keys(key: Array, prompts: Any, batched: bool) -> Array:
    return _folded(key, prompts.tokens_BT.shape[0]) if batched else key[None]


@functools.partial(jax.jit, static_argnames="count")
def _folded(key: Array, count: int) -> Array:
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(count))


def _padded_ids(
    where: str, model: LanguageModel, prompts: Prompts, each: Any, num_tokens: int
) -> np.ndarray:
    """Position ids (B, T) of all prompts; those of the padding, which nobody reads, repeat."""
    lengths = [int(length) for length in prompts.length_B]
    if len(each) != len(lengths):
        raise ValueError(
            f"{where}: positions_T must be those of {len(lengths)} prompts, one list for each, got "
            f"{len(each)}."
        )
    for ids_T, length in zip(each, lengths, strict=True):
        check_position_ids(where, model, length, ids_T, extra=num_tokens)
    longest = prompts.tokens_BT.shape[1]
    rows = [np.asarray(ids_T, np.int32) for ids_T in each]
    return np.stack([np.pad(row, (0, longest - len(row)), mode="edge") for row in rows])


def _check(
    where: str, model: LanguageModel, num_tokens: int, sampling: Sampling, key: Array | None
) -> Array:
    """Raises where a model cannot generate; a key for the draws (greedy ones never use it)."""
    checks.positive_int(where, "num_tokens", num_tokens)
    if model.head == "none":
        raise ValueError(f"{where}: an encoder has no head that says what comes next.")
    for layer, block in enumerate(model.blocks):
        contextual = block.contextual_layer
        if not contextual.has_memory:
            raise ValueError(
                f"{where}: the contextual layer of block {layer}, {type(contextual).__name__}, has "
                "no memory to go on from: what it said of earlier tokens could change with every "
                "new one. Use causal layers."
            )
    if key is None:
        if sampling.temperature:
            raise ValueError(f"{where}: sampling with a temperature needs key=jax.random.key(...).")
        key = jax.random.key(0)
    checks.prng_key(where, "key", key)
    return key

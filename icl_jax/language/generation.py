"""Generation with the context in a key-value cache, and without it from patched weights.

Each new token gets one patch per layer, made from the two runs' midpoints and used at once, so the
patched run goes on in closed loop. It reads the kept tokens and its own; the run with everything
goes on beside it, over the same tokens, to make the patches and to be compared with.
"""

import functools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from icl_jax import checks
from icl_jax.blocks.attention import Attention
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.blocks.memory import KeyValues, empty_memory
from icl_jax.blocks.stack import FlaxBlock, functional
from icl_jax.dims import Array, Params
from icl_jax.language.ends import embed, readout, token_ids
from icl_jax.language.sampling import GREEDY, Sampling, draw_token
from icl_jax.measures.distributions import kl_divergence, same_top1
from icl_jax.measures.function_space import relative_error
from icl_jax.patches.bank import Bank, check_patchable, compact_bank, take
from icl_jax.patches.block import Midpoint
from icl_jax.patches.output import OutputPolicy
from icl_jax.patches.steps import COMPILED

Memories = tuple[KeyValues, ...]


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


def generate(
    model: LanguageModel,
    params: Params,
    tokens_T: Array | np.ndarray,
    num_tokens: int,
    *,
    positions_T: Array | np.ndarray | None = None,
    sampling: Sampling = GREEDY,
    key: Array | None = None,
    stop: Collection[int] = (),
    progress: Callable[[], None] | None = None,
) -> np.ndarray:
    """Ordinary decoding with a key-value cache: new token ids (N,), N at most ``num_tokens``.

    Args:
      model: a causal model with a head.
      params: its parameters.
      tokens_T: (T,), the prompt.
      num_tokens: how many to write.
      positions_T: (T,), increasing position ids; 0..T-1 when left out.
      sampling: greedy by default.
      key: of the draws; needed unless greedy. Step i uses ``fold_in(key, i)``.
      stop: token ids after which to stop (they are kept).
      progress: called after every token.

    Raises:
      ValueError: a model that cannot generate, bad tokens, more tokens than positions, no key.
    """
    key = _check("generate", model, num_tokens, sampling, key)
    tokens_M = token_ids("generate", model, tokens_T, extra=num_tokens)
    length = tokens_M.shape[0]
    positions_M = jnp.arange(length, dtype=jnp.int32)
    if positions_T is not None:
        checks.axis_size("generate", "positions_T", positions_T, 0, length, "the tokens")
        positions_M = jnp.asarray(positions_T, jnp.int32)
    memories = _memories(model, params, length + num_tokens)
    written: list[int] = []
    while len(written) < num_tokens and not _stopped(written, stop):
        hidden_MD, memories = _read(model, params, tokens_M, positions_M, memories)
        logits_V = readout(model, params, hidden_MD[-1:])[0]
        token = draw_token(jax.random.fold_in(key, len(written)), logits_V, sampling)
        written.append(int(token))
        tokens_M, positions_M = token[None], positions_M[-1:] + 1
        if progress is not None:
            progress()
    return np.asarray(written, np.int32)


def patched_generate(
    model: LanguageModel,
    params: Params,
    tokens_T: Array | np.ndarray,
    kept_K: Array | Sequence[int] | np.ndarray,
    num_tokens: int,
    *,
    output: OutputPolicy = "auto",
    sampling: Sampling = GREEDY,
    key: Array | None = None,
    stop: Collection[int] = (),
    progress: Callable[[], None] | None = None,
) -> PatchedGeneration:
    """Decoding without the context: one new patch per token and layer, in closed loop.

    Args:
      model: a causal model with a head.
      params: its parameters.
      tokens_T: (T,), the whole prompt.
      kept_K: (K,), the positions to keep, increasing; the last one of the prompt is among them.
      num_tokens: how many to write.
      output: which weight carries the residual change.
      sampling: greedy by default; the same key gives the draws of ``generate``.
      key: of the draws; needed unless greedy.
      stop: token ids after which to stop (they are kept).
      progress: called after every token.

    Raises:
      ValueError: as ``generate`` and ``prompt_patches``, or the prompt's last token is not kept.
    """
    where = "patched_generate"
    key = _check(where, model, num_tokens, sampling, key)
    tokens_M = token_ids(where, model, tokens_T, extra=num_tokens)
    length = tokens_M.shape[0]
    kept_M = checks.kept_positions(where, kept_K, length)
    if int(kept_M[-1]) != length - 1:
        raise ValueError(
            f"{where}: kept_K must end with the prompt's last position, {length - 1}, got "
            f"{int(kept_M[-1])}: that is where the first new token is written. Keep it."
        )
    num_kept = kept_M.shape[0]
    positions_M = jnp.arange(length, dtype=jnp.int32)
    full = _memories(model, params, length + num_tokens)
    kept = _memories(model, params, num_kept + num_tokens)
    written: list[int] = []
    measured: list[tuple[Array, Array, Array]] = []
    banks: list[Bank] = []
    while len(written) < num_tokens and not _stopped(written, stop):
        full_MD, kept_KD, bank, full, kept = _read_both(
            model, params, tokens_M, positions_M, kept_M, full, kept, output
        )
        check_patchable(bank)
        banks.append(compact_bank(bank))
        expected_V = readout(model, params, full_MD[-1:])[0]
        logits_V = readout(model, params, kept_KD[-1:])[0]
        measured.append(_compare(expected_V, logits_V))
        token = draw_token(jax.random.fold_in(key, len(written)), logits_V, sampling)
        written.append(int(token))
        tokens_M, positions_M = token[None], positions_M[-1:] + 1
        kept_M = jnp.zeros(1, jnp.int32)
        if progress is not None:
            progress()
    error_N, kl_N, same_N = (np.asarray(one) for one in zip(*jax.device_get(measured), strict=True))
    return PatchedGeneration(np.asarray(written, np.int32), error_N, kl_N, same_N, _joined(banks))


def token_agreement(expected_N: np.ndarray, actual_N: np.ndarray) -> float:
    """The share of steps with the same token; a step that only one text has counts as different."""
    steps = max(len(expected_N), len(actual_N))
    shared = min(len(expected_N), len(actual_N))
    return float(np.sum(expected_N[:shared] == actual_N[:shared]) / steps)


def _read(
    model: LanguageModel, params: Params, tokens_M: Array, positions_M: Array, memories: Memories
) -> tuple[Array, Memories]:
    """The residual stream (M, D) of new tokens after the last block, and the longer memories."""
    hidden_MD = embed(model, params, tokens_M, positions_M)
    longer = []
    for block, layer_params, memory in zip(*functional(model, params), memories, strict=True):
        midpoint, memory = _extend(block, layer_params, hidden_MD, memory, positions_M)
        hidden_MD = COMPILED.apply(block, layer_params, midpoint, None)
        longer.append(memory)
    return hidden_MD, tuple(longer)


def _read_both(
    model: LanguageModel,
    params: Params,
    tokens_M: Array,
    positions_M: Array,
    kept_K: Array,
    full_memories: Memories,
    kept_memories: Memories,
    output: OutputPolicy,
) -> tuple[Array, Array, Bank, Memories, Memories]:
    """Both runs through the new tokens, and the patches between them; ``kept_K`` counts in them."""
    full_MD = embed(model, params, tokens_M, positions_M)
    kept_KD, kept_positions_K = full_MD[kept_K], positions_M[kept_K]
    layers = zip(*functional(model, params), full_memories, kept_memories, strict=True)
    longer_full, longer_kept, patches, numbers = [], [], [], []
    for block, layer_params, full_memory, kept_memory in layers:
        full, full_memory = _extend(block, layer_params, full_MD, full_memory, positions_M)
        kept, kept_memory = _extend(block, layer_params, kept_KD, kept_memory, kept_positions_K)
        patch, number = COMPILED.patches(block, layer_params, take(full, kept_K), kept, output)
        full_MD = COMPILED.apply(block, layer_params, full, None)
        kept_KD = COMPILED.apply(block, layer_params, kept, patch)
        longer_full.append(full_memory)
        longer_kept.append(kept_memory)
        patches.append(patch)
        numbers.append(number)
    bank = Bank(tuple(patches), kept_positions_K, tuple(numbers))
    return full_MD, kept_KD, bank, tuple(longer_full), tuple(longer_kept)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def _extend(
    block: FlaxBlock, params: Params, hidden_MD: Array, memory: KeyValues, positions_M: Array
) -> tuple[Midpoint, KeyValues]:
    return block.extend(params, hidden_MD, memory, positions_M=positions_M)


@jax.jit
def _compare(expected_V: Array, actual_V: Array) -> tuple[Array, Array, Array]:
    return (
        relative_error(actual_V, expected_V),
        kl_divergence(expected_V, actual_V),
        same_top1(expected_V, actual_V),
    )


def _memories(model: LanguageModel, params: Params, slots: int) -> Memories:
    """An empty memory per layer, in the dtype that the embedding sets."""
    memories = []
    for block in model.blocks:
        layer = block.contextual_layer
        assert isinstance(layer, Attention)  # _check has seen to it
        heads = layer.num_kv_heads or layer.num_heads
        features = layer.head_width or model.width // layer.num_heads
        memories.append(empty_memory(slots, heads, features, params["embedding"].dtype))
    return tuple(memories)


def _joined(banks: Sequence[Bank]) -> Bank:
    """Banks of consecutive positions as one."""
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *banks)


def _stopped(written: Sequence[int], stop: Collection[int]) -> bool:
    return bool(written) and written[-1] in stop


def _check(
    where: str, model: LanguageModel, num_tokens: int, sampling: Sampling, key: Array | None
) -> Array:
    """Raises where a model cannot generate; a key for the draws (greedy ones never use it)."""
    checks.positive_int(where, "num_tokens", num_tokens)
    if model.head == "none":
        raise ValueError(f"{where}: an encoder has no head that says what comes next.")
    for layer, block in enumerate(model.blocks):
        attention = block.contextual_layer
        if not isinstance(attention, Attention) or not attention.causal:
            raise ValueError(
                f"{where}: the contextual layer of block {layer} is no causal attention; what it "
                "says of earlier tokens would change with every new one."
            )
    if key is None:
        if sampling.temperature:
            raise ValueError(f"{where}: sampling with a temperature needs key=jax.random.key(...).")
        key = jax.random.key(0)
    return key

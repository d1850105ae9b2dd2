"""What ``experiments.checkpoint`` measures of one prompt in one precision."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from experiments.language.checkpoint.arrays import Answered, Compared, Generation, Patched
from experiments.tools.arrays import Names, under
from icl_jax.blocks.functional import functional
from icl_jax.interop.huggingface import Checkpoint
from icl_jax.interop.spans import Prompt
from icl_jax.language.generation import generate, patched_generate, token_agreement
from icl_jax.language.prompt import alone_logits, full_logits, patched_logits, prompt_patches
from icl_jax.language.sampling import Sampling
from icl_jax.measures.distributions import kl_divergence, same_top1
from icl_jax.measures.function_space import relative_error
from icl_jax.patches.bank import Bank
from icl_jax.patches.block import NormedBlock
from icl_jax.patches.extraction import Loop
from icl_jax.patches.output import OutputPolicy


class Settings(Protocol):
    """What of the experiment's configuration a measurement depends on."""

    @property
    def output_patch(self) -> OutputPolicy:
        """The weights that carry the residual change."""

    @property
    def loop(self) -> Loop:
        """Closed or open."""

    @property
    def generate(self) -> int:
        """Tokens to write."""

    @property
    def temperature(self) -> float:
        """Of the generation."""

    @property
    def seed(self) -> int:
        """Of the draws."""


def has_scale(config: Settings, checkpoint: Checkpoint) -> bool:
    """Whether the scale patch stands beside the one that is asked for: where a norm follows."""
    block, params = functional(checkpoint.model, checkpoint.params)[0]
    normed = isinstance(block, NormedBlock) and block.output_norm(params) is not None
    return normed and config.output_patch != "scale"


def names(config: Settings, checkpoint: Checkpoint) -> Names:
    """Which runs there are of a prompt, and which numbers of them."""
    scale, likely = has_scale(config, checkpoint), checkpoint.model.head != "none"
    told = dict.fromkeys(("kl", "top1"), likely)
    runs = ("patched", "unpatched", "shuffled", *(("scale",) if scale else ()))
    return {"scale": scale, **{path: it for run in runs for path, it in under(run, told).items()}}


def measure(
    config: Settings, checkpoint: Checkpoint, prompts: Sequence[Prompt], index: int
) -> Compared:
    """All runs of one prompt in one precision."""
    model, params = checkpoint.model, checkpoint.params
    prompt = prompts[index]
    run = (model, params, prompt.tokens)
    expected_KV = full_logits(*run, prompt.kept)

    def bank(other: Prompt, output: OutputPolicy) -> Bank:
        return prompt_patches(
            model, params, other.tokens, other.kept, loop=config.loop, output=output
        )

    def answered(actual_KV: Any) -> Answered:
        error = jax.device_get(relative_error(actual_KV, expected_KV))
        if model.head == "none":
            return Answered(error, None, None)  # Last states are no distribution.
        same_K = same_top1(expected_KV, actual_KV)
        kl = jnp.mean(kl_divergence(expected_KV, actual_KV))
        return Answered(error, *jax.device_get((kl, jnp.mean(same_K, dtype=jnp.float32))))

    def patched(own: Bank) -> Patched:
        return Patched(**vars(answered(patched_logits(*run, own))), **conditioning(own))

    own = bank(prompt, config.output_patch)
    others = bank(another(checkpoint, prompts, index), config.output_patch)
    scale = None
    if has_scale(config, checkpoint):
        try:
            scale = patched(bank(prompt, "scale"))
        except ValueError:  # An output of exactly zero, which no scale makes into another.
            scale = _nothing(len(own.conditioning), model.head != "none")
    return Compared(
        patched=patched(own),
        unpatched=answered(alone_logits(*run, prompt.kept)),
        shuffled=answered(patched_logits(*run, borrowed(own, others))),
        scale=scale,
    )


def _nothing(num_layers: int, has_head: bool) -> Patched:
    """A run that there cannot be."""
    missing, missing_L = np.array(math.nan), np.full(num_layers, math.nan)
    likely = missing if has_head else None
    return Patched(missing, likely, likely, missing_L, missing_L, missing_L)


def another(checkpoint: Checkpoint, prompts: Sequence[Prompt], index: int) -> Prompt:
    """The prompt before; the only one there is, with its context reversed; or with other tokens."""
    own, before = prompts[index], prompts[index - 1]
    if not np.array_equal(own.tokens, before.tokens):
        return before
    removed = np.setdiff1d(np.arange(len(own.tokens)), own.kept)
    tokens = own.tokens.copy()
    tokens[removed] = tokens[removed[::-1]]
    if np.array_equal(tokens, own.tokens):
        vocab_size = checkpoint.model.vocab_size
        tokens[removed] = (tokens[removed] + 1 + np.arange(len(removed))) % vocab_size
    return dataclasses.replace(own, tokens=tokens)


def borrowed(bank: Bank, other: Bank) -> Bank:
    """The other's patches, row by row from the start and over again, at the bank's positions."""
    rows_K = jnp.arange(bank.kept_K.shape[0]) % other.kept_K.shape[0]
    patches = jax.tree.map(lambda leaf: leaf[:, rows_K], other.patches)
    return dataclasses.replace(bank, patches=patches)


def conditioning(bank: Bank) -> dict[str, np.ndarray]:
    """The hardest patch of every layer: what ``Patched`` says of it, vectors (L,)."""
    found = [
        (
            jnp.max(layer.relative_change),
            math.nan if layer.max_gain_change is None else jnp.max(layer.max_gain_change),
            math.nan if layer.min_normalised is None else jnp.min(layer.min_normalised),
        )
        for layer in bank.conditioning
    ]
    names = ("relative_change", "max_scale_change", "min_normalised")
    return dict(zip(names, np.asarray(jax.device_get(found), np.float64).T, strict=True))


#: What ``measure_generation`` applies of a checkpoint's generation_config.json, or has a flag for.
APPLIED = ("repetition_penalty", "do_sample", "temperature", "max_length", "max_new_tokens")


def measure_generation(config: Settings, checkpoint: Checkpoint, prompt: Prompt) -> Generation:
    """The prompt continued with its context, without it, and without it from patched weights."""
    model, params = checkpoint.model, checkpoint.params
    drawn: dict[str, Any] = {
        "sampling": Sampling(
            config.temperature, repetition_penalty=checkpoint.generation.repetition_penalty or 1.0
        ),
        "key": jax.random.key(config.seed),
    }
    expected_N = generate(model, params, prompt.tokens, config.generate, **drawn)
    unpatched_N = generate(
        model,
        params,
        prompt.tokens[prompt.kept],
        config.generate,
        positions_T=prompt.kept,
        **drawn,
    )
    patched = patched_generate(
        model,
        params,
        prompt.tokens,
        prompt.kept,
        config.generate,
        output=config.output_patch,
        **drawn,
    )
    return Generation(
        expected_tokens=expected_N,
        patched_tokens=patched.tokens_N,
        unpatched_tokens=unpatched_N,
        agreement=np.asarray(token_agreement(expected_N, patched.tokens_N)),
        unpatched_agreement=np.asarray(token_agreement(expected_N, unpatched_N)),
        relative_error=patched.relative_error_N,
        kl=patched.kl_N,
        top1=patched.same_top1_N,
    )

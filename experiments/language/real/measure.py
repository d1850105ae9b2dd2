"""What is measured of one real model in one precision; every function returns a record."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.language.real.arrays import (
    ByLayer,
    Exactness,
    Generation,
    Growth,
    Parity,
    Right,
    Tasks,
    Texts,
    Writers,
)
from experiments.language.real.prompts import (
    QUESTIONS,
    TASKS,
    Removal,
    removal,
    stretch,
    task_prompts,
)
from icl_jax.blocks.functional import first_layers, functional
from icl_jax.checks import NumericalError
from icl_jax.descent.parameters import kernel_of
from icl_jax.dynamics.attribution import attribute_block
from icl_jax.dynamics.contributions import contribution_shares, remainder_share
from icl_jax.interop.huggingface import Checkpoint
from icl_jax.interop.tokenizer import Tokenizer
from icl_jax.language.ends import embed
from icl_jax.language.generation import (
    PatchedGeneration,
    generate,
    patched_generate,
    token_agreement,
)
from icl_jax.language.prompt import alone_logits, full_logits, patched_logits, prompt_patches
from icl_jax.measures.distributions import same_top1
from icl_jax.measures.function_space import relative_error
from icl_jax.patches.bank import Bank
from icl_jax.patches.extraction import Loop
from icl_jax.patches.output import OutputPolicy
from icl_jax.patches.prediction import check_open_loop, open_loop_growth, open_loop_rounding
from icl_jax.stack.run import forward

#: The policies that a model has weights for, without a norm on the MLP's output and with one.
PLAIN: tuple[OutputPolicy, ...] = ("auto",)
NORMED: tuple[OutputPolicy, ...] = ("auto", "scale", "balanced", "balanced+remainder")
#: Those that texts are written with.
WRITES = NORMED[:-1]


def policies(checkpoint: Checkpoint) -> tuple[OutputPolicy, ...]:
    """The policies that a model has weights for; ``auto`` first."""
    return NORMED if functional(checkpoint.model, checkpoint.params)[0][0].norms_output else PLAIN


def parity(checkpoint: Checkpoint, folder: Path, tokenizer: Tokenizer) -> Parity:
    """The logits of the questions here and in ``transformers``, where that is installed."""
    try:
        import torch
        from transformers import AutoModelForCausalLM
    except ImportError:
        return Parity(np.zeros(0))
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    errors = []
    for context, question in QUESTIONS[:4]:
        tokens_T = tokenizer.encode(context + question).tokens_T
        with torch.no_grad():
            want_TV = theirs(torch.as_tensor(tokens_T[None], dtype=torch.long)).logits[0].numpy()
        got_TV = full_logits(
            checkpoint.model, checkpoint.params, tokens_T, np.arange(len(tokens_T))
        )
        errors.append(float(relative_error(got_TV, jnp.asarray(want_TV))))
    return Parity(np.array(errors))


def exactness(checkpoint: Checkpoint, tokenizer: Tokenizer, lengths: Sequence[int]) -> Exactness:
    """The patched run beside the full one, per length, BOS, loop and policy, with its nulls."""
    rows: list[tuple[Any, ...]] = []
    for length in lengths:
        for keep_bos in (True, False):
            prompt = stretch(tokenizer, length, 4 if length < 100 else 16, keep_bos=keep_bos)
            other = Removal(prompt.tokens_T[::-1].copy(), prompt.kept_K)
            run = (checkpoint.model, checkpoint.params, prompt.tokens_T)
            want_KV = full_logits(*run, prompt.kept_K)
            others = _patches(checkpoint, other, "auto", "closed")
            unpatched = _error(alone_logits(*run, prompt.kept_K), want_KV)
            shuffled = _error(patched_logits(*run, others), want_KV)
            for loop in ("closed", "open"):
                for policy in policies(checkpoint):
                    bank = _patches(checkpoint, prompt, policy, loop)
                    got_KV = patched_logits(*run, bank)
                    growth = open_loop_growth(bank.conditioning)
                    rows.append(
                        (
                            length,
                            keep_bos,
                            loop,
                            policy,
                            _error(got_KV, want_KV),
                            float(jnp.mean(same_top1(want_KV, got_KV), dtype=jnp.float32)),
                            unpatched,
                            shuffled,
                            np.nan if growth is None else float(jnp.max(growth)),
                            loop == "open" and _refused(bank, checkpoint),
                        )
                    )
    return Exactness(*map(np.array, zip(*rows, strict=True)))


def by_layer(checkpoint: Checkpoint, tokenizer: Tokenizer, length: int) -> ByLayer:
    """The same through the first layers only, read out as logits: where errors come from."""
    prompt = stretch(tokenizer, length, 16, keep_bos=True)
    layers = len(checkpoint.model.blocks)
    depths = sorted({max(1, round(layers * part / 6)) for part in range(1, 7)})
    unpatched: list[float] = []
    errors: dict[str, list[float]] = {policy: [] for policy in policies(checkpoint)}
    for depth in depths:
        run = (*first_layers(checkpoint.model, checkpoint.params, depth), prompt.tokens_T)
        want_KV = full_logits(*run, prompt.kept_K)
        unpatched.append(_error(alone_logits(*run, prompt.kept_K), want_KV))
        for policy in policies(checkpoint):
            bank = prompt_patches(*run, prompt.kept_K, output=policy)
            errors[policy].append(_error(patched_logits(*run, bank), want_KV))
    by_policy = {policy: np.array(found) for policy, found in errors.items()}
    return ByLayer(np.array(depths), np.array(unpatched), by_policy)


def generation(
    checkpoint: Checkpoint, tokenizer: Tokenizer, num_prompts: int, num_tokens: int
) -> Generation:
    """Texts written with the context, without it, and without it from patched weights.

    All prompts side by side. And each of them twice, with the context: the control of what else the
    text of a patched run may part by, as it goes through every layer with two rows of each, too.
    """
    model, params = checkpoint.model, checkpoint.params
    asked = QUESTIONS[:num_prompts]
    prompts = [removal(tokenizer, context, question) for context, question in asked]
    tokens = [prompt.tokens_T for prompt in prompts]
    kept = [prompt.kept_K for prompt in prompts]
    expected = generate(model, params, tokens, num_tokens)
    without = [tokens_T[kept_K] for tokens_T, kept_K in zip(tokens, kept, strict=True)]
    alone = generate(model, params, without, num_tokens, positions_T=kept)
    twice = generate(model, params, [*tokens, *tokens], num_tokens)[: len(tokens)]

    texts: dict[str, Texts] = {}
    for policy in (one for one in policies(checkpoint) if one in WRITES):
        patched = _patched(checkpoint, tokens, kept, num_tokens, policy)
        rows = [
            (0.0, 0, 0.0, 0.0, np.nan)
            if one is None
            else (
                token_agreement(want_N, one.tokens_N),
                _same_until(want_N, one.tokens_N),
                token_agreement(again_N, one.tokens_N),
                float(np.mean(one.same_top1_N)),
                float(np.max(one.relative_error_N)),
            )
            for want_N, again_N, one in zip(expected, twice, patched, strict=True)
        ]
        texts[policy] = Texts(*map(np.array, zip(*rows, strict=True)))
    return Generation(
        question=np.array([question for _, question in asked]),
        expected=np.array([tokenizer.decode(tokens_N) for tokens_N in expected]),
        unpatched_agreement=_each(token_agreement, expected, alone),
        twice_agreement=_each(token_agreement, expected, twice),
        twice_until=_each(_same_until, expected, twice),
        policies=texts,
    )


def _patched(
    checkpoint: Checkpoint,
    tokens: Sequence[np.ndarray],
    kept: Sequence[np.ndarray],
    num_tokens: int,
    policy: OutputPolicy,
) -> list[PatchedGeneration | None]:
    """Texts side by side; None for one that the policy has no patches for.

    One such prompt ends a batch with an error, so the others are written again, half by half.
    """
    run = (checkpoint.model, checkpoint.params)
    try:
        found: list[PatchedGeneration | None] = patched_generate(
            *run, tokens, kept, num_tokens, output=policy
        )
    except NumericalError:  # Also of a patch that leaves the range: 1 / 0 in the dtype of the run.
        if len(tokens) == 1:
            return [None]
        half = len(tokens) // 2
        return [
            one
            for part in (slice(None, half), slice(half, None))
            for one in _patched(checkpoint, tokens[part], kept[part], num_tokens, policy)
        ]
    return found


def tasks(checkpoint: Checkpoint, tokenizer: Tokenizer, shown: int, asked: int) -> Tasks:
    """The answers that the context, its patches, and nothing get right; a task in one batch."""
    found = {}
    for task in TASKS:
        prompts, answers = zip(
            *task_prompts(tokenizer, task, shown=shown, asked=asked), strict=True
        )
        run = (checkpoint.model, checkpoint.params, [prompt.tokens_T for prompt in prompts])
        kept = [prompt.kept_K for prompt in prompts]
        logits = (
            full_logits(*run, kept),
            patched_logits(*run, prompt_patches(*run, kept)),
            alone_logits(*run, kept),
        )
        found[task] = Right(
            *(
                np.array(
                    [
                        int(jnp.argmax(logits_KV[-1])) == answer
                        for logits_KV, answer in zip(one, answers, strict=True)
                    ]
                )
                for one in logits
            )
        )
    return Tasks(found)


def growth(checkpoint: Checkpoint, tokenizer: Tokenizer, lengths: Sequence[int]) -> Growth:
    """How far a context moves the last token's MLP inputs, as it gets longer to the left."""
    whole = stretch(tokenizer, max(lengths) + 1, 1, keep_bos=True).tokens_T
    draw = np.random.default_rng(0)
    changes = []
    for length in lengths:
        context, last = whole[-length:-1], whole[-1:]
        both = []
        for tokens in (context, draw.permutation(context)):
            prompt = Removal(np.concatenate([whole[:1], tokens, last]), np.array([0, length]))
            bank = _patches(checkpoint, prompt, "auto", "closed")
            both.append(np.mean([float(one.relative_change[-1]) for one in bank.conditioning]))
        changes.append(both)
    return Growth(np.array(lengths) - 1, *np.array(changes).T)


def attribution(checkpoint: Checkpoint, tokenizer: Tokenizer, top: int = 8) -> Writers:
    """Which tokens of a context wrote the update of the question's last token, in layer L // 2.

    Of the gate or whatever else reads the MLP's input first; layers are counted from 0.
    """
    context, question = QUESTIONS[4]
    prompt = removal(tokenizer, context, question)
    layers = functional(checkpoint.model, checkpoint.params)
    half = len(layers) // 2
    block, params = layers[half]
    stream_TD = embed(checkpoint.model, checkpoint.params, jnp.asarray(prompt.tokens_T))
    stream_TD = forward(layers[:half], stream_TD)
    found = attribute_block(block, params, stream_TD, jnp.asarray(prompt.kept_K))
    last = type(found)(found.v_D[-1], found.contributions_ATD[-1], found.remainder_D[-1])
    kernel_DH = kernel_of(block, params)
    shares_T = np.asarray(jnp.sum(contribution_shares(last, kernel_DH), axis=0), np.float64)
    order = np.argsort(-np.abs(shares_T))[:top]
    names = [tokenizer.decode(prompt.tokens_T[index : index + 1]) for index in order]
    remainder = float(remainder_share(last, kernel_DH))
    return Writers(
        layer=np.array(half),
        question=np.array(question),
        tokens=np.array(names),
        shares=shares_T[order],
        even=np.array((1 - remainder) / (len(shares_T) - len(prompt.kept_K))),
        remainder=np.array(remainder),
        total=np.array(np.sum(shares_T) + remainder),
    )


#: Inside jit nobody refuses an open loop that would be noise: here that is what is measured.
_unrefused = jax.jit(prompt_patches, static_argnames=("model", "output", "loop"))


def _patches(checkpoint: Checkpoint, prompt: Removal, policy: OutputPolicy, loop: Loop) -> Bank:
    run = (checkpoint.model, checkpoint.params, prompt.tokens_T, prompt.kept_K)
    bank: Bank = _unrefused(*run, output=policy, loop=loop)
    return bank


def _refused(bank: Bank, checkpoint: Checkpoint) -> bool:
    """Whether a caller outside jit would be told not to use an open loop."""
    try:
        layers = functional(checkpoint.model, checkpoint.params)
        dtype = checkpoint.params["embedding"].dtype
        check_open_loop(bank.conditioning, open_loop_rounding(layers, dtype))
    except ValueError:
        return True
    return False


def _each(
    measure: Callable[[np.ndarray, np.ndarray], float],
    first: Sequence[np.ndarray],
    second: Sequence[np.ndarray],
) -> np.ndarray:
    """A number for each pair of texts."""
    return np.array([measure(one, other) for one, other in zip(first, second, strict=True)])


def _same_until(expected_N: np.ndarray, written_N: np.ndarray) -> int:
    """The first other token, or how many there are."""
    differs_N = np.flatnonzero(written_N != expected_N)
    return int(differs_N[0]) if len(differs_N) else len(expected_N)


def _error(actual_KV: Any, expected_KV: Any) -> float:
    return float(relative_error(actual_KV, expected_KV))

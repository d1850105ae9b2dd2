"""What is measured of one real model in one precision; every function returns plain numbers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.language.real.prompts import (
    QUESTIONS,
    TASKS,
    Removal,
    removal,
    stretch,
    task_prompts,
)
from icl_jax.blocks.functional import first_layers, functional
from icl_jax.dynamics.attribution import attribute_block, contribution_shares, remainder_share
from icl_jax.interop.huggingface import Checkpoint
from icl_jax.interop.tokenizer import Tokenizer
from icl_jax.language.ends import embed
from icl_jax.language.generation import generate, patched_generate, token_agreement
from icl_jax.language.prompt import alone_logits, full_logits, patched_logits, prompt_patches
from icl_jax.measures.distributions import same_top1
from icl_jax.measures.function_space import relative_error
from icl_jax.patches.bank import Bank, Loop
from icl_jax.patches.output import OutputPolicy
from icl_jax.patches.prediction import check_open_loop, open_loop_growth, open_loop_rounding
from icl_jax.stack.run import forward

Numbers = dict[str, Any]


def policies(checkpoint: Checkpoint) -> tuple[OutputPolicy, ...]:
    """The policies that a model has weights for; ``auto`` first."""
    normed = functional(checkpoint.model, checkpoint.params)[0][0].norms_output
    return ("auto", "scale", "balanced", "balanced+remainder") if normed else ("auto",)


def parity(checkpoint: Checkpoint, folder: Path, tokenizer: Tokenizer) -> Numbers | None:
    """The logits of the questions here and in ``transformers``; None where it is not installed."""
    try:
        import torch
        from transformers import AutoModelForCausalLM
    except ImportError:
        return None
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
    return {"largest_relative_error": max(errors), "prompts": len(errors)}


def exactness(
    checkpoint: Checkpoint, tokenizer: Tokenizer, lengths: Sequence[int]
) -> list[Numbers]:
    """The patched run beside the full one, per length, BOS, loop and policy, with its controls."""
    rows: list[Numbers] = []
    for length in lengths:
        for keep_bos in (True, False):
            prompt = stretch(tokenizer, length, 4 if length < 100 else 16, keep_bos=keep_bos)
            other = Removal(prompt.tokens_T[::-1].copy(), prompt.kept_K)
            run = (checkpoint.model, checkpoint.params, prompt.tokens_T)
            want_KV = full_logits(*run, prompt.kept_K)
            alone = _compared(alone_logits(*run, prompt.kept_K), want_KV)
            shuffled = _compared(
                patched_logits(*run, _patches(checkpoint, other, "auto", "closed")), want_KV
            )
            for loop in ("closed", "open"):
                for policy in policies(checkpoint):
                    bank = _patches(checkpoint, prompt, policy, loop)
                    growth = open_loop_growth(bank.conditioning)
                    rows.append(
                        {
                            "tokens": length,
                            "bos_kept": keep_bos,
                            "loop": loop,
                            "policy": policy,
                            **_compared(patched_logits(*run, bank), want_KV),
                            "alone": alone["relative_error"],
                            "another_context": shuffled["relative_error"],
                            "growth": None if growth is None else float(jnp.max(growth)),
                            "refused": loop == "open" and _refused(bank, checkpoint),
                        }
                    )
    return rows


def by_layer(checkpoint: Checkpoint, tokenizer: Tokenizer, length: int) -> list[Numbers]:
    """The same through the first layers only, read out as logits: where errors come from."""
    prompt = stretch(tokenizer, length, 16, keep_bos=True)
    layers = len(checkpoint.model.blocks)
    rows: list[Numbers] = []
    for depth in sorted({max(1, round(layers * part / 6)) for part in range(1, 7)}):
        run = (*first_layers(checkpoint.model, checkpoint.params, depth), prompt.tokens_T)
        want_KV = full_logits(*run, prompt.kept_K)
        row: Numbers = {"layers": depth}
        row["alone"] = _compared(alone_logits(*run, prompt.kept_K), want_KV)["relative_error"]
        for policy in policies(checkpoint):
            bank = prompt_patches(*run, prompt.kept_K, output=policy)
            row[policy] = _compared(patched_logits(*run, bank), want_KV)["relative_error"]
        rows.append(row)
    return rows


def generation(
    checkpoint: Checkpoint, tokenizer: Tokenizer, num_prompts: int, num_tokens: int
) -> list[Numbers]:
    """Texts written with the context, without it, and without it from patched weights."""
    model, params = checkpoint.model, checkpoint.params
    chosen = [policy for policy in policies(checkpoint) if policy != "balanced+remainder"]
    rows: list[Numbers] = []
    for context, question in QUESTIONS[:num_prompts]:
        prompt = removal(tokenizer, context, question)
        expected_N = generate(model, params, prompt.tokens_T, num_tokens)
        alone_N = generate(
            model,
            params,
            prompt.tokens_T[prompt.kept_K],
            num_tokens,
            positions_T=prompt.kept_K,
        )
        row: Numbers = {
            "question": question,
            "expected": tokenizer.decode(expected_N),
            "alone_agreement": token_agreement(expected_N, alone_N),
        }
        for policy in chosen:
            patched = patched_generate(
                model, params, prompt.tokens_T, prompt.kept_K, num_tokens, output=policy
            )
            differs_N = np.flatnonzero(patched.tokens_N != expected_N)
            row[policy] = {
                "agreement": token_agreement(expected_N, patched.tokens_N),
                # After the first other token two texts are two texts: what the patches answer for
                # are the logits of every step over the same tokens.
                "same_until": int(differs_N[0]) if len(differs_N) else num_tokens,
                "same_top1": float(np.mean(patched.same_top1_N)),
                "largest_relative_error": float(np.max(patched.relative_error_N)),
            }
        rows.append(row)
    return rows


def tasks(checkpoint: Checkpoint, tokenizer: Tokenizer, shown: int, asked: int) -> Numbers:
    """The share of answers that the context, its patches, and nothing get right."""
    found: Numbers = {}
    for task in TASKS:
        right: dict[str, list[bool]] = {"context": [], "patched": [], "nothing": []}
        for prompt, answer in task_prompts(tokenizer, task, shown=shown, asked=asked):
            run = (checkpoint.model, checkpoint.params, prompt.tokens_T)
            bank = prompt_patches(*run, prompt.kept_K)
            logits = {
                "context": full_logits(*run, prompt.kept_K),
                "patched": patched_logits(*run, bank),
                "nothing": alone_logits(*run, prompt.kept_K),
            }
            for name, logits_KV in logits.items():
                right[name].append(int(jnp.argmax(logits_KV[-1])) == answer)
        found[task] = {name: float(np.mean(hits)) for name, hits in right.items()}
        found[task]["questions"] = len(right["context"])
    return found


def growth(checkpoint: Checkpoint, tokenizer: Tokenizer, lengths: Sequence[int]) -> list[Numbers]:
    """How far a context moves the last token's MLP inputs, as it gets longer to the left."""
    whole = stretch(tokenizer, max(lengths) + 1, 1, keep_bos=True).tokens_T
    rows = []
    for length in lengths:
        tokens_T = np.concatenate([whole[:1], whole[-length:]])
        prompt = Removal(tokens_T, np.array([0, length]))
        bank = _patches(checkpoint, prompt, "auto", "closed")
        changes = [float(one.relative_change[-1]) for one in bank.conditioning]
        rows.append({"context": length - 1, "mean_relative_change": float(np.mean(changes))})
    return rows


def attribution(checkpoint: Checkpoint, tokenizer: Tokenizer, top: int = 8) -> Numbers:
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
    kernel_DH = params["mlp"][block.module.mlp.input_kernels[0]]["kernel"]
    shares_T = np.asarray(jnp.sum(contribution_shares(last, kernel_DH), axis=0), np.float64)
    order = np.argsort(-np.abs(shares_T))[:top]
    names = [tokenizer.decode(prompt.tokens_T[index : index + 1]) for index in order]
    remainder = float(remainder_share(last, kernel_DH))
    return {
        "layer": half,
        "question": question,
        "tokens": [
            {"token": name, "share": float(shares_T[index])}
            for name, index in zip(names, order, strict=True)
        ],
        "remainder_share": remainder,
        "sum": float(np.sum(shares_T)) + remainder,
    }


def means(rows: Sequence[Mapping[str, Any]], policy: str) -> Numbers:
    """What generation found, over the prompts."""
    found = [row[policy] for row in rows]
    return {
        "agreement": float(np.mean([one["agreement"] for one in found])),
        "identical_texts": float(np.mean([one["agreement"] == 1 for one in found])),
        "same_top1": float(np.mean([one["same_top1"] for one in found])),
        "largest_relative_error": max(one["largest_relative_error"] for one in found),
    }


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


def _compared(actual_KV: Any, expected_KV: Any) -> Numbers:
    same_K = same_top1(expected_KV, actual_KV)
    return {
        "relative_error": float(relative_error(actual_KV, expected_KV)),
        "same_top1": float(jnp.mean(same_K, dtype=jnp.float32)),
    }

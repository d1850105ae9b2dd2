"""The first prompt's last position as weights on disk, and whether other programs agree.

Such a file is exact for one thing, the token after the kept ones: every layer has one set of
weights, made for the last position. What it does at the earlier positions and to the tokens that
follow is measured beside it.

``transformers`` and ``peft`` are asked where they are installed; else the files are read back with
this library and the report says so.
"""

import importlib.util
import shutil
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.language.checkpoint.arrays import Exported
from experiments.tools.conduct import note_measurement
from icl_jax.dims import Params
from icl_jax.interop.huggingface import Checkpoint, load
from icl_jax.interop.spans import Prompt
from icl_jax.language.ends import room
from icl_jax.language.generation import generate, token_agreement
from icl_jax.language.prompt import alone_logits, full_logits
from icl_jax.measures.function_space import relative_error
from icl_jax.patches.output import OutputPolicy
from icl_jax.pretrained.export import export_prompt
from icl_jax.records import Run, WorkdirError

#: Tokens that are written after the kept ones to see how far a file reaches.
FOLLOWING = 12

ExportFormat = Literal["none", "peft", "checkpoint"]
FORMS: tuple[ExportFormat, ...] = ("checkpoint", "peft")


def export(
    form: ExportFormat, checkpoint: Checkpoint, prompt: Prompt, run: Run, output: OutputPolicy
) -> None:
    """Writes the weights into the run's folder and measures them, where that is not yet done."""
    if form == "none" or run.has(_file(form)):
        return
    model, params = checkpoint.model, checkpoint.params
    folder = run.path("adapter" if form == "peft" else "checkpoint")
    shutil.rmtree(folder, ignore_errors=True)  # Half of an export that was killed.
    weights = export_prompt(form, checkpoint, prompt, folder, output)
    expected_KV = full_logits(model, params, prompt.tokens, prompt.kept)
    expected_V = expected_KV[-1]
    kept_tokens = prompt.tokens[prompt.kept]
    positions = np.arange(len(kept_tokens))
    patched_params = weights.params
    if form == "checkpoint":
        patched_params = load(folder, dtype=params["embedding"].dtype).params
    actual_KV = alone_logits(model, patched_params, kept_tokens, positions)
    unpatched_KV = alone_logits(model, params, kept_tokens, positions)
    actual_V, unpatched_V = actual_KV[-1], unpatched_KV[-1]
    numbers: dict[str, Any] = {
        "logit_error": relative_error(actual_V, expected_V),
        "unpatched_logit_error": relative_error(unpatched_V, expected_V),
    }
    earlier = len(kept_tokens) > 1
    for name, logits_KV in (("", actual_KV), ("unpatched_", unpatched_KV)):
        numbers[f"{name}earlier_logit_error"] = (
            relative_error(logits_KV[:-1], expected_KV[:-1]) if earlier else None
        )
    numbers |= _following(checkpoint, patched_params, prompt)
    numbers["other_logit_error"] = None
    needed = ("torch", "transformers") + (("peft",) if form == "peft" else ())
    if all(importlib.util.find_spec(name) for name in needed) and model.head != "none":
        adapter = folder if form == "peft" else None
        base = checkpoint.folder if form == "peft" else folder
        logits_V = _transformers_logits(base, adapter, kept_tokens, str(expected_V.dtype))
        other = relative_error(jnp.asarray(logits_V, expected_V.dtype), expected_V)
        numbers["other_logit_error"] = other
    numbers = {k: float(v) if isinstance(v, jax.Array) else v for k, v in numbers.items()}
    exported = Exported(form, folder.name, prompt.name, **numbers)
    run.save_json(_file(form), exported.told())
    note_measurement(run)


def _following(checkpoint: Checkpoint, patched: Params, prompt: Prompt) -> dict[str, float | None]:
    """How many of the next greedy tokens the patched and the original weights write alike."""
    model, kept_tokens = checkpoint.model, prompt.tokens[prompt.kept]
    names = ("following_agreement", "unpatched_following_agreement")
    most = room(model)
    fits = most is None or most - len(prompt.tokens) >= FOLLOWING
    writes = model.head != "none" and all(b.contextual_layer.has_memory for b in model.blocks)
    if not writes or not fits or prompt.kept[-1] != len(prompt.tokens) - 1:
        return dict.fromkeys(names)
    expected_N = generate(model, checkpoint.params, prompt.tokens, FOLLOWING)
    return {
        name: token_agreement(expected_N, generate(model, params, kept_tokens, FOLLOWING))
        for name, params in zip(names, (patched, checkpoint.params), strict=True)
    }


def all_exports(run: Run) -> list[Exported]:
    """What the exports of all calls into this folder gave.

    Raises:
      WorkdirError: another version measured what is there.
    """
    return [_read(run, form) for form in FORMS if run.has(_file(form))]


def _read(run: Run, form: ExportFormat) -> Exported:
    try:
        return Exported.read(run.load_json(_file(form)))
    except ValueError as error:
        raise WorkdirError(f"{run.path(_file(form))}: {error}") from error


def _file(form: ExportFormat) -> str:
    return f"export-{form}.json"


def _transformers_logits(base: Any, adapter: Any, tokens_K: np.ndarray, dtype: str) -> np.ndarray:
    """The last position's logits (V,) as transformers, with peft for an adapter, computes them."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype))
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        logits = model.eval()(torch.as_tensor(tokens_K[None], dtype=torch.long)).logits
    found: np.ndarray = logits[0, -1].to(torch.float64).numpy()
    return found

"""A prompt's last kept position as weights in files."""

from pathlib import Path
from typing import Literal

from icl_jax.interop.huggingface import Checkpoint
from icl_jax.interop.peft import adapter_policy, save_adapter
from icl_jax.interop.saving import save
from icl_jax.interop.spans import Prompt
from icl_jax.language.weights import PromptWeights, prompt_weights
from icl_jax.patches.output import OutputPolicy

#: A checkpoint of the whole model, or a LoRA adapter of rank 1.
Form = Literal["checkpoint", "peft"]
FORMS = ("checkpoint", "peft")


def export_prompt(
    form: Form,
    checkpoint: Checkpoint,
    prompt: Prompt,
    folder: str | Path,
    output: OutputPolicy = "auto",
) -> PromptWeights:
    """Writes the weights with which the kept tokens alone have the next token of the whole prompt.

    Exact for the last kept position, numbered from 0 like the others; not for earlier positions,
    and not for what is written after the next token.

    Args:
      form: ``checkpoint``, with the tokenizer's files, or ``peft``.
      checkpoint: of the model.
      prompt: what to keep of it, and what to remove.
      folder: to make; one that is there must be empty.
      output: which weight carries the residual change; an adapter has its own policy.

    Returns:
      The weights that were written.

    Raises:
      ValueError: a position without a patch, or a model that the form cannot hold.
      FileExistsError: the folder has something in it.
    """
    if form == "peft":
        output = adapter_policy(checkpoint)
    run = (checkpoint.model, checkpoint.params)
    weights = prompt_weights(*run, prompt.tokens, prompt.kept, output=output)
    if form == "peft":
        save_adapter(folder, checkpoint, weights.patches)
    else:
        tokenizer = checkpoint.folder
        save(folder, checkpoint.model, weights.params, checkpoint.config, tokenizer=tokenizer)
    return weights

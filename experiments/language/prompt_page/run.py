"""Which tokens of this prompt wrote the update, layer by layer and head by head?

Makes one HTML file of a prompt: every context token coloured by its share of the weight update of a
target token, exact, without gradients. Mouse, finger or arrow keys give the numbers; target, layer,
head and kernel are chosen on the page, which fetches nothing.

    python -m experiments.checkpoint --make_tiny=llama --workdir=tiny
    python -m experiments.prompt_page --checkpoint=tiny --text="..." \\
        --workdir=runs/page

Targets are the last --num_targets tokens. Each is kept alone, with the first --front tokens of the
prompt (where models park the attention that they do not need); everything else before it is the
context. --remove=TEXT makes a part of the text the context instead, and keeps the rest.

Half a minute on 2 cores for a tiny model; for SmolLM2 135M and a prompt of 51 tokens 34 seconds of
processor time, and a page of 1.2 MB. Expected there: shares and remainder add up to 1 to 2e-7, the
remainder is 2% of the update in the median and none at the output; a target alone, with patched
weights, gives its logits with the context to 1e-6, without patches not at all (2.2, relative).
"""

from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from experiments.language.prompt_page.measure import Arrays, measure
from experiments.language.prompt_page.page import summarise, write
from experiments.language.room import check_room
from experiments.tools.conduct import Outcome, measured, start
from experiments.tools.flags import UsageError, launch, option
from icl_jax import checks
from icl_jax.language.attribution import attributable
from icl_jax.pretrained.pretrained import Pretrained, load

#: What a page may hold: more would be slow to open and to print.
MOST_NUMBERS = 8_000_000


@dataclass(frozen=True)
class Config:
    """Which model, which prompt, which tokens."""

    checkpoint: str = option("", "folder or hub name of a checkpoint (required)")
    text: str = option("", "the prompt (required)")
    remove: str = option("", "part of the text that is the context; empty: all before a target")
    num_targets: int = option(4, "last tokens to choose the target from")
    front: int = option(1, "first tokens that always stay; 0 for none")
    offline: bool = option(False, "look for a hub name in the cache only")

    def __post_init__(self) -> None:
        checks.positive_int("prompt_page", "num_targets", self.num_targets)
        if self.front < 0:
            raise ValueError(f"prompt_page: front must be 0 or more, got {self.front}.")
        if self.remove and self.remove not in self.text:
            raise ValueError(
                f"prompt_page: remove={self.remove[:60]!r} is not in text. Give a part of it, word "
                "for word."
            )


def prepare(config: Config) -> tuple[Pretrained, np.ndarray, list[int], list[list[int]]]:
    """Model, tokens, targets and what stays beside each, before anything long begins.

    Raises:
      UsageError: something is missing, cannot be read, or leaves nothing to attribute.
    """
    for flag in ("checkpoint", "text"):
        if not getattr(config, flag):
            raise UsageError(f"--{flag} is missing.")
    try:
        pretrained = load(config.checkpoint, dtype=jnp.float32, offline=config.offline)
        prompt = pretrained.prompt(config.text, remove=config.remove or None)
    except (ValueError, OSError, ImportError) as error:
        raise UsageError(str(error)) from error
    model = pretrained.model
    if model.head == "none":
        raise UsageError(f"--checkpoint: {pretrained.name} has no head, so no next token to show.")
    names = attributable(model)
    if not all(block.contextual_layer.is_sum for block in model.blocks) or not names:
        raise UsageError(
            f"--checkpoint: not every layer of {pretrained.name} is a sum over heads and tokens; "
            "choose a model of plain attention layers."
        )
    tokens_T = np.asarray(prompt.tokens)
    check_room("--text", model, len(tokens_T))
    stays = set(prompt.kept.tolist()) if config.remove else set()
    stays |= set(range(min(config.front, len(tokens_T))))
    first_removed = min(set(range(len(tokens_T))) - stays, default=len(tokens_T))
    asked = sorted(stays) if config.remove else range(len(tokens_T))
    targets = [position for position in asked if position > first_removed][-config.num_targets :]
    if not targets:
        raise UsageError(
            f"--text: its {len(tokens_T)} tokens leave no token with a context in front of it. "
            "Give a longer text, a smaller --front, or a --remove that does not stand at the end."
        )
    layers = len(model.blocks)
    heads = max(block.contextual_layer.num_heads for block in model.blocks)
    numbers = len(targets) * layers * heads * len(tokens_T) * len(names)
    if numbers > MOST_NUMBERS:
        raise UsageError(
            f"--num_targets={config.num_targets}: a page of {len(targets)} targets x {layers} "
            f"layers x {heads} heads x {len(tokens_T)} tokens x {len(names)} kernels has "
            f"{numbers:,} numbers, more than {MOST_NUMBERS:,}. Ask for fewer targets, or give a "
            "shorter text."
        )
    kept = [sorted({one for one in stays if one < target} | {target}) for target in targets]
    return pretrained, tokens_T, targets, kept


def run(config: Config, workdir: Path) -> Outcome:
    """Takes the updates apart, or reads them back; writes the page."""
    pretrained, tokens_T, targets, kept = prepare(config)
    records = start(workdir, "prompt_page", config)
    arrays = measured(
        records,
        Arrays,
        lambda: measure(pretrained, tokens_T, targets, kept),
        names={"shares": attributable(pretrained.model)},
    )
    summary = summarise(arrays)
    records.save_json("summary.json", summary)
    print(f"Page: {write(records, pretrained, config.remove, arrays)}")
    return Outcome(summary, [])


if __name__ == "__main__":
    launch(Config, run, __doc__)

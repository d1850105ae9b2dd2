"""What the verbs of a loaded model give: arrays, and the text that they mean."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jax
import numpy as np

from icl_jax.dims import Array
from icl_jax.interop.tokenizer import Tokenizer
from icl_jax.language.generation import PatchedGeneration, token_agreement
from icl_jax.language.weights import PromptWeights
from icl_jax.measures.function_space import relative_error
from icl_jax.shown import brief

#: How the three runs are called where people read.
LABELS = {"full": "with all of it", "patched": "patched, without", "alone": "without"}


def piece(tokenizer: Tokenizer | None, token: int) -> str:
    """One token as text; its id without a tokenizer."""
    return f"#{token}" if tokenizer is None else tokenizer.decode([token], skip_special=False)


@dataclass(frozen=True)
class Logits:
    """Logits at the kept positions of a prompt, in up to three runs.

    Attributes:
      full_KV: (K, V), everything is there.
      patched_KV: (K, V), the kept tokens alone, patched; None where nothing is removed.
      alone_KV: (K, V), the kept tokens alone; None likewise.
      tokenizer: for ``top``.
    """

    full_KV: Array
    patched_KV: Array | None = None
    alone_KV: Array | None = None
    tokenizer: Tokenizer | None = field(default=None, repr=False)

    def top(self, count: int = 5, *, run: str = "full", row: int = -1) -> list[tuple[str, float]]:
        """The most probable next tokens of a run, as text with their probability.

        Args:
          count: how many.
          run: ``full``, ``patched`` or ``alone``.
          row: of the kept positions; the last one by default.

        Raises:
          ValueError: no such run here.
        """
        logits_KV = getattr(self, f"{run}_KV", None) if run in LABELS else None
        if logits_KV is None:
            there = [name for name in LABELS if getattr(self, f"{name}_KV") is not None]
            raise ValueError(f"Logits.top: run must be one of {', '.join(there)}, got {run!r}.")
        chances_V = jax.nn.softmax(logits_KV[row].astype(np.float32))
        chances_N, tokens_N = jax.device_get(jax.lax.top_k(chances_V, count))
        return [
            (piece(self.tokenizer, int(token)), float(chance))
            for token, chance in zip(tokens_N, chances_N, strict=True)
        ]

    def __repr__(self) -> str:
        lines = [f"Logits({brief(self.full_KV)}; next token"]
        for run, label in LABELS.items():
            logits_KV = getattr(self, f"{run}_KV")
            if logits_KV is None:
                continue
            likely = "  ".join(f"{text!r} {chance:.3f}" for text, chance in self.top(4, run=run))
            error = "" if run == "full" else f"  (relative error {self._error(logits_KV):.1e})"
            lines.append(f"  {label + ':':<18}{likely}{error}")
        return "\n".join(lines) + ")"

    def _error(self, logits_KV: Array) -> float:
        return float(relative_error(logits_KV[-1], self.full_KV[-1]))


@dataclass(frozen=True)
class Written:
    """What one run wrote.

    Attributes:
      text: without special tokens; token ids without a tokenizer.
      tokens_N: (N,), the new token ids, a stop token at the end included.
    """

    text: str
    tokens_N: np.ndarray

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Written({self.text!r}, {len(self.tokens_N)} tokens)"


@dataclass(frozen=True)
class Generated:
    """What follows a prompt, in up to three runs.

    Attributes:
      full: everything is there.
      patched: the kept tokens alone, patched at every token; None where nothing is removed.
      alone: the kept tokens alone; None likewise.
      measured: of the patched run: how close each step's logits were, and its bank.
      activations: name -> (T + N - 1, ...), what was captured in the run with everything.
      not_applied: ``name = value`` of each setting of the checkpoint's generation_config.json that
        would have changed the text and was not applied.
    """

    full: Written
    patched: Written | None = None
    alone: Written | None = None
    measured: PatchedGeneration | None = None
    activations: Mapping[str, Array] = field(default_factory=dict)
    not_applied: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """What the run with everything wrote."""
        return self.full.text

    def __repr__(self) -> str:
        lines = ["Generated("]
        for run, label in LABELS.items():
            written = getattr(self, run)
            if written is None:
                continue
            same = ""
            if run != "full":
                share = token_agreement(self.full.tokens_N, written.tokens_N)
                same = f"  ({share:.0%} of the tokens)"
            lines.append(f"  {label + ':':<18}{written.text!r}{same}")
        if self.activations:
            lines.append(f"  activations: {brief(dict(self.activations))}")
        if self.not_applied:
            lines.append(f"  generation_config.json, not applied: {', '.join(self.not_applied)}")
        return "\n".join(lines) + ")"


@dataclass(frozen=True)
class Attributed:
    """Who wrote the update of a kept position, in every layer.

    Attributes:
      shares_LAT: (L, A, T), the signed share of every head and removed token in the input factor;
        zero at kept tokens. With the remainder they add up to 1 in a layer.
      remainder_L: (L,), what the change of a norm's denominator accounts for, and no token.
      texts: of every token.
    """

    shares_LAT: Array
    remainder_L: Array
    texts: Sequence[str]

    def top(self, count: int = 5, *, layer: int | None = None) -> list[tuple[str, float]]:
        """The tokens with the largest shares, with them, in the order of the prompt.

        Args:
          count: how many.
          layer: of which layer; the mean over all layers by default.
        """
        shares_LT = np.asarray(self.shares_LAT, np.float32).sum(axis=1)
        shares_T = shares_LT.mean(axis=0) if layer is None else shares_LT[layer]
        chosen = np.sort(np.argsort(-np.abs(shares_T), kind="stable")[:count])
        return [(self.texts[token], float(shares_T[token])) for token in chosen]

    def __repr__(self) -> str:
        depth, heads, length = self.shares_LAT.shape
        likely = "  ".join(f"{text!r} {share:+.2f}" for text, share in self.top(6))
        return (
            f"Attributed({length} tokens, {heads} heads, {depth} layers; mean share in the update\n"
            f"  {likely}  norm's remainder {float(np.mean(self.remainder_L)):+.2f})"
        )


@dataclass(frozen=True)
class Exported:
    """A prompt as weights in a folder.

    Attributes:
      folder: with the files.
      form: ``checkpoint`` or ``peft``.
      weights: what was written.
      relative_error: of the last kept token's logits, the kept tokens alone with these weights
        against everything there.
    """

    folder: Path
    form: str
    weights: PromptWeights = field(repr=False)
    relative_error: float

    def __repr__(self) -> str:
        return (
            f"Exported({self.form} in {self.folder}: exact for the next token after the kept ones, "
            f"relative error {self.relative_error:.1e}; not for what is written after it)"
        )

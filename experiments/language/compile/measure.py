"""What a compiled context is worth: beside no context, the full one, and its rivals."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.language.compile.arrays import Heard
from experiments.language.compile.sides import Lessons, Patches
from icl_jax.dims import Params
from icl_jax.interop.huggingface import Checkpoint
from icl_jax.language.compile import static_logits
from icl_jax.language.prompt import full_logits
from icl_jax.measures.distributions import kl_divergence, same_top1


@dataclass(frozen=True)
class Audience:
    """Queries, with their logits when the context is there.

    Attributes:
      checkpoint: the model.
      lessons: whose context it is.
      queries: token ids of each.
      first: the first token of each whose next token is compared.
      full: logits of each with the context in front.
    """

    checkpoint: Checkpoint
    lessons: Lessons
    queries: Sequence[np.ndarray]
    first: Sequence[int]
    full: Sequence[Any]

    @property
    def _rows(self) -> list[np.ndarray]:
        lead = int(self.lessons.bos is not None)
        pairs = zip(self.queries, self.first, strict=True)
        return [np.arange(lead + first, lead + len(one)) for one, first in pairs]

    def hear(self, *, patches: Patches | None = None, params: Params | None = None) -> Heard:
        """The queries alone: by the plain model, by patches, or by other parameters."""
        texts = [self.lessons.without(one) for one in self.queries]
        model = self.checkpoint.model
        if patches is not None:
            found = static_logits(model, self.checkpoint.params, texts, self._rows, patches)
        else:
            params = self.checkpoint.params if params is None else params
            found = full_logits(model, params, texts, self._rows)
        pairs = list(zip(self.full, found, strict=True))
        kl = [float(jnp.mean(kl_divergence(full, one))) for full, one in pairs]
        top1 = [float(jnp.mean(same_top1(full, one), dtype=jnp.float32)) for full, one in pairs]
        return Heard(np.asarray(kl), np.asarray(top1))


def audience(
    checkpoint: Checkpoint,
    lessons: Lessons,
    queries: Sequence[np.ndarray],
    first: Sequence[int],
) -> Audience:
    """Runs the queries with the context in front.

    Args:
      checkpoint: the model.
      lessons: with the context.
      queries: token ids of each, as it follows the context.
      first: how many of each one's tokens are only read.
    """
    behind = [lessons.behind(one) for one in queries]
    made = Audience(checkpoint, lessons, queries, first, ())
    rows = [one + lessons.shift for one in made._rows]
    full = full_logits(checkpoint.model, checkpoint.params, behind, rows)
    return Audience(checkpoint, lessons, queries, first, full)

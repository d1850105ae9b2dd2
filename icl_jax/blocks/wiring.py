"""What stands where in a block: the skips and the norms, as one record per wiring.

no_skip        z = A(x)                         out = M(z)               (Dherin et al., v1)
skip           h = x + A(x)         z = h       out = h + M(z)
pre_norm       h = x + A(N1 x)      z = N2 h    out = h + M(z)           (GPT-2, Llama, ...)
post_norm      h = N1(x + A(x))     z = h       out = N2(h + M(z))       (BERT)
parallel       h = x + A(N1 x)      z = N1 x    out = h + M(z)           (GPT-J, Falcon, ...)
sandwich       h = x + N1'(A(N1 x)) z = N2 h    out = h + N2'(M(z))      (Gemma 2 and 3)
reordered_norm h = x + N1'(A(x))    z = h       out = h + N2'(M(z))      (OLMo 2)
mixer          h = x                z = A(N1 x) out = h + M(z)           (Mamba 2)

A parallel block with separate norms reads ``z = N2 x`` (GPT-NeoX). In a mixer the context reaches
the stream through the MLP alone, which may be one linear map; ``A`` may give a width of its own.
"""

from dataclasses import dataclass
from typing import Literal

WiringName = Literal[
    "no_skip", "skip", "pre_norm", "post_norm", "parallel", "sandwich", "reordered_norm", "mixer"
]
#: What the MLP reads: the stream after the contextual layer, the block's input (parallel), or what
#: the contextual layer gives, which then is not added to the stream (mixer).
MlpReads = Literal["stream", "input", "mixed"]


@dataclass(frozen=True)
class Wiring:
    """Where a block has skips and norms.

    Attributes:
      skips: whether a residual stream goes around the contextual layer and the MLP.
      norms_read: ``N1`` before the contextual layer.
      norms_mixed: ``N1'`` on what the contextual layer gives, before it is added.
      norms_sum: ``N1`` on the stream after the contextual layer, and ``N2`` on it after the MLP.
      norms_mlp_input: ``N2`` before the MLP (``N1``, where a parallel block shares it).
      norms_mlp_output: ``N2'`` on what the MLP gives, before it is added.
      mlp_reads: see ``MlpReads``.
    """

    skips: bool = True
    norms_read: bool = False
    norms_mixed: bool = False
    norms_sum: bool = False
    norms_mlp_input: bool = False
    norms_mlp_output: bool = False
    mlp_reads: MlpReads = "stream"

    @property
    def reads_context(self) -> bool:
        """Whether the MLP's input depends on the context."""
        return self.mlp_reads != "input"

    @property
    def adds_mixed(self) -> bool:
        """Whether what the contextual layer gives is added to the residual stream."""
        return self.skips and self.mlp_reads != "mixed"

    @property
    def has_norm_before_mlp(self) -> bool:
        """Whether a norm stands between the contextual layer and the MLP's input."""
        between = self.norms_mixed or self.norms_sum or self.norms_mlp_input
        return self.reads_context and between


WIRINGS: dict[WiringName, Wiring] = {
    "no_skip": Wiring(skips=False),
    "skip": Wiring(),
    "pre_norm": Wiring(norms_read=True, norms_mlp_input=True),
    "post_norm": Wiring(norms_sum=True),
    "parallel": Wiring(norms_read=True, norms_mlp_input=True, mlp_reads="input"),
    "sandwich": Wiring(
        norms_read=True, norms_mixed=True, norms_mlp_input=True, norms_mlp_output=True
    ),
    "reordered_norm": Wiring(norms_mixed=True, norms_mlp_output=True),
    "mixer": Wiring(norms_read=True, mlp_reads="mixed"),
}

"""Every prefix of a context in one pass, and every suffix.

In a causal model the context tokens never see the query, so one pass over the context serves all
prefixes: the query runs beside it as a second stream of N + 1 probes, the i-th reading ``c_1..c_i``
and itself, at position i. The work is that of one pass over 2N tokens in place of N + 1 passes.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from icl_jax import checks
from icl_jax.dims import Array, Params
from icl_jax.sharding import constrain
from icl_jax.shown import short
from icl_jax.stack.block import ContextualBlock, Midpoint, apply_block
from icl_jax.stack.fold import fold
from icl_jax.stack.layers import Layers, PerLayer
from icl_jax.stack.run import check_run, forward


class PrefixBlock(ContextualBlock, Protocol):
    """A contextual block that can put a probe after every prefix (and suffix) at once."""

    @property
    def causal(self) -> bool:
        """Whether position t reads positions up to t only."""

    def prefixes(
        self, params: Params, context_ND: Array, probes_MD: Array, *, positions_M: Array
    ) -> tuple[Midpoint, Midpoint]:
        """Midpoints of the context (N) and of the probes (M = N + 1)."""

    def suffixes(
        self, params: Params, context_ND: Array, query_D: Array, *, positions_T: Array
    ) -> Midpoint:
        """Midpoints (M) of the query after ``c_{i+1}..c_N``, i = 0..N."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PrefixPass:
    """The query after every prefix, in every layer.

    Attributes:
      full: per layer, the midpoint of the probes (M, D); row i has read ``c_1..c_i``.
      kept: per layer, what the midpoint would be had the contextual layer seen the probe alone;
        with ``full`` it is all that a token patch needs (the patches of ``loop="open"``).
      output_MD: (M, D), the stack's output at the query after each prefix.

    Examples:
      >>> stack = build_stack(StackConfig(width=8, num_heads=2, hidden_widths=(16,), depth=3))
      >>> tokens = jax.random.normal(jax.random.key(0), (6, 3))
      >>> params = stack.init(jax.random.key(1), tokens)["params"]
      >>> stream = stack.apply({"params": params}, tokens, method="embed")
      >>> found = prefix_pass(functional(stack, params), stream[:5], stream[5])
      >>> full, kept = found.full[0].mlp_input_TD, found.kept[0].mlp_input_TD  # of the first layer
      >>> full.shape, bool(jnp.allclose(full[0], kept[0], atol=1e-6))  # nothing read yet
      ((6, 8), True)
    """

    full: PerLayer[Midpoint]
    kept: PerLayer[Midpoint]
    output_MD: Array

    __repr__ = short


def prefix_pass(layers: Layers, context_ND: Array, query_D: Array) -> PrefixPass:
    """Runs the query after every prefix of the context, the empty one included; one program.

    Args:
      layers: the stack; all layers causal, unless there is only one.
      context_ND: (N, D), embedded context tokens, at positions 0..N-1.
      query_D: (D,), the embedded query; after ``c_1..c_i`` it stands at position i.

    Returns:
      The midpoints and outputs of all M = N + 1 probes.

    Raises:
      ValueError: shapes that do not match, or a layer that is not causal in a deeper stack: there
        the context's own states depend on the query.

    Examples:
      >>> stack = build_stack(StackConfig(width=8, num_heads=2, hidden_widths=(16,)))
      >>> tokens = jax.random.normal(jax.random.key(0), (6, 3))
      >>> params = stack.init(jax.random.key(1), tokens)["params"]
      >>> layers = functional(stack, params)
      >>> stream = stack.apply({"params": params}, tokens, method="embed")
      >>> passed = prefix_pass(layers, stream[:5], stream[5])
      >>> passed.output_MD.shape  # after 0, 1, ..., 5 tokens
      (6, 8)
      >>> bool(jnp.allclose(passed.output_MD[5], forward(layers, stream)[5], atol=1e-5))
      True

    Source: Dherin et al. 2025 (arXiv 2507.16003), Proposition 3.1, asks for ``A(C_i, x)`` at every
      i; that one pass gives them all is worked out for this library.
    """
    checks.rank("prefix_pass", "context_ND", context_ND, 2, "(N, D)")
    checks.rank("prefix_pass", "query_D", query_D, 1, "(D)")
    checks.axis_size("prefix_pass", "query_D", query_D, 0, context_ND.shape[1], "D")
    num_prefixes = context_ND.shape[0] + 1
    probes_MD = jnp.broadcast_to(query_D[None, :], (num_prefixes, query_D.shape[0]))
    return probe_pass(layers, context_ND, probes_MD)


def probe_pass(layers: Layers, context_ND: Array, probes_MD: Array) -> PrefixPass:
    """As ``prefix_pass``, with a query of its own after every prefix.

    With the next example as the query after each prefix, one pass asks for every label of a prompt
    before it is shown: what a learner is trained on by Garg et al. 2022 (arXiv 2208.01066).

    Args:
      layers, context_ND: as for ``prefix_pass``.
      probes_MD: (M, D), the i-th reads ``c_1..c_i`` and itself, M = N + 1.

    Raises:
      ValueError: as ``prefix_pass``.

    Examples:
      >>> stack = build_stack(StackConfig(width=8, num_heads=2, hidden_widths=(16,), depth=3))
      >>> tokens = jax.random.normal(jax.random.key(0), (6, 3))
      >>> params = stack.init(jax.random.key(1), tokens)["params"]
      >>> layers = functional(stack, params)
      >>> stream = stack.apply({"params": params}, tokens, method="embed")
      >>> found = probe_pass(layers, stream[:5], stream)  # each token asked after those before it
      >>> bool(jnp.allclose(found.output_MD, forward(layers, stream), atol=1e-5))
      True
    """
    check_run("probe_pass", layers, probes_MD)
    checks.rank("probe_pass", "context_ND", context_ND, 2, "(N, D)")
    num_prefixes = context_ND.shape[0] + 1
    checks.axis_size("probe_pass", "probes_MD", probes_MD, 0, num_prefixes, "N + 1")
    blocks: tuple[Any, ...] = layers.blocks
    if len(blocks) > 1 and not all(block.causal for block in blocks):
        raise ValueError(
            "prefix_pass: a stack of several blocks needs causal contextual layers: in others the "
            "context's states depend on the query, so no two prefixes share work. Use "
            "prefix_outputs_by_reruns."
        )
    return _probe_pass(layers, context_ND, probes_MD)


@jax.jit
def _probe_pass(layers: Layers, context_ND: Array, probes_MD: Array) -> PrefixPass:
    positions_M = jnp.arange(probes_MD.shape[0], dtype=jnp.int32)

    def step(
        block: Any, params: Params, state: tuple[Array, Array], _: None
    ) -> tuple[tuple[Array, Array], tuple[Midpoint, Midpoint]]:
        context_ND, probes_MD = state
        context, probes = block.prefixes(params, context_ND, probes_MD, positions_M=positions_M)
        kept = lone_midpoints(block, params, probes_MD, positions_M)
        state = (apply_block(block, params, context), apply_block(block, params, probes))
        return state, (probes, kept)

    # A long context is divided where the mesh that is set has an axis for it.
    start = (constrain(context_ND, leading="N"), constrain(probes_MD, leading="M"))
    (_, output_MD), found = fold(layers, step, start)
    return PrefixPass(found.map(lambda pair: pair[0]), found.map(lambda pair: pair[1]), output_MD)


def lone_midpoints(
    block: ContextualBlock, params: Params, stream_MD: Array, positions_M: Array
) -> Midpoint:
    """The midpoint (M, D) of each row read by the contextual layer as a sequence of its own.

    Examples:
      >>> stack = build_stack(StackConfig(width=8, num_heads=2, hidden_widths=(16,)))
      >>> tokens = jax.random.normal(jax.random.key(0), (6, 3))
      >>> params = stack.init(jax.random.key(1), tokens)["params"]
      >>> stream = stack.apply({"params": params}, tokens, method="embed")
      >>> block, block_params = functional(stack, params)[0]
      >>> lone = lone_midpoints(block, block_params, stream, jnp.arange(6))
      >>> third = block.contextual(block_params, stream[2:3])
      >>> bool(jnp.allclose(lone.mlp_input_TD[2], third.mlp_input_TD[0], atol=1e-6))
      True
    """

    def alone(stream_D: Array, position: Array) -> Midpoint:
        midpoint = block.contextual(params, stream_D[None, :], positions_T=position[None])
        return Midpoint(
            None if midpoint.residual_TD is None else midpoint.residual_TD[0],
            midpoint.mlp_input_TD[0],
        )

    return jax.vmap(alone)(stream_MD, positions_M)


def prefix_outputs_by_reruns(layers: Layers, context_ND: Array, query_D: Array) -> Array:
    """The stack's output at the query after each prefix, (M, D), by one run per prefix.

    Works for any contextual layer. It is what ``prefix_pass`` is tested and timed against. Each run
    is padded to N + 1 tokens (so that one compiled program serves all), one after the other.

    Examples:
      >>> stack = build_stack(StackConfig(width=8, num_heads=2, hidden_widths=(16,), depth=3))
      >>> tokens = jax.random.normal(jax.random.key(0), (6, 3))
      >>> params = stack.init(jax.random.key(1), tokens)["params"]
      >>> layers = functional(stack, params)
      >>> stream = stack.apply({"params": params}, tokens, method="embed")
      >>> outputs = prefix_outputs_by_reruns(layers, stream[:5], stream[5])
      >>> found = prefix_pass(layers, stream[:5], stream[5])
      >>> bool(jnp.allclose(outputs, found.output_MD, atol=1e-5))
      True
    """
    num_context = context_ND.shape[0]
    slots_T = jnp.arange(num_context + 1)

    def run(length: Array) -> Array:
        # The query stands at position `length`; what lies behind it is absent.
        stream_TD = jnp.where(
            (slots_T < length)[:, None],
            jnp.concatenate([context_ND, query_D[None, :]]),
            query_D[None, :],
        )
        output_TD = forward(layers, stream_TD, present_T=slots_T <= length)
        return output_TD[length]

    return jax.lax.map(run, jnp.arange(num_context + 1))


def suffix_midpoints(
    block: PrefixBlock, params: Params, context_ND: Array, query_D: Array
) -> Midpoint:
    """The query's midpoints (M, D) as context tokens are removed from the left.

    Row i has read ``c_{i+1}..c_N``: everything in row 0, nothing but itself in row N. The query
    keeps its position.

    Examples:
      >>> stack = build_stack(StackConfig(width=8, num_heads=2, hidden_widths=(16,)))
      >>> tokens = jax.random.normal(jax.random.key(0), (6, 3))
      >>> params = stack.init(jax.random.key(1), tokens)["params"]
      >>> stream = stack.apply({"params": params}, tokens, method="embed")
      >>> found = suffix_midpoints(*functional(stack, params)[0], stream[:5], stream[5])
      >>> found.mlp_input_TD.shape  # 0, 1, ..., 5 tokens removed
      (6, 8)

    Source: Dherin et al. 2025 (arXiv 2507.16003v4), Proposition 2.6.
    """
    checks.rank("suffix_midpoints", "context_ND", context_ND, 2, "(N, D)")
    checks.rank("suffix_midpoints", "query_D", query_D, 1, "(D)")
    positions_T = jnp.arange(context_ND.shape[0] + 1, dtype=jnp.int32)
    return block.suffixes(params, context_ND, query_D, positions_T=positions_T)

"""A context compiled into weights: one change of a model for whatever is asked after it.

full        bos, context, query      the run with everything
alone       bos, query               numbered from 0, as any program does without the context
compiled    bos, query               the same, in a model whose weights have the context

The compiled patches are fitted on calibration queries (``study.py`` makes some), layer by layer in
closed form: no gradient is taken.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from icl_jax import checks
from icl_jax.blocks.functional import functional, with_layers
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.blocks.materialise import materialise_static
from icl_jax.dims import Array, Params
from icl_jax.language.batch import bucket, is_batch, pad_prompts, presence
from icl_jax.language.ends import check_finite, embed, finite, readout, token_ids
from icl_jax.language.prompt import each_prompt, looked_at
from icl_jax.patches.calibration import Queries
from icl_jax.patches.fit import Fit
from icl_jax.patches.ladder import fit_static
from icl_jax.patches.ladder_sums import BlockSums, static_sums
from icl_jax.patches.static_patch import StaticPatch, static_forward
from icl_jax.stack.fold import fold
from icl_jax.stack.layers import Layers, PerLayer

Tokens = Array | np.ndarray | Sequence[int]


def compile_context(
    model: LanguageModel,
    params: Params,
    context_T: Tokens,
    queries: Sequence[Tokens],
    *,
    bos: int | None = None,
    fit: Fit | None = None,
    weight: float | Array = 1e-2,
    ordinary: PerLayer[BlockSums] | None = None,
) -> PerLayer[StaticPatch]:
    """The weights that a context stands for, for queries of any kind: patches to keep.

    Args:
      model: the model.
      params: its parameters.
      context_T: (T,), the context's token ids, without a BOS.
      queries: token ids of each calibration query, as it follows the context; all of its tokens are
        fitted. See ``self_study`` and ``own_queries``.
      bos: the token that stands in front of everything, if one does. In a causal model the patches
        leave its states as they are.
      fit: which solution, which weights, which rank; ridge on both sides when left out. Mixtures of
        experts need ``Fit(side="input")``, parallel blocks ``Fit(side="down")`` or ``both``.
      weight: of ``ridge`` and ``covariance``.
      ordinary: of ``covariance``: ``ordinary_sums`` of some texts.

    Returns:
      A ``StaticPatch`` per layer: for ``static_logits``, ``static_weights``, ``save_static`` and
      ``save_static_adapter``; ``scale_static`` and ``combine_static`` make others of them.

    Raises:
      ValueError: no queries, tokens that are none of the model's, what ``fit_static`` refuses, or
        (outside jit) a fit that is not finite.

    Examples:
      >>> block = Block(SoftmaxAttention(num_heads=2), Gated(hidden_width=16), norm="rms")
      >>> model = LanguageModel(repeat(block, 2), vocab_size=30, width=8)
      >>> params = model.init(jax.random.key(0), jnp.arange(3, 13))["params"]
      >>> context, query = [5, 6, 7], [8, 9]
      >>> patches = compile_context(model, params, context, [query], fit=Fit("exact"))
      >>> asked = full_logits(model, params, context + query, [3, 4])  # the context is there
      >>> bool(jnp.allclose(static_logits(model, params, query, [0, 1], patches), asked, atol=1e-4))
      True
    """
    made = context_queries(model, params, context_T, queries, bos=bos)
    layers = functional(model, params)
    patches = fit_static(layers, made, fit, weight=weight, ordinary=ordinary)
    leaves = jax.tree.leaves(patches)
    if all(map(checks.is_concrete, leaves)) and not bool(_all_finite(patches)):
        raise checks.NumericalError(
            "compile_context: the fit is not finite. Raise weight (and give covariance more "
            "ordinary text than the model is wide), fit more queries, or look for NaN or infinity "
            "in the weights."
        )
    return patches


def context_queries(
    model: LanguageModel,
    params: Params,
    context_T: Tokens,
    queries: Sequence[Tokens],
    *,
    bos: int | None = None,
) -> Queries:
    """Calibration queries with their context and without, embedded; arguments as there.

    Raises:
      ValueError: no queries, or tokens that the model cannot read.
    """
    where = "context_queries"
    if not len(queries):
        raise ValueError(
            f"{where}: queries is empty. Give token lists of what is asked after the context, or "
            "make some with self_study or own_queries."
        )
    lead, context = (
        _flat(where, name, values)
        for name, values in (("bos", [] if bos is None else [bos]), ("context_T", context_T))
    )
    asked = [_flat(where, f"queries[{number}]", one) for number, one in enumerate(queries)]
    for number, one in enumerate(asked):
        if not len(one):
            raise ValueError(f"{where}: queries[{number}] is empty; a query has a token.")
    full = [token_ids(where, model, np.concatenate([lead, context, one])) for one in asked]
    kept = [token_ids(where, model, np.concatenate([lead, one])) for one in asked]
    first = len(lead) + len(context)
    length = bucket(max(map(len, full)), model.num_positions)
    most = bucket(max(map(len, kept)), model.num_positions)
    num_full_B = np.array([len(one) for one in full], np.int32)
    num_kept_B = np.array([len(one) for one in kept], np.int32)
    places_K = np.arange(most)
    rows_K = np.where(places_K < len(lead), places_K, places_K - len(lead) + first)
    return _embedded(
        model,
        params,
        _padded(full, length),
        _padded(kept, most),
        jnp.asarray(np.minimum(rows_K[None], num_full_B[:, None] - 1), jnp.int32),
        jnp.asarray((places_K >= len(lead)) & (places_K < num_kept_B[:, None])),
        jnp.asarray(num_full_B),
        jnp.asarray(num_kept_B),
        anchored=bos is not None and all(block.contextual_layer.causal for block in model.blocks),
    )


def ordinary_sums(
    model: LanguageModel,
    params: Params,
    texts: Sequence[Tokens],
    *,
    side: Any = "both",
    bos: int | None = None,
) -> PerLayer[BlockSums]:
    """What the kernels read in ordinary texts, for ``rung='covariance'``.

    Raises:
      ValueError: no texts, or tokens that the model cannot read.

    Examples:
      >>> block = Block(SoftmaxAttention(num_heads=2), Gated(hidden_width=16), norm="rms")
      >>> model = LanguageModel(repeat(block, 2), vocab_size=30, width=8)
      >>> tokens = jnp.arange(3, 13)
      >>> params = model.init(jax.random.key(0), tokens)["params"]
      >>> usual = ordinary_sums(model, params, [list(range(3, 15)), list(range(15, 30))])
      >>> fit = Fit("covariance", side="input")
      >>> queries = [[8, 9], [10, 11]]
      >>> patches = compile_context(model, params, [5, 6], queries, fit=fit, ordinary=usual)
      >>> float(usual[0].input.count), len(patches)  # tokens; layers
      (27.0, 2)
    """
    made = context_queries(model, params, (), texts, bos=bos)
    # As they are: without its part along a BOS the covariance would have no inverse.
    made = dataclasses.replace(made, anchored=False)
    sums = static_sums(functional(model, params), made, side=side)
    if all(map(checks.is_concrete, jax.tree.leaves(sums))):
        check_finite("ordinary_sums", _all_finite(sums), "the sums are")
    return sums


def static_logits(
    model: LanguageModel,
    params: Params,
    tokens: Any,
    read: Any,
    patches: PerLayer[StaticPatch],
) -> Any:
    """Logits of a compiled model: of any text, as ``full_logits`` gives them of a plain one.

    Args:
      model: the model.
      params: its parameters, unpatched.
      tokens: (T,), token ids, a BOS included and the context not; or those of several texts.
      read: (K,), the positions whose logits are wanted, increasing; or those of each text.
      patches: of ``compile_context``.

    Returns:
      Logits (K, V), or a list of them for several texts.

    Raises:
      ValueError: bad tokens or positions, patches of another model; (outside jit) logits that are
        not finite.

    Examples:
      >>> block = Block(SoftmaxAttention(num_heads=2), Gated(hidden_width=16), norm="rms")
      >>> model = LanguageModel(repeat(block, 2), vocab_size=30, width=8)
      >>> params = model.init(jax.random.key(0), jnp.arange(3, 13))["params"]
      >>> patches = compile_context(model, params, [5, 6, 7], [[8, 9], [10, 11]])
      >>> static_logits(model, params, [8, 12, 9], [2], patches).shape  # of a new query
      (1, 30)
    """
    prompts = pad_prompts("static_logits", model, tokens, read, some_removed=False)
    found = _logits(model, params, prompts, patches)
    return looked_at("static_logits", found, prompts, is_batch(tokens))


def static_weights(model: LanguageModel, params: Params, patches: PerLayer[StaticPatch]) -> Params:
    """The parameters of a model with patches in them, to be saved as a checkpoint.

    Raises:
      ValueError: patches of another model, or a bias that a block does not have.
      TypeError: an MLP whose kernels are not known.

    Examples:
      >>> block = Block(SoftmaxAttention(num_heads=2), Gated(hidden_width=16), norm="rms")
      >>> model = LanguageModel(repeat(block, 2), vocab_size=30, width=8)
      >>> params = model.init(jax.random.key(0), jnp.arange(3, 13))["params"]
      >>> patches = compile_context(model, params, [5, 6, 7], [[8, 9], [10, 11]])
      >>> compiled = static_logits(model, params, [8, 9], [1], patches)
      >>> merged = full_logits(model, static_weights(model, params, patches), [8, 9], [1])
      >>> bool(jnp.allclose(merged, compiled, atol=1e-4))
      True
    """
    return with_layers(params, _weights(functional(model, params), patches))


@jax.jit
def _weights(layers: Layers, patches: PerLayer[StaticPatch]) -> PerLayer[Params]:
    def step(block: Any, layer: Params, state: None, patch: StaticPatch) -> tuple[None, Params]:
        return state, materialise_static(block, layer, patch)

    return fold(layers, step, None, patches)[1]


@functools.partial(jax.jit, static_argnames=("model", "anchored"))
def _embedded(
    model: LanguageModel,
    params: Params,
    full_BT: Array,
    kept_BK: Array,
    rows_BK: Array,
    fitted_BK: Array,
    num_full_B: Array,
    num_kept_B: Array,
    *,
    anchored: bool,
) -> Queries:
    def stream(tokens_BT: Array) -> Array:
        return jax.lax.map(lambda tokens_T: embed(model, params, tokens_T), tokens_BT, batch_size=8)

    def there(tokens_BT: Array, length_B: Array) -> Array | None:
        size = tokens_BT.shape[1]
        if presence(model, length_B[0], size) is None:
            return None
        return jax.vmap(lambda length: presence(model, length, size))(length_B)

    return Queries(
        stream(full_BT),
        stream(kept_BK),
        rows_BK,
        fitted_BK,
        present_BT=there(full_BT, num_full_B),
        present_BK=there(kept_BK, num_kept_B),
        anchored=anchored,
    )


@functools.partial(jax.jit, static_argnames="model")
def _logits(
    model: LanguageModel, params: Params, prompts: Any, patches: PerLayer[StaticPatch]
) -> tuple[Array, Array]:
    def one(tokens_T: Array, length: Array, read_K: Array, num_read: Array) -> tuple[Array, Array]:
        del num_read
        stream_TD = static_forward(
            functional(model, params),
            embed(model, params, tokens_T),
            patches,
            present_T=presence(model, length, tokens_T.shape[0]),
        )
        logits_KV = readout(model, params, stream_TD[read_K])
        return logits_KV, finite(logits_KV)

    return each_prompt(one, prompts)


@jax.jit
def _all_finite(tree: Any) -> Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def _flat(where: str, name: str, values: Any) -> np.ndarray:
    """Token ids (N,); whether the model has them is looked at with all together."""
    return checks.token_list(where, name, values)


def _padded(rows: Sequence[Any], length: int) -> np.ndarray:
    return np.stack([np.pad(np.asarray(one), (0, length - len(one)), mode="edge") for one in rows])

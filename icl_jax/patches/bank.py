"""A bank: the patch of every kept position in every layer, as data, and whether it can be used."""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from icl_jax import checks
from icl_jax.dims import Array
from icl_jax.patches.block import TokenPatch
from icl_jax.patches.normed import BalancedPatch
from icl_jax.patches.output import DownPatch, compact_down
from icl_jax.patches.token import Conditioning
from icl_jax.sharding import on_host
from icl_jax.stack.layers import PerLayer


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Bank:
    """One patch per kept position and layer.

    Attributes:
      patches: a ``TokenPatch`` per layer, each with a leading axis K; those of equal layers stacked
        (leaves (R, K, ...)).
      kept_K: (K,), the kept positions in the full sequence, increasing.
      positions_K: (K,), their position ids.
      conditioning: the numbers (K,) of each layer's patches.

    Examples:
      >>> stack = build_stack(StackConfig(width=8, num_heads=2, hidden_widths=(16,)))
      >>> tokens = jax.random.normal(jax.random.key(0), (6, 3))
      >>> params = stack.init(jax.random.key(1), tokens)["params"]
      >>> stream = stack.apply({"params": params}, tokens, method="embed")
      >>> bank = stack_patches(functional(stack, params), stream, [0, 5])
      >>> bank, bank.kept_K.tolist(), bank.layer(0).input.v_D.shape
      (Bank(2 kept positions, 1 layers), [0, 5], (2, 8))
    """

    patches: PerLayer[TokenPatch]
    kept_K: Array
    positions_K: Array
    conditioning: PerLayer[Conditioning]

    def __len__(self) -> int:
        return len(self.patches)

    def layer(self, layer: int) -> TokenPatch:
        """The patches of one layer, (..., K, ...), behind the axes of prompts if there are any."""
        return self.patches.layer(layer, axis=self.kept_K.ndim - 1)

    def __repr__(self) -> str:
        *batch, kept = self.kept_K.shape
        prompts = f"{batch} prompts, " if batch else ""
        return f"Bank({prompts}{kept} kept positions, {len(self)} layers)"


def compact_bank(bank: Bank) -> Bank:
    """The same bank without the H-vectors of its down patches, which the patched run recomputes.

    What is left are vectors of the model width: at most four per position and layer, whatever the
    width of the MLP. The patched outputs are the same up to rounding; ``down_update`` needs the
    bank as it was.

    Examples:
      >>> stack = build_stack(StackConfig(width=8, num_heads=2, hidden_widths=(64,), wiring="skip"))
      >>> tokens = jax.random.normal(jax.random.key(0), (6, 3))
      >>> params = stack.init(jax.random.key(1), tokens)["params"]
      >>> stream = stack.apply({"params": params}, tokens, method="embed")
      >>> bank = stack_patches(functional(stack, params), stream, [5], output="down")
      >>> banks = bank, compact_bank(bank)
      >>> [sum(leaf.size for leaf in jax.tree.leaves(one.patches)) for one in banks]
      [89, 25]
    """

    def compact(patch: TokenPatch) -> TokenPatch:
        output = patch.output
        if isinstance(output, DownPatch):
            output = compact_down(output)
        elif isinstance(output, BalancedPatch):
            output = dataclasses.replace(output, down=compact_down(output.down))
        return dataclasses.replace(patch, output=output)

    return dataclasses.replace(bank, patches=bank.patches.map(compact))


def check_patchable(bank: Bank) -> None:
    """Raises ``NumericalError`` when a patch of a computed bank (batched or not) does not exist.

    Runs on the host, after ``jit``: reads one truth value, and the evidence only where it is bad.
    Names the layer and the first kept position whose MLP input, or hidden activations under a
    patched down kernel, had length zero or were not finite, or whose patch is not finite.

    Examples:
      >>> stack = build_stack(StackConfig(width=8, num_heads=2, hidden_widths=(16,)))
      >>> tokens = jax.random.normal(jax.random.key(0), (6, 3))
      >>> params = stack.init(jax.random.key(1), tokens)["params"]
      >>> stream = stack.apply({"params": params}, tokens, method="embed")
      >>> layers = functional(stack, params)
      >>> def patched(stream):  # in a program nobody looks at values
      ...     return stack_patches(layers, stream, [5])
      >>> check_patchable(jax.jit(patched)(stream))  # silent: every patch exists
      >>> try:
      ...     check_patchable(jax.jit(patched)(stream.at[5].set(jnp.nan)))
      ... except ValueError as error:
      ...     print(str(error).partition(" at ")[0])
      check_patchable: the MLP input of layer 0
    """
    if on_host(patchable(bank)):
        return
    axis = bank.kept_K.ndim - 1
    evidence = on_host(_evidence(bank))
    for layer in range(len(bank)):
        found = evidence.layer(layer, axis=axis)
        where = "(prompt axes first, then the kept position)"
        if (index := _first_bad_length(found.get("input"))) is not None:
            raise checks.NumericalError(
                f"check_patchable: the MLP input of layer {layer} at index {index} {where} has "
                f"length {found['input'][index]}: no weight update changes what it gives. Keep a "
                "further position, such as a BOS token."
            )
        if (index := _first_bad_length(found.get("hidden"))) is not None:
            raise checks.NumericalError(
                f"check_patchable: the hidden activations of layer {layer} at index {index} "
                f"{where} have length {found['hidden'][index]}: no update of the down kernel puts "
                "the residual change back. Use output='bias' on a block with an output bias, or "
                "keep a further position."
            )
        if "gain" in found and (index := _first(~found["gain"])) is not None:
            raise checks.NumericalError(
                f"check_patchable: the MLP's output of layer {layer} at index {index} {where} has "
                "entries of zero, or none at all: its norm's gain cannot put the residual change "
                "back. Use output='balanced', or keep a further position."
            )
        if (index := _first(~found["finite"])) is not None:
            raise checks.NumericalError(
                f"check_patchable: the patch of layer {layer} at index {index} {where} is not "
                "finite. Look for NaN or infinite weights, or for states that overflow this dtype."
            )


@jax.jit
def patchable(bank: Bank) -> Array:
    """Whether all patches of a bank (batched or not) exist, (); inside ``jit``, too."""

    def bad(found: dict[str, Array]) -> Array:
        lengths = [found[name] for name in ("input", "hidden") if name in found]
        marks = [found[name] for name in ("gain", "finite") if name in found]
        wrong = [jnp.any(_bad_length(one)) for one in lengths] + [jnp.any(~one) for one in marks]
        return functools.reduce(jnp.logical_or, wrong)

    layers = [one for period in _evidence(bank).segments for one in period]
    return ~functools.reduce(jnp.logical_or, map(bad, layers))


@jax.jit
def _evidence(bank: Bank) -> PerLayer[dict[str, Any]]:
    """What ``check_patchable`` reads, per layer and kept position."""

    def finite(tree: Any) -> Array:
        lead = jax.tree.leaves(tree)[0].shape[: bank.kept_K.ndim + 1]
        rows = [
            jnp.all(jnp.isfinite(leaf), axis=tuple(range(len(lead), leaf.ndim)))
            for leaf in jax.tree.leaves(tree)
        ]
        return functools.reduce(jnp.logical_and, rows)

    def of(pair: tuple[TokenPatch, Conditioning]) -> dict[str, Any]:
        patch, numbers = pair
        output = patch.output
        down = output.down if isinstance(output, BalancedPatch) else output
        found = {"finite": finite((patch, numbers.kept_norm))}
        if patch.input is not None:
            found["input"] = numbers.kept_norm
        if isinstance(down, DownPatch):
            found["hidden"] = down.hidden_norm
        gain_change = getattr(output, "gain_delta_D", None)
        if gain_change is not None:
            found["gain"] = finite(gain_change)
        return found

    pairs = zip(bank.patches.segments, bank.conditioning.segments, strict=True)
    segments = tuple(tuple(zip(*pair, strict=True)) for pair in pairs)
    return PerLayer(segments, bank.patches.repeats).map(of)


def _first_bad_length(lengths: np.ndarray | None) -> tuple[int, ...] | None:
    return None if lengths is None else _first(np.asarray(_bad_length(lengths)))


def _bad_length(lengths: Any) -> Any:
    """Where no patch can divide by them."""
    return (lengths == 0) | (lengths != lengths) | (abs(lengths) == np.inf)


def _first(bad: np.ndarray) -> tuple[int, ...] | None:
    """The first index where ``bad`` holds, or None."""
    found = np.argwhere(bad)
    return tuple(int(i) for i in found[0]) if len(found) else None

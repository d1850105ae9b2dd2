"""The logical axes of a leaf, read from its name.

Arrays of records carry letters (``delta_D``, ``key_TGF``: ``dims.py``), and what stands in front of
them (prompts, layers, kept positions) is said by whoever has mapped or stacked the record. Flax's
names carry none: ``PARAMETERS`` has their letters. A leaf that no rule names stays whole.
"""

import re
from collections.abc import Iterable, Mapping

from icl_jax.sharding.table import LETTERS

#: The end of a parameter's path -> its letters, without the axis of the layers.
PARAMETERS: Mapping[str, str] = {
    "embedding": "VD",
    "head_kernel": "DV",
    "head_bias": "V",
    # Attention: by heads. Gains of a norm over each head are one for all heads, and stay whole.
    "contextual_layer/query": "DAF",
    "contextual_layer/key": "DGF",
    "contextual_layer/value": "DGF",
    "contextual_layer/gate": "DAF",
    "contextual_layer/out": "AFD",
    "contextual_layer/query_bias": "AF",
    "contextual_layer/key_bias": "GF",
    "contextual_layer/value_bias": "GF",
    "contextual_layer/gate_bias": "AF",
    "contextual_layer/query_norm": "AF",
    "contextual_layer/key_norm": "GF",
    "contextual_layer/sink": "A",
    # MLPs: what reads z by columns, what gives it back by rows.
    "mlp/gate/kernel": "DH",
    "mlp/gate/bias": "H",
    "mlp/up/kernel": "DH",
    "mlp/up/bias": "H",
    "mlp/layer_0/kernel": "DH",
    "mlp/layer_0/bias": "H",
    "mlp/down/kernel": "HD",
    # Mixtures: the hidden width of every expert.
    "mlp/router": "DE",
    "mlp/gate": "EDH",
    "mlp/up": "EDH",
    "mlp/down": "EHD",
    "mlp/gate_bias": "EH",
    "mlp/up_bias": "EH",
    "mlp/shared_gate": "DH",
    "mlp/shared_up": "DH",
    "mlp/shared_down": "HD",
}

#: A parameter of a layer that joins its kernels into one before it uses them (``GatedDelta``):
#: divided, they would have to be put together at every step.
_JOINS_KERNELS = "contextual_layer/taps"

_SUFFIX = re.compile(r"_([A-Z]+)$")


def parameter_axes(
    path: tuple[str, ...], rank: int, siblings: Iterable[tuple[str, ...]] = ()
) -> tuple[str | None, ...] | None:
    """The logical axes of a parameter; None for a path that names none.

    Args:
      path: its names, such as ``("layers_0_0", "mlp", "gate", "kernel")``; in front may stand
        others, such as an optimizer's ``mu``.
      rank: how many axes it has.
      siblings: paths of all parameters.
    """
    text = "/".join(path)
    for end in ("/".join(path[-count:]) for count in (3, 2, 1)):
        if end in PARAMETERS and _is_one(path, end):
            stacked = any(name.startswith("layers_") for name in path)
            letters = "L" * stacked + PARAMETERS[end]
            if len(letters) != rank:
                return None
            layer = text[: -len(end)]
            joins = any("/".join(one) == layer + _JOINS_KERNELS for one in siblings)
            if joins and end.startswith("contextual_layer/"):
                return None
            return words(letters)
    return None


def _is_one(path: tuple[str, ...], end: str) -> bool:
    """A lone name is one of the model itself; one inside a layer means something else there."""
    return "/" in end or not any(name.startswith("layers_") for name in path)


def record_axes(name: str, rank: int, leading: str = "") -> tuple[str | None, ...]:
    """The logical axes of an array of a record.

    Args:
      name: such as ``delta_D``; one without letters has leading axes only.
      rank: how many axes it has.
      leading: letters of the axes in front of its own, from the left; further ones stay whole.
    """
    found = _SUFFIX.search(name)
    own = found.group(1) if found else ""
    if len(own) > rank:  # Of one entry of it.
        return (None,) * rank
    front = leading[: rank - len(own)]
    return words(front + "." * (rank - len(own) - len(front)) + own)


def words(letters: str) -> tuple[str | None, ...]:
    """Letters as logical axes; None for a letter that has none."""
    return tuple(LETTERS.get(letter) for letter in letters)

"""The longest prompt that a checkpoint is meant for."""

from collections.abc import Mapping
from typing import Any

from icl_jax.interop.options import Options

_SCALED = ("linear", "dynamic", "yarn", "longrope", "llama3")


def longest_prompt(config: Mapping[str, Any], where: str = "config.json") -> int | None:
    """Tokens that a configuration has positions for; None where it does not say.

    It is the length of the training, ``max_position_embeddings`` (``n_positions``), or what scaled
    rotary positions make of it, if that is more.

    Raises:
      ValueError: a length or a factor that is none.
    """
    options = Options(config, where)
    if options.has("text_config"):
        options = options.mapping("text_config")
    longest = options.optional_integer("max_position_embeddings", "n_positions", "n_ctx")
    if longest is None:
        return None
    if longest < 1:
        raise options.unsupported("max_position_embeddings", longest, "1 or more")
    lengths = [longest]
    for rope in _ropes(options):
        kind = rope.either("rope_type", "type", default="default")
        if kind in _SCALED and rope.has("factor"):
            original = options.optional_integer("original_max_position_embeddings")
            original = rope.integer("original_max_position_embeddings", default=original or longest)
            lengths.append(int(min(rope.number("factor") * original, 2**31 - 1)))
    return max(lengths)


def _ropes(options: Options) -> list[Options]:
    """The rotary options of all layers, or of each kind of them."""
    if not options.has("rope_scaling", "rope_parameters"):
        return []
    rope = options.mapping("rope_scaling" if options.has("rope_scaling") else "rope_parameters")
    inner = [rope.mapping(key) for key, value in rope.config.items() if isinstance(value, Mapping)]
    return inner or [rope]

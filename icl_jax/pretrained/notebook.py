"""A loaded model in a notebook: its lines, and below them everything in it, to be opened."""

import html
from dataclasses import dataclass
from typing import Any

from icl_jax.dims import Params


@dataclass(frozen=True)
class Inside:
    """What can be opened. (A record of its own: treescope asks what it draws for its HTML, too.)

    Attributes:
      model: the Flax module.
      params: its parameters.
      config: config.json.
      generation: the settings of generation_config.json.
    """

    model: Any
    params: Params
    config: dict[str, Any]
    generation: Any


def as_html(lines: str, inside: Inside) -> str:
    """Lines and a tree below them, by treescope; nothing is fetched when it is looked at."""
    import treescope

    tree = treescope.render_to_html(inside, compressed=True)
    return f"<pre>{html.escape(lines)}</pre>\n{tree}"

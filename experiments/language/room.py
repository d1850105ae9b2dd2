"""How many tokens a model takes, asked before any long work begins."""

from experiments.tools.flags import UsageError
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.language.ends import room


def check_room(options: str, model: LanguageModel, needed: int) -> None:
    """Raises where the longest of what will be read is longer than that.

    Args:
      options: what of the command line makes it long, for the error.
      model: that will read it.
      needed: tokens, with what will be written behind them.

    Raises:
      UsageError: there is no room.
    """
    most = room(model)
    if most is not None and needed > most:
        raise UsageError(
            f"{options}: {needed:,} tokens are needed, and the model is meant for at most "
            f"{most:,}. Ask for less, or choose a model with more room."
        )

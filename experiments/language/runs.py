"""What a report calls the runs that it holds beside the run with the whole context."""

from collections.abc import Mapping

from icl_jax.report.page import number

#: Run, or policy of the patched one -> its name in tables, legends and verdicts.
LABELS: Mapping[str, str] = {
    "patched": "patched",
    "auto": "patched",
    "scale": "scale patch",
    "balanced": "balanced patch",
    "balanced+remainder": "balanced patch, remainder",
    "unpatched": "unpatched",
    "shuffled": "another prompt's patches",
}
#: The runs that have to be off.
NULLS = ("unpatched", "shuffled")


def nearest_null(errors: Mapping[str, float]) -> str:
    """The null that is off the least, and by how much: ``unpatched, 0.31``.

    Raises:
      KeyError: a null that was not measured.
    """
    null = min(NULLS, key=lambda name: errors[name])
    return f"{LABELS[null]}, {number(errors[null])}"

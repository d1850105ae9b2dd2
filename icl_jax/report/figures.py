"""Figures from saved records: plain arrays in, SVG text out.

Every figure of a report is one of four primitives: ``curves``, ``dots`` (over many decades),
``estimates`` (of either sign, with intervals) and ``heatmaps``. They compute nothing, share one
style, and the same arrays give the same bytes.

What a series *is* decides how it looks, so a reader learns the code once:

    main       what we claim something about: blue, solid, filled markers
    second     what it is compared with: orange, dashed
    reference  a closed-form oracle or a bound: black, dotted, thin
    control    a null (shuffled, random, untrained, zero): always grey

Line styles and markers differ within and between roles: a figure survives a greyscale
printer and a colour-blind reader. Two series of one role get the next variant of it, and a label
looks the same in every panel of a figure.

Text stays text (searchable, small, in the reader's own sans-serif face). Widths are measured with
the face that ships inside matplotlib, which is wider than common system faces, so labels fit.

matplotlib is optional (``pip install "icl_jax[experiments]"``) and imported when a figure is drawn.
"""

from icl_jax.report.curves import Curve, Panel, curves
from icl_jax.report.dots import Reference, dots
from icl_jax.report.estimates import estimates
from icl_jax.report.heatmaps import heatmaps
from icl_jax.report.looks import Role

__all__ = [
    "Curve",
    "Panel",
    "Reference",
    "Role",
    "curves",
    "dots",
    "estimates",
    "heatmaps",
]

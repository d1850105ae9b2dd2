"""The heart: what a context does to a token, as low-rank changes of the MLP's kernels.

Arrays in, factors out; nothing here knows flax. Reading order: ``low_rank`` (a matrix as factors),
``token`` (the input side: one factor for all kernels), ``output`` (the output side), ``block``
(both for one block), ``bank`` (all kept positions of all layers).
"""

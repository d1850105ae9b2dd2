"""The heart: what a context does to a token, as low-rank changes of the MLP's kernels.

Arrays in, factors out; nothing here knows flax. Reading order: ``low_rank`` (a matrix as factors),
``token`` (the input side: one factor for all kernels), ``output`` and ``normed`` (the output side;
``pairs``, by which it is exact), ``block`` (both for one block), ``bank`` (of all kept positions in
all layers), ``extraction`` (how it is made and applied).
"""

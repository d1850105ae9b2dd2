"""A stack of blocks as data, and the one walk over it.

    block.py -> layers.py (equal layers stacked) -> fold.py (the walk) -> sites.py (named
    activations on the way) -> run.py (the plain pass)

Arrays and pure functions only: a block may come from Flax, NNX, Equinox or be written by hand.
"""

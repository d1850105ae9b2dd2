"""How two updates, two trajectories or two outputs compare, and what chance would give.

Small functions on arrays and factors; each says where its definition comes from.
"""

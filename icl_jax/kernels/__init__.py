"""Operations with more than one implementation: one folder each, reached through its ``api``.

``attention`` mixes values by softmax or linear attention in memory linear in the sequence. What
was measured, and when which implementation is taken, is in ``README.md``.
"""

"""How the weights move as a context is read, token by token.

``prefixes`` gives the MLP's input after every prefix in one pass; ``anchored`` and ``peel_off``
turn such a sequence into the paper's two weight trajectories; ``attribution`` says which token and
head an update came from.
"""

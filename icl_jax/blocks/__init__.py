"""Contextual blocks as pure functional Flax modules.

``Block(contextual=..., feedforward=..., wiring=..., norm=...)`` joins any contextual layer and any
MLP; ``Stack`` piles blocks up; ``functional`` hands both to the array-only half of the library.
"""

"""Families of models: a checked configuration and a key table each, never a second transformer.

A module with ``ARCHITECTURES`` is a family (see ``registry.Family``); the others hold what several
families share.
"""

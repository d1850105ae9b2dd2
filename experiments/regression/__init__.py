"""Learners of functions in context: what a context does to their weights, and descent."""

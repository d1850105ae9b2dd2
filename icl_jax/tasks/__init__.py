"""What stands in the context: families of regression problems, drawn prompt by prompt.

A task is a hashable static value with one method, ``sample``; a drawn problem is a ``Prompt``.
Reading order: ``prompt`` (the record and its token format), then one file per family of functions,
``catalogue`` (a task by its name).
"""

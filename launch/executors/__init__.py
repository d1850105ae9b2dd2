"""The ways to run a sweep, a file each: options, and an executor made from them.

To add one, write a file with ``Options``, ``make(options)`` and an executor as ``launch.task``
describes it, and name it here and in ``launch.sweep.Config``.
"""

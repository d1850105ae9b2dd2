"""A stand-in for Google's buckets: ``gs://NAME/...`` is a folder of this machine.

Python imports a module of this name when it starts, so the processes that a sweep starts have it,
too, once this folder is on PYTHONPATH. The file system is a real one of fsspec, which epath uses.
"""

import os

import fsspec
from fsspec.implementations.local import LocalFileSystem


class Bucket(LocalFileSystem):
    """The folder BUCKETS as all buckets."""

    protocol = ("gcs", "gs")

    def __init__(self, **options):
        super().__init__(auto_mkdir=True, **options)  # Buckets have no folders to make.

    @classmethod
    def _strip_protocol(cls, path):
        path = os.fspath(path)
        for scheme in ("gs://", "gcs://"):
            path = path.replace(scheme, os.environ["BUCKETS"] + "/")
        return path.rstrip("/")


if "BUCKETS" in os.environ:
    fsspec.register_implementation("gcs", Bucket, clobber=True)

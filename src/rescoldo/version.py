"""This package's version: in what it writes, and for `--version`."""

__version__ = "0.1.0"

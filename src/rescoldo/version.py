"""This package's version, for its output files and `--version`."""

__version__ = "0.1.0"

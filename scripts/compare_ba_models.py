"""Compare business analyst models: the command line of an earlier script; the work is in `rescoldo compare`."""

from __future__ import annotations

import sys

import typer

from rescoldo.cli.compare import compare
from rescoldo.cli.main import run_app

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command()(compare)


if __name__ == "__main__":
    sys.exit(run_app(app))

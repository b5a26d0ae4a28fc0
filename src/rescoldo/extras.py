"""Optional packages that only some commands need, and how to install them."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import sys

from rescoldo.errors import RescoldoError
from rescoldo.invocation import near

# as in pyproject.toml's optional dependencies
EXTRAS = {
    "serve": ("starlette>=0.46", "uvicorn>=0.34"),
    "servers": ("openai>=2.20",),
    "tensorboard": ("tensorboard>=2.18",),
    "dspy": ("dspy[optuna]>=3.4",),
    "sweep": ("optuna>=4.0", "matplotlib>=3.9"),
    "tables": ("openpyxl>=3.1", "pyarrow>=18"),
    "documents": ("python-docx>=1.1", "pypdf>=5.0"),
    "wandb": ("wandb>=0.19",),
    "mlflow": ("mlflow-skinny>=3.0", "sqlalchemy>=2.0", "alembic>=1.13"),
}


def missing(extra: str, what: str, *, where: str = "", otherwise: str = "") -> RescoldoError:
    """The error about a package that is not installed.

    Args:
        extra: the group of EXTRAS that includes it.
        what: what needs it, in one sentence.
        where: the flag or file that requires it.
        otherwise: an alternative that needs no package.
    """
    fix = install_command(extra)
    return RescoldoError(what, where=where, fix=f"{fix}; or {otherwise}" if otherwise else fix)


def install_command(extra: str) -> str:
    """A command that installs a group's packages into the running Python's environment."""
    return pip_install(*EXTRAS[extra])


def pip_install(*requirements: str) -> str:
    """A command that installs packages into the running Python's environment, whichever tool created it."""
    packages = " ".join(shlex.quote(requirement) for requirement in requirements)
    python = near(sys.executable)
    if importlib.util.find_spec("pip") is not None:
        return f"{shlex.quote(python)} -m pip install {packages}"
    if "pipx" in sys.prefix.split(os.sep):
        return f"pipx inject rescoldo {packages}"
    uv = "uv" if shutil.which("uv") else "uvx uv"
    return f"{uv} pip install --python {shlex.quote(python)} {packages}"

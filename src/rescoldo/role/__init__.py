"""Roles: the prompt, the format of the answers and their score. A role is data: see docs/roles.md."""

from __future__ import annotations

from rescoldo.role.fault import Fault, Finding
from rescoldo.role.load import DEFAULT, get_role, keep_role, load_role, role_names, role_of_run
from rescoldo.role.metrics import Answer, Score
from rescoldo.role.role import Role

__all__ = [
    "DEFAULT",
    "Answer",
    "Fault",
    "Finding",
    "Role",
    "Score",
    "get_role",
    "keep_role",
    "load_role",
    "role_names",
    "role_of_run",
]

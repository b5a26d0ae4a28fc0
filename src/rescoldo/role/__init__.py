"""What is taught: a role's prompt, the form of its answers and their score."""

from __future__ import annotations

from rescoldo.errors import RescoldoError
from rescoldo.role.ba import BARole
from rescoldo.role.role import Role, Score

__all__ = ["ROLES", "Role", "Score", "get_role"]

ROLES: dict[str, type[Role]] = {BARole.name: BARole}


def get_role(name: str = "ba") -> Role:
    """The role of that name.

    Raises:
        RescoldoError: there is none.
    """
    if name not in ROLES:
        raise RescoldoError(f"there is no role {name!r}", where="--role", fix=f"roles: {', '.join(sorted(ROLES))}")
    return ROLES[name]()

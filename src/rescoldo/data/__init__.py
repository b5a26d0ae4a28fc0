"""Datasets in JSON Lines: reading, auditing, fixing, splitting, tokenizing."""

from __future__ import annotations

from rescoldo.data.records import read_records
from rescoldo.role import Fault
from rescoldo.role.record import Record

__all__ = ["Fault", "Record", "read_records"]

"""Datasets: reading, checking, mending, splitting and tokenizing JSON Lines of what is asked and its answers."""

from __future__ import annotations

from rescoldo.data.records import read_records
from rescoldo.role import Fault
from rescoldo.role.record import Record

__all__ = ["Fault", "Record", "read_records"]

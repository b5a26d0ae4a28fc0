"""Datasets: reading, checking, mending, splitting and tokenizing JSON Lines of concepts and their requirements."""

from __future__ import annotations

from rescoldo.data.check import Fault
from rescoldo.data.records import Record, read_records

__all__ = ["Fault", "Record", "read_records"]

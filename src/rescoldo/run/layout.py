"""The layout of an output directory: the files' names, and the checkpoints in order.

It has no large imports: `status`, `logs` and `watch` work with these files alone, without torch.
"""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

RUN_FILE = "run.json"  # the config in force and the run's identity
INFO_FILE = "training_info.json"  # written last: its presence means that the run is finished
STATE_FILE = "state.json"  # the run's current state, updated every few seconds
EXIT_FILE = "exit.json"  # how a detached run's process ended
ERROR_FILE = "error.json"  # the error that ended a process, until it is in exit.json
LOG_FILE = "run.log"  # the output of a run that was detached, or whose terminal has closed
REPORT_FILE = "report.html"
METRICS = "metrics.jsonl"
TIMINGS = "timings.jsonl"

_CHECKPOINT = re.compile(r"checkpoint-(\d{1,18})(?:-(rolling)|-eval-(\d{1,18}))?")


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file; damaged or incomplete lines are skipped."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    found = []
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def read_timings(output: Path) -> list[dict[str, Any]]:
    """The valid lines of timings.jsonl."""
    lines = []
    for line in read_json_lines(output / TIMINGS):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            lines.append({**line, "session": int(line["session"]), "t": float(line["t"])})
    return lines


def order(path: Path) -> tuple[int, float] | None:
    """The position in a checkpoint's name as a sort key; None for other files."""
    match = _CHECKPOINT.fullmatch(path.name)
    if not match:
        return None
    phase = 0.0 if match[2] else float(match[3]) if match[3] else float("inf")
    return int(match[1]), phase


def list_checkpoints(output: Path) -> list[Path]:
    """The checkpoints in `output`, newest first."""
    try:
        found = [(key, path) for path in output.iterdir() if (key := order(path)) is not None and path.is_dir()]
    except OSError:  # there is no folder, or it is unreadable
        return []
    return [path for _, path in sorted(found, reverse=True)]

"""A detached run of a tiny real model for the tests, and the commands on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from rescoldo import role
from rescoldo.files import cache_root
from rescoldo.run.status import Status, read_status
from tests.base.make_models import tiny_gguf, tiny_hf

TITLE = "Booking of consulting rooms"
TEXT = "Staff books rooms and equipment for consultations, sees what is free and is told when a booking was changed. "


def record(concept: str) -> dict[str, Any]:
    """A valid record."""

    def items(prefix: str) -> list[dict[str, str]]:
        return [{"id": f"{prefix}00{i}", "description": f"{concept} {i}", "priority": "High"} for i in (1, 2)]

    lists = {"functional_requirements": items("FR"), "non_functional_requirements": items("NFR")}
    return {
        "concept": concept,
        "requirements": {"title": TITLE, "description": TEXT, **lists, "constraints": items("C")},
    }


def write_records(path: Path, concepts: list[str]) -> Path:
    """A dataset file of one record a concept."""
    path.write_text("".join(json.dumps(record(concept)) + "\n" for concept in concepts))
    return path


def brief_role(folder: Path) -> Path:
    """A file with the role `ba`, asked in two words: its own prompt is 1,300 of the tiny tokenizer's tokens, whose
    attention is most of what a run on a tiny model computes."""
    path = folder / "brief.yaml"
    spec = yaml.safe_load((Path(role.__file__).parent / "builtin" / "ba" / "role.yaml").read_text(encoding="utf-8"))
    del spec["samples"]
    path.write_text(yaml.safe_dump({**spec, "name": "brief", "prompt": "Requirements: {{ concept | trim }}"}))
    return path


def tiny_run(folder: Path, *, examples: int = 6, epochs: int = 2, gguf: bool = False, brief: bool = True) -> list[str]:
    """Flags of a `rescoldo train` on a tiny model that is made in `folder`, --output left out.

    Args:
        gguf: a process on a GGUF file starts in two thirds of the time: no Hugging Face config has to be read by
            transformers.
        brief: with `brief_role`, whose steps take a tenth of the time.
    """
    model = folder / ("model.gguf" if gguf else "model")
    if not model.exists():
        make = tiny_gguf if gguf else tiny_hf
        make(model, "llama", max_position_embeddings=4096)
        write_records(folder / "train.jsonl", [f"shift plan {i} for ward {chr(97 + i)}" for i in range(examples)])
        write_records(folder / "val.jsonl", ["parking spaces", "lost keys"])
    flags = f"--epochs={epochs} --grad-accum=2 --max-length=4096 --threads=1 --quantization=fp32 --lr=0.01"
    return [
        *([f"--role={brief_role(folder)}"] if brief else []),
        f"--base-model={model}",
        f"--train={folder / 'train.jsonl'}",
        f"--val={folder / 'val.jsonl'}",
        *flags.split(),
    ]


def environment(folder: Path) -> dict[str, str]:
    """The environment of the commands: registry and caches in `folder`, but for the compiled kernels."""
    kernels = folder / "cache" / "rescoldo" / "kernels"
    if not kernels.exists():
        (cache_root() / "kernels").mkdir(parents=True, exist_ok=True)
        kernels.parent.mkdir(parents=True, exist_ok=True)
        kernels.symlink_to(cache_root() / "kernels")
    own = {"XDG_STATE_HOME": str(folder / "state"), "XDG_CACHE_HOME": str(folder / "cache"), "COLUMNS": "80"}
    return {**os.environ, **own, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}


def customized(folder: Path, code: str) -> str:
    """A PYTHONPATH with which Python runs `code` when it starts, behind what is in tests/lean."""
    lean = Path(__file__).parents[1] / "lean" / "sitecustomize.py"
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(lean.read_text() + code)
    return f"{folder / 'site'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"


def rescoldo(folder: Path, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run a `rescoldo` command."""
    command = [sys.executable, "-m", "rescoldo", *arguments]
    return subprocess.run(
        command, env=environment(folder), capture_output=True, text=True, timeout=timeout, check=False
    )


def wait_for(output: Path, *statuses: str, phase: str = "", seconds: float = 90) -> Status:
    """Wait until the run has one of these statuses (and phase)."""
    until = time.monotonic() + seconds
    while True:
        found = read_status(output)
        if found.status in statuses and (not phase or found.state.get("phase") == phase):
            return found
        if time.monotonic() > until:
            log = output / "run.log"
            text = log.read_text()[-2000:] if log.exists() else ""
            raise AssertionError(f"{found} is not {statuses} {phase} after {seconds} s\n{text}")
        time.sleep(0.05)

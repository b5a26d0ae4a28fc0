"""Runs on several machines, all of them this one: each `rescoldo train --nodes` is a machine of its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from tests.base.make_models import tiny_gguf, tiny_hf
from tests.evaluation.llama_server import free_port
from tests.run.common import brief_role, customized
from tests.training.test_real import write_records

SLOW_DISK = """
import os, time
_fsync = os.fsync
def fsync(fd):
    time.sleep({seconds})
    _fsync(fd)
os.fsync = fsync
"""
SETTINGS = [
    *("--epochs", "2", "--grad-accum", "3", "--lr", "1e-2", "--lora-r", "4"),
    *("--threads", "1", "--max-length", "4096", "--force"),
]


def make_folder(folder: Path, *, gguf: bool = False) -> Path:
    """A tiny base model, a role and datasets. A process on a `gguf` file starts in three quarters of the time."""
    make = tiny_gguf if gguf else tiny_hf
    make(folder / f"base{'.gguf' if gguf else ''}", "llama", max_position_embeddings=4096, intermediate_size=128)
    brief_role(folder)
    write_records(folder / "train.jsonl", 0, 7)
    write_records(folder / "val.jsonl", 7, 10)
    return folder


def slow_disk(folder: Path, seconds: float) -> str:
    """A PYTHONPATH with which processes wait whenever they make sure that something is on the disk. A run with a
    checkpoint behind each step takes long then, as is needed to disturb it, and leaves the processor to other tests."""
    return customized(folder, SLOW_DISK.format(seconds=seconds))


def command(folder: Path, output: Path, *more: Any, train: str = "train.jsonl") -> list[str]:
    (base,) = folder.glob("base*")
    data = ["--train", folder / train, "--val", folder / "val.jsonl", "--base-model", base]
    data += ["--role", folder / "brief.yaml"]
    parts = [sys.executable, "-m", "rescoldo", "train", *data, "--output", output, *SETTINGS, *more]
    return [str(part) for part in parts]


def curve(output: Path) -> list[float]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line.get("loss", line.get("val_loss")) for line in lines]


class Machine:
    """A started `rescoldo train`; its words go to a file."""

    def __init__(self, log: Path, line: list[str]) -> None:
        self.log = log
        with open(log, "ab") as file:
            self.process = subprocess.Popen(
                line, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=file, stderr=subprocess.STDOUT
            )

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def workers(self) -> list[psutil.Process]:
        """What torchrun has started."""
        found = []
        try:
            for child in psutil.Process(self.process.pid).children(recursive=True):
                try:
                    line = child.cmdline()
                except psutil.Error:
                    continue
                if "rescoldo.cli.worker" in line and "torch.distributed.run" not in line:
                    found.append(child)
        except psutil.NoSuchProcess:
            pass
        return found

    def kill_worker(self) -> bool:
        """SIGKILL, as when the kernel wants the memory; False if there is none just now."""
        for worker in self.workers():
            try:
                worker.send_signal(signal.SIGKILL)
                return True
            except psutil.NoSuchProcess:
                continue
        return False

    def wait(self, seconds: float = 240) -> int:
        return self.process.wait(seconds)

    def end(self) -> None:
        """No process is left, however the test ended."""
        try:
            children = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            children = []
        self.process.kill()
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()


def machines(folder: Path, output: Path, n: int, *more: Any, nodes: str = "") -> list[Machine]:
    """`n` machines for one run; the first one leads."""
    port, started = free_port(), []
    for i in range(n):
        at = ["--nodes", nodes or n, "--rendezvous", f"127.0.0.1:{port}", "--join-seconds", 5]
        log = output.with_name(f"{output.name}-{port}-{i}.log")
        started.append(Machine(log, command(folder, output, *at, *more)))
        if not i:
            wait_for((output / "run.lock").exists, 60)
    return started


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)


def step_of(output: Path) -> int:
    """The last optimizer step that a checkpoint has."""
    found = [int(m[1]) for path in output.glob("checkpoint-*") if (m := re.match(r"checkpoint-(\d+)", path.name))]
    return max(found, default=0)

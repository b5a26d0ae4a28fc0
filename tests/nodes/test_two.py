"""Two processes on loopback do one run: the loss curve of one process, with every refusal on both sides."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.base.make_models import tiny_hf
from tests.train.test_real import write_records

SETTINGS = [
    "--epochs",
    2,
    "--grad-accum",
    3,
    "--lr",
    1e-2,
    "--lora-r",
    4,
    "--threads",
    1,
    "--max-length",
    4096,
    "--force",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nodes")
    tiny_hf(folder / "base", "llama", max_position_embeddings=4096, intermediate_size=128)
    write_records(folder / "train.jsonl", 0, 7)
    write_records(folder / "val.jsonl", 7, 10)
    return folder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(folder: Path, output: Path, size: int, *more: Any, train: str = "train.jsonl") -> list[subprocess.Popen[str]]:
    """One process a rank, as torchrun starts them; rank 1 trains on `train`."""
    port, processes = free_port(), []
    for rank in range(size):
        data = ["--train", folder / ("train.jsonl" if rank == 0 else train), "--val", folder / "val.jsonl"]
        command = [
            sys.executable,
            "-m",
            "rescoldo",
            "train",
            *data,
            "--base-model",
            folder / "base",
            "--output",
            output,
        ]
        environment = {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        processes.append(
            subprocess.Popen(
                [str(part) for part in [*command, *SETTINGS, *more]],
                env={**os.environ, **environment, "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return processes


def end(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    try:
        outputs = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, output) for process, output in zip(processes, outputs, strict=True)]


def curve(output: Path) -> list[float]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line.get("loss", line.get("val_loss")) for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["fp32", "int8"])
def test_the_curve_of_one_machine(folder: Path, tmp_path: Path, quantization: str) -> None:
    (one,) = end(start(folder, tmp_path / "one", 1, "--quantization", quantization))
    assert one[0] == 0, one[1]
    leader, follower = end(start(folder, tmp_path / "two", 2, "--quantization", quantization))
    assert leader[0] == 0, leader[1]
    assert follower[0] == 0, follower[1]
    assert "2 machines work on this run" in leader[1]
    assert curve(tmp_path / "two") == pytest.approx(
        curve(tmp_path / "one"), rel=1e-5 if quantization == "fp32" else 1e-2
    )
    assert len(curve(tmp_path / "two")) == 8
    info = json.loads((tmp_path / "two" / "training_info.json").read_text())
    assert info["tokens"] == json.loads((tmp_path / "one" / "training_info.json").read_text())["tokens"]


@pytest.mark.slow
def test_other_data_is_refused_everywhere(folder: Path, tmp_path: Path) -> None:
    write_records(folder / "other.jsonl", 1, 8)
    results = end(start(folder, tmp_path / "out", 2, "--quantization", "fp32", train="other.jsonl"))
    for code, text in results:
        assert code == 2, text
        assert "rank 1 has another training examples than rank 0" in text
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_follower_that_dies_loses_nothing_that_was_saved(folder: Path, tmp_path: Path) -> None:
    (one,) = end(start(folder, tmp_path / "one", 1, "--quantization", "fp32", "--epochs", 6))
    assert one[0] == 0, one[1]
    more = ["--quantization", "fp32", "--epochs", 6, "--checkpoint-minutes", 0]
    processes = start(folder, tmp_path / "two", 2, *more)
    deadline = time.monotonic() + 200
    while not list((tmp_path / "two").glob("checkpoint-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(processes[1].pid, signal.SIGKILL)
    (code, text), _ = end(processes)
    assert code == 1, text
    assert "lost the others" in text
    (again,) = end(start(folder, tmp_path / "two", 1, *more))  # those that are left: one
    assert again[0] == 0, again[1]
    assert "Resuming from" in again[1]
    assert curve(tmp_path / "two") == pytest.approx(curve(tmp_path / "one"), rel=1e-5)

"""Two processes on loopback do one run: the loss curve of one process, with every refusal on both sides."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.nodes.common import command, curve, free_port, make_folder
from tests.training.test_real import write_records


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("nodes"))


def start(folder: Path, output: Path, size: int, *more: Any, train: str = "train.jsonl") -> list[subprocess.Popen[str]]:
    """One process a rank, as torchrun starts them; rank 1 trains on `train`."""
    port, processes = free_port(), []
    for rank in range(size):
        place = {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        processes.append(
            subprocess.Popen(
                command(folder, output, *more, train="train.jsonl" if rank == 0 else train),
                env={**os.environ, **place, "OMP_NUM_THREADS": "1"},
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


@pytest.fixture(scope="module")
def alone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The run of one machine in a precision, made once."""

    @cache
    def run(quantization: str) -> Path:
        output = tmp_path_factory.mktemp("alone") / quantization
        ((code, text),) = end(start(folder, output, 1, "--quantization", quantization))
        assert code == 0, text
        return output

    return run


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")
def test_no_thread_of_the_group_outlives_it() -> None:
    """Whatever is imported inside: a thread that wants the interpreter at its end aborts the process."""
    program = (
        "import pathlib\n"
        "from rescoldo.nodes.group import Group, joined\n"
        "with joined(Group(0, 1)):\n"
        "    import torch.distributed._shard.sharded_tensor\n"
        "names = [path.read_text().strip() for path in pathlib.Path('/proc/self/task').glob('*/comm')]\n"
        "assert not [name for name in names if 'gloo' in name], names\n"
    )
    place = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    subprocess.run([sys.executable, "-c", program], env={**os.environ, **place}, check=True, timeout=60)


@pytest.mark.slow
@pytest.mark.parametrize(("quantization", "size"), [("fp32", 2), ("fp32", 4), ("bf16", 2), ("int8", 2), ("nf4", 2)])
def test_the_curve_of_one_machine(
    folder: Path, alone: Callable[[str], Path], tmp_path: Path, quantization: str, size: int
) -> None:
    results = end(start(folder, tmp_path / "two", size, "--quantization", quantization))
    for code, text in results:
        assert code == 0, text
    assert f"{size} machines in this run" in results[0][1]
    one = alone(quantization)
    assert curve(tmp_path / "two") == pytest.approx(curve(one), rel=1e-5 if quantization == "fp32" else 1e-2)
    assert len(curve(tmp_path / "two")) == 9  # before training, six steps, two epochs
    info = json.loads((tmp_path / "two" / "training_info.json").read_text())
    assert info["tokens"] == json.loads((one / "training_info.json").read_text())["tokens"]


@pytest.mark.slow
def test_other_data_is_refused_everywhere(folder: Path, tmp_path: Path) -> None:
    write_records(folder / "other.jsonl", 1, 8)
    results = end(start(folder, tmp_path / "out", 2, "--quantization", "fp32", train="other.jsonl"))
    for code, text in results:
        assert code == 2, text
        assert "(1) has another training examples than" in text
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_follower_that_dies_loses_nothing_that_was_saved(folder: Path, tmp_path: Path) -> None:
    (one,) = end(start(folder, tmp_path / "one", 1, "--quantization", "fp32", "--epochs", 20))
    assert one[0] == 0, one[1]
    more = ["--quantization", "fp32", "--epochs", 20, "--checkpoint-minutes", 0]
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


@pytest.mark.slow
def test_each_difference_is_named_on_both_sides(tmp_path: Path) -> None:
    """agree(), on two processes, over and over with one field changed on the second."""
    script = tmp_path / "both.py"
    script.write_text(
        "import json, sys\n"
        "from rescoldo.errors import RescoldoError\n"
        "from rescoldo.nodes.group import agree, current_group, joined\n"
        "facts = {'role': 'a', 'base model': 'b', 'training examples': '1, c', 'lora_r': 4,\n"
        "         'surroundings': {'rescoldo': '1', 'cpu': 'x'}, 'threads': 1}\n"
        "with joined(current_group()) as group:\n"
        "    changes = [{}, *({name: 'other'} for name in facts if name != 'surroundings'),\n"
        "               {'surroundings': {'rescoldo': '2'}}, {'surroundings': {'rescoldo': '1', 'cpu': 'y'}}]\n"
        "    for change in changes:\n"
        "        try:\n"
        "            agree({**facts, **change} if group.rank else facts, group)\n"
        "            print(json.dumps(None))\n"
        "        except RescoldoError as error:\n"
        "            print(json.dumps(str(error).splitlines()[0]))\n"
    )
    port, processes = free_port(), []
    for rank in range(2):
        place = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        line = [sys.executable, str(script)]
        processes.append(subprocess.Popen(line, env={**os.environ, **place}, stdout=subprocess.PIPE, text=True))
    said = [[json.loads(line) for line in text.splitlines()] for code, text in end(processes)]
    assert said[0] == said[1]
    names = [None, "role", "base model", "training examples", "lora_r", None, "version of rescoldo", None]
    for name, message in zip(names, said[0], strict=True):
        assert (message is None) == (name is None)
        if name:
            assert f"(1) has another {name} than" in message

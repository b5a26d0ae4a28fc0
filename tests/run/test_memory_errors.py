"""Running out of memory is one message, whoever notices it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from rescoldo.errors import RescoldoError
from rescoldo.run.status import read_status
from rescoldo.system.memory import memory_errors_in_words
from rescoldo.training.start import train
from tests.run.common import environment, tiny_run
from tests.training.fake import PARTS, FakeStep, Silent, config

ALLOCATOR = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: 9 bytes"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(ALLOCATOR),
        RuntimeError("std::bad_alloc"),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        RuntimeError("can't start new thread"),
    ],
)
def test_in_words(error):
    with pytest.raises(RescoldoError, match=r"memory: there is no memory left.*\n  → .*--quantization"):
        with memory_errors_in_words():
            raise error


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), OSError(errno.ENOSPC, "full"), ImportError("no x")])
def test_others_stay(error):
    with pytest.raises(type(error)) as caught, memory_errors_in_words():
        raise error
    assert caught.value is error


def test_in_a_run_it_is_why_it_failed(tmp_path):
    class Step(FakeStep):
        def micro_batch(self, indices):
            raise RuntimeError(ALLOCATOR)

    with pytest.raises(RescoldoError, match="there is no memory left"):
        train(config(tmp_path, tmp_path / "out"), parts=replace(PARTS, gradient_step=Step), reporter=Silent())
    found = read_status(tmp_path / "out")
    assert found.status == "failed"
    assert found.why.startswith("memory: there is no memory left")


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [600_000, 900_000, 1_500_000, 2_500_000])
def test_ulimit(tmp_path, kilobytes):
    flags = " ".join(tiny_run(tmp_path))
    command = f"ulimit -v {kilobytes}; exec {sys.executable} -m rescoldo train {flags} --output={tmp_path}/out --force"
    done = subprocess.run(["sh", "-c", command], env=environment(tmp_path), capture_output=True, check=False)
    error = done.stderr.decode(errors="replace")
    assert "Traceback" not in error
    if done.returncode:
        assert "memory" in error or "libgomp" in error or "OpenBLAS" in error

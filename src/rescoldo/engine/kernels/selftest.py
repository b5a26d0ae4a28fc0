"""A few operations of a library of kernels against PyTorch's, before a run relies on it.

In a child process, so that a library that the CPU or the system does not take (an illegal instruction) costs a message
and not the run. Takes milliseconds, once: the result is kept for this library on this CPU.
"""

from __future__ import annotations

import contextlib
import faulthandler
import hashlib
import os
import platform
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from rescoldo.engine.kernels.attention import Layout
from rescoldo.engine.kernels.blocks import NF4, QuantizedMatrix
from rescoldo.engine.kernels.ops_int8 import Quantized
from rescoldo.engine.kernels.torch_kernels import TorchKernels
from rescoldo.files import write_text
from rescoldo.system import cpu

_SECONDS = 60.0  # of a machine that is busy with other things
_PASSED = "passed"


def remembered(library: Path, make: Callable[[], TorchKernels], folder: Path, name: str | None = None) -> str | None:
    """What is wrong with the kernels in `library`, None if nothing: as noted in `folder`, else tried and noted. `name`
    is that of the instruction set."""
    identity = library.read_bytes() + cpu.identity().encode()
    note = folder / f"{library.stem}-{hashlib.sha256(identity).hexdigest()[:16]}.tested"
    with contextlib.suppress(OSError):
        said = note.read_text(encoding="utf-8")
        return None if said == _PASSED else said
    # macOS's BLAS does not work in a fork of a process that has used it
    wrong = failure(make) if name is None or platform.system() != "Darwin" else failure_apart(name)
    with contextlib.suppress(OSError):  # tried again the next time
        write_text(note, _PASSED if wrong is None else wrong, durable=False)
    return wrong


def failure(make: Callable[[], TorchKernels]) -> str | None:
    """What is wrong with the kernels that `make` loads, None if nothing."""
    if not hasattr(os, "fork"):
        return None
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            faulthandler.disable()  # a crash is an answer, not a report
            torch.set_num_threads(1)  # torch's own threads are the parent's
            os.write(writing, (disagreement(make()) or "").encode())
        except BaseException as error:
            os.write(writing, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb", buffering=0) as pipe:
        ready, _, _ = select.select([pipe], [], [], _SECONDS)
        said = pipe.read(1000) if ready else b""
    if not ready:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not ready:
        return f"no answer within {_SECONDS:.0f} s"
    if os.WIFSIGNALED(status):
        return f"ended by {signal.Signals(os.WTERMSIG(status)).name}"
    return said.decode(errors="replace") or None


def failure_apart(name: str) -> str | None:
    """What is wrong with the kernels of that name, None if nothing: tried in a new Python, which takes seconds."""
    command = [sys.executable, "-m", "rescoldo.engine.kernels.selftest", name]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace",
            timeout=_SECONDS, check=False,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        return f"{type(error).__name__}: {error}"
    if done.returncode < 0:
        return f"ended by {signal.Signals(-done.returncode).name}"
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return done.stdout.strip() or None


def disagreement(native: TorchKernels) -> str | None:
    """The first operation whose result is not PyTorch's, None if there is none."""
    theirs = TorchKernels()
    theirs.qmax = native.qmax
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).bfloat16()

    x, weight, dy = random(37, 272), random(80, 272), random(37, 80)
    ones, z = torch.ones(272), torch.zeros(37, 0)
    panels, scale = theirs.int8_pack(weight, ones)
    rows, _ = theirs.int8_input(x, None, 192, [], None, 0, None)
    grads, _ = theirs.int8_input(dy, scale, 96, [], None, 0, None)
    assert rows is not None
    assert grads is not None
    q, k, v = random(37, 4, 32), random(37, 2, 32), random(37, 2, 32)
    codes = torch.randint(0, 256, (16, 64), generator=generator).to(torch.uint8)
    matrix = QuantizedMatrix(NF4, codes, (16, 128), random(16, 2).abs())
    operations: dict[str, Callable[[TorchKernels], torch.Tensor]] = {
        "rms_norm": lambda op: op.rms_norm(x.float(), torch.ones(272).bfloat16(), 1e-5)[0],
        "silu_mul": lambda op: op.silu_mul(x),
        "int8_pack": lambda op: op.int8_pack(weight, ones)[1],
        "int8_input": lambda op: _values(op.int8_input(x, None, 192, [], None, 0, None)[0]),
        "int8_product": lambda op: op.int8_product(rows, panels, 80, scale, None, z, None, None, backward=False),
        "int8_product backward": lambda op: op.int8_product(
            grads, panels, 272, ones, None, z, None, None, backward=True
        ),
        "blocks_decode": lambda op: op.blocks_decode([matrix]),
        "attend": lambda op: op.attend(q, k, v, None, None, Layout((0, 20, 37), 0), None)[0],
    }
    for name, run in operations.items():
        ours, expected = run(native).double(), run(theirs).double()
        if ours.shape != expected.shape or not (ours - expected).norm() <= 0.01 * expected.norm():
            return f"{name} disagrees with PyTorch"
    return None


def _values(rows: Quantized | None) -> torch.Tensor:
    assert rows is not None
    return rows.q.float() * rows.scale.repeat_interleave(rows.group, dim=1)[:, : rows.q.shape[1]]


if __name__ == "__main__":
    from rescoldo.engine.kernels.native import NativeKernels

    torch.set_num_threads(1)
    print(disagreement(NativeKernels(sys.argv[1])) or "")

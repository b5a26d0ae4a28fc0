"""llama.cpp's server (xllamacpp) in a process of its own, for the benchmarks to ask."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

_PROGRAM = """
import signal, sys, xllamacpp
p = xllamacpp.CommonParams()
p.model.path, p.hostnames, p.port = sys.argv[1], ["127.0.0.1"], int(sys.argv[2])
p.n_parallel, p.n_ctx, p.verbosity = int(sys.argv[3]), int(sys.argv[4]), -1
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = int(sys.argv[5])
p.n_threads_http = 2 * p.n_parallel
if sys.argv[6:]:
    p.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(sys.argv[6], 1.0)]
server = xllamacpp.Server(p)
signal.pause()
"""


@contextlib.contextmanager
def server(model: Path, *, slots: int, context: int, threads: int, adapter: Path | None = None) -> Iterator[str]:
    """Start it and stop it at the end; inside it is ready, at the URL given back ("http://127.0.0.1:PORT").

    Args:
        model: a GGUF file.
        slots: answers made at the same time.
        context: tokens that each of them may have.
        threads: of the computation.
        adapter: a GGUF adapter to put on.

    Raises:
        RuntimeError: it does not start.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", _PROGRAM, str(model)]
    command += [str(n) for n in (port, slots, slots * context, threads)] + ([str(adapter)] if adapter else [])
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url, until = f"http://127.0.0.1:{port}", time.monotonic() + 120
    try:
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/v1/models", timeout=5):
                break
            if time.monotonic() > until or process.poll() is not None:
                raise RuntimeError("llama.cpp's server did not start (is xllamacpp installed? scripts/setup.sh dev)")
            time.sleep(0.2)
        yield url
    finally:
        process.kill()
        process.wait()

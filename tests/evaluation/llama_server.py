"""llama.cpp's own server (xllamacpp) with the sample model, in a process of its own that the tests may kill."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass

from rescoldo.base.sample import find_sample

_PROGRAM = """
import signal, sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.hostnames, params.port = sys.argv[1], ["127.0.0.1"], int(sys.argv[2])
params.n_ctx, params.n_parallel, params.warmup, params.verbosity = int(sys.argv[3]), 2, False, -1
params.cpuparams.n_threads = 1
params.n_threads_http = 8
server = xllamacpp.Server(params)
signal.pause()
"""


@dataclass
class LlamaServer:
    """A running server.

    Attributes:
        url: what a client's base_url is.
    """

    port: int
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def kill(self) -> None:
        """No goodbye: as a crash would do it."""
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def llama_server(port: int = 0, context: int = 4096) -> Iterator[LlamaServer]:
    """Start a server for sample:smollm2 and stop it at the end; ready when the block begins."""
    port = port or free_port()
    command = [sys.executable, "-c", _PROGRAM, str(find_sample("smollm2")), str(port), str(context)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    server = LlamaServer(port, process)
    try:
        until = time.monotonic() + 90
        while True:
            assert process.poll() is None, "the server died while starting"
            assert time.monotonic() < until, "the server did not start"
            with contextlib.suppress(OSError), urllib.request.urlopen(server.url + "/models", timeout=5) as answer:
                if answer.status == 200:
                    break
            time.sleep(0.1)
        yield server
    finally:
        server.kill()

"""`rescoldo serve` as a process: what it prints, how it ends, what it refuses."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from openai import APIError, OpenAI

from rescoldo.cli.main import app, run_app
from rescoldo.serve.access import is_loopback
from tests.serve.common import SHORT, tiny_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("serve"))


@pytest.fixture
def process(run: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", "from rescoldo.cli.main import main; main()", "serve", str(run)]
    arguments = ["--port", "0", "--json", "--name", "mine", "--max-tokens", "2000", "--context", "2048"]
    environment = {**os.environ, "RESCOLDO_API_KEY": "secret", "OMP_NUM_THREADS": "1"}
    started = subprocess.Popen(
        [*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    yield started
    started.kill()
    started.wait()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_runs_is_finished_when_it_is_stopped(process: subprocess.Popen[str], number: int) -> None:
    assert process.stdout is not None
    ready: dict[str, Any] = json.loads(process.stdout.readline())
    assert ready["models"][0] == "mine"
    assert ready["pid"] == process.pid
    client = OpenAI(base_url=ready["url"], api_key="secret", max_retries=0, timeout=60)
    assert [model.id for model in client.models.list()] == ready["models"]
    stream = client.chat.completions.create(
        model="mine", messages=SHORT, max_tokens=300, stream=True, temperature=1.0, seed=5  # type: ignore[arg-type]
    )  # fmt: skip
    chunks = iter(stream)
    next(chunks)
    process.send_signal(number)
    rest = list(chunks)
    assert rest[-1].choices[0].finish_reason in ("length", "stop"), "the answer is whole"
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "")
    assert "Traceback" not in err
    assert "Stopped" in err
    with pytest.raises(Exception, match="onnect"):
        client.models.list()


@pytest.mark.slow
def test_a_second_signal_does_not_wait(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    ready = json.loads(process.stdout.readline())
    client = OpenAI(base_url=ready["url"], api_key="secret", max_retries=0, timeout=60)
    with ThreadPoolExecutor() as pool:
        whole = pool.submit(client.chat.completions.create, model="mine", messages=SHORT, max_tokens=2000)  # type: ignore[arg-type]
        with client.chat.completions.create(model="mine", messages=SHORT, max_tokens=2000, stream=True) as stream:  # type: ignore[arg-type]
            next(iter(stream))
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=20)
        assert process.returncode == 0
        with pytest.raises(APIError, match="the server is stopping"):
            whole.result()
    assert "Traceback" not in err


def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: Any) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["rescoldo", "serve", *map(str, args)])
    code = run_app(app)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_refusals(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("RESCOLDO_API_KEY", raising=False)
    code, _, err = command(monkeypatch, capsys, run, "--host", "0.0.0.0")
    assert code == 2
    assert "RESCOLDO_API_KEY" in err
    code, _, err = command(monkeypatch, capsys, run.parent / "nothing", "--port", "0")
    assert code == 2
    assert "there is no such run or base model" in err
    code, _, err = command(monkeypatch, capsys, run, "--port", "0", "--name", run.parent / "base")
    assert (code, "base is the base model's name" in err) == (2, True)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, _, err = command(monkeypatch, capsys, run, "--port", taken.getsockname()[1])
    assert code == 1
    assert "cannot listen on 127.0.0.1" in err
    assert "Traceback" not in err
    code, out, _ = command(monkeypatch, capsys, "--help")
    assert (code, "rescoldo serve artifacts/mistral" in " ".join(out.split())) == (0, True)


def test_loopback() -> None:
    assert all(map(is_loopback, ["localhost", "127.0.0.1", "127.8.9.1", "::1"]))
    assert not any(map(is_loopback, ["0.0.0.0", "::", "192.168.1.2", "example.org", ""]))

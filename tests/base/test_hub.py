"""Hub ids, against a small endpoint on the loopback interface that speaks the few routes that are needed."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.base.make_models import tiny_hf

pytestmark = pytest.mark.slow

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves one repository, org/tiny.

    Attributes:
        cut_after: the next weight file's connection breaks after so many bytes.
        fails: this file's content is refused (403).
        broken: nothing works.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.cut_after: int | None = None
        self.fails: str | None = None
        self.broken = False
        self.requests: list[tuple[str, str, str | None]] = []  # method, path, Range


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args: Any) -> None:
        pass

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        sizes = {} if "Content-Length" in headers else {"Content-Length": str(len(body))}
        for name, value in {**sizes, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.requests.append((self.command, path, self.headers.get("Range")))
        files = {entry.name: entry for entry in self.server.folder.iterdir()}
        if self.server.broken:
            self._answer(503)
        elif not path.startswith(("/api/models/org/tiny", "/org/tiny/resolve/")):
            self._answer(404, **{"X-Error-Code": "RepoNotFound"})
        elif "/tree/" in path:
            rows = [{"type": "file", "path": n, "size": f.stat().st_size, "oid": _etag(f)} for n, f in files.items()]
            self._answer(200, json.dumps(rows).encode(), **{"Content-Type": "application/json"})
        elif path.startswith("/api/"):
            info = {"id": "org/tiny", "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
            self._answer(200, json.dumps(info).encode(), **{"Content-Type": "application/json"})
        else:
            self._file(files.get(path.rpartition("/")[2]))

    def _file(self, path: Path | None) -> None:
        if path is None:
            self._answer(404, **{"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        content, headers = path.read_bytes(), {"ETag": f'"{_etag(path)}"', "X-Repo-Commit": COMMIT}
        if self.command == "HEAD":
            self._answer(200, **headers, **{"Content-Length": str(len(content))})
            return
        if path.name == self.server.fails:
            self._answer(403)
            return
        wanted = self.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
        if wanted:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if self.server.cut_after is not None and path.suffix == ".safetensors":
            part, self.server.cut_after = content[: self.server.cut_after], None
            self._answer(200, part, **headers, **{"Content-Length": str(len(content))})
            self.close_connection = True
            return
        self._answer(206 if wanted else 200, content[start:], **headers)


def _etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    server = Hub(tiny_hf(tmp_path / "repository", "llama"))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def _fetch(tmp_path: Path, endpoint: str, spec: str = "org/tiny") -> tuple[str, str]:
    """Open `spec` in a process of its own: (its standard output, the error's text)."""
    code = (
        "import sys; from rescoldo.base import open_base; from rescoldo.errors import RescoldoError\n"
        f"try: base = open_base({spec!r}); print(base.path); base.tensors.get('model.norm.weight'); base.tokenizer()\n"
        "except RescoldoError as error: print('ERROR', error, file=sys.stderr)\n"
    )
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("HF_") and "proxy" not in key.lower()},
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_ETAG_TIMEOUT": "3",
        "HF_HUB_DOWNLOAD_TIMEOUT": "3",
    }
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout.strip(), done.stderr.partition("ERROR ")[2]


def test_fetch_once(tmp_path: Path, hub: Hub) -> None:
    (hub.folder / "consolidated.safetensors").write_bytes(b"Mistral's second copy")
    (hub.folder / "pytorch_model.bin").write_bytes(b"a pickle")
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    out, error = _fetch(tmp_path, endpoint)
    assert not error
    names = {path.name for path in Path(out).iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    assert not names & {"consolidated.safetensors", "pytorch_model.bin"}
    assert (Path(out) / "model.safetensors").read_bytes() == (hub.folder / "model.safetensors").read_bytes()
    hub.requests.clear()
    assert _fetch(tmp_path, endpoint) == (out, "")
    assert not [path for method, path, _ in hub.requests if method == "GET" and path.endswith(".safetensors")]
    hub.broken = True  # the network is gone, the model is not
    assert _fetch(tmp_path, endpoint)[0] == out


def test_a_broken_connection_is_taken_up_again(tmp_path: Path, hub: Hub) -> None:
    tiny_hf(hub.folder, "llama", vocab_size=49152)  # 25 MB: the client writes pieces of 10 MiB
    hub.cut_after = 15_000_000
    out, error = _fetch(tmp_path, f"http://127.0.0.1:{hub.server_port}")
    assert not error
    assert (Path(out) / "model.safetensors").read_bytes() == (hub.folder / "model.safetensors").read_bytes()
    ranges = [wanted for method, path, wanted in hub.requests if method == "GET" and path.endswith(".safetensors")]
    assert ranges == [None, "bytes=10485760-"]


def test_files_fetched_whole_are_kept(tmp_path: Path, hub: Hub) -> None:
    tiny_hf(hub.folder, "llama", sharded=True)
    (hub.folder / "model.safetensors").unlink()
    last = sorted(hub.folder.glob("*.safetensors"))[-1]
    hub.fails = last.name
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    out, error = _fetch(tmp_path, endpoint)
    assert not out
    assert "completed files are kept" in error
    first = _fetched(hub)
    hub.fails = None
    hub.requests.clear()
    out, error = _fetch(tmp_path, endpoint)
    assert not error
    assert last.name in _fetched(hub)
    assert len(set(first) & set(_fetched(hub)) - {last.name}) == 0
    assert (Path(out) / last.name).read_bytes() == last.read_bytes()


def _fetched(hub: Hub) -> list[str]:
    return [path.rpartition("/")[2] for method, path, _ in hub.requests if method == "GET" and path.endswith("tensors")]


def test_refused_before_the_weights_are_fetched(tmp_path: Path, hub: Hub) -> None:
    (hub.folder / "config.json").write_text('{"model_type": "mamba"}')
    out, error = _fetch(tmp_path, f"http://127.0.0.1:{hub.server_port}")
    assert not out
    assert "'mamba' is not supported" in error
    assert not [path for _, path, _ in hub.requests if path.endswith(".safetensors")]


def test_no_such_model(tmp_path: Path, hub: Hub) -> None:
    _, error = _fetch(tmp_path, f"http://127.0.0.1:{hub.server_port}", "org/other")
    assert "the Hub has no such model" in error


def test_without_a_network_there_is_a_recipe(tmp_path: Path) -> None:
    with socket.socket() as probe:  # a port where nobody listens
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    out, error = _fetch(tmp_path, f"http://127.0.0.1:{port}")
    assert not out
    assert "cannot fetch the model from the Hub" in error
    assert "hf download org/tiny --local-dir DIRECTORY; copy DIRECTORY here" in error
    assert len(error.splitlines()) == 2

"""An OpenAI-compatible server that misbehaves on demand; nothing but http.server."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# status and body (a dict as JSON, bytes as they are) for a request's body and how often it came
Answer = Callable[[dict[str, Any], int], tuple[int, Any]]


def good(text: str, finish: str = "stop", tokens: int = 7) -> dict[str, Any]:
    """A completion."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice],
            "usage": {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": 1 + tokens}}  # fmt: skip


class FakeServer:
    """What was asked (`requests`), with which key (`keys`), how many at a time at most (`most`)."""

    def __init__(self, answer: Answer, models: Any, seconds: float, dribble: float) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.times: Counter[str] = Counter()
        self.most = self.now = 0
        lock, fake = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: Any) -> None:
                pass

            def _send(self, status: int, body: Any, dribble: float = 0.0) -> None:
                raw = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                for start in range(0, len(raw), 1 if dribble else len(raw) or 1):
                    self.wfile.write(raw[start : start + 1] if dribble else raw)
                    time.sleep(dribble)

            def do_GET(self) -> None:
                fake.keys.append(self.headers.get("Authorization", ""))
                found = models.get(self.path) if isinstance(models, dict) else None
                self._send(*(found if found else (404, {})))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    fake.requests.append(body)
                    fake.keys.append(self.headers.get("Authorization", ""))
                    fake.now += 1
                    fake.most = max(fake.most, fake.now)
                    text = body["messages"][-1]["content"]
                    fake.times[text] += 1
                    times = fake.times[text]
                time.sleep(seconds)
                status, answered = answer(body, times)
                with lock:
                    fake.now -= 1
                with contextlib.suppress(OSError):
                    self._send(status, answered, dribble)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}"


@contextlib.contextmanager
def fake_server(answer: Answer, models: Any = None, seconds: float = 0.0, dribble: float = 0.0) -> Iterator[FakeServer]:
    """A server on a free port of the loopback; `models`: path → (status, body) of what can be got; `dribble`: seconds
    between two bytes of an answer."""
    default = {"/v1/models": (200, {"object": "list", "data": [{"id": "m", "owned_by": "us"}]})}
    server = FakeServer(answer, default if models is None else models, seconds, dribble)
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()

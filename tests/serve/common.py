"""A server on a tiny random model, in this process."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from openai import OpenAI

from rescoldo.models.loaded import load_for_inference
from rescoldo.role import get_role
from rescoldo.serve.access import access
from rescoldo.serve.server import bind, make_server
from rescoldo.serve.service import Limits, Service
from tests.base.make_models import tiny_hf
from tests.export.common import make_run

SHORT = [{"role": "user", "content": "hi"}]


def tiny_run(folder: Path) -> Path:
    """A run on a tiny model; its base is folder/base."""
    base = tiny_hf(folder / "base", "llama", max_position_embeddings=2048, intermediate_size=96)
    return make_run(folder / "run", str(base), size=0.3)


class Live:
    """A running server. `url` ends in /v1."""

    def __init__(self, service: Service, url: str, api_key: str) -> None:
        self.service, self.url, self._key = service, url, api_key

    def client(self, **options: Any) -> OpenAI:
        """OpenAI's own client, which tries once."""
        settings = {"base_url": self.url, "api_key": self._key or "unused", "max_retries": 0, "timeout": 60, **options}
        return OpenAI(**settings)

    def load(self) -> tuple[int, int]:
        """(decoding, waiting)."""
        return self.service.scheduler.load()

    def wait_until(self, load: tuple[int, int], seconds: float = 20) -> None:
        """Wait for that load."""
        end = time.monotonic() + seconds
        while self.load() != load:
            assert time.monotonic() < end, f"{self.load()} instead of {load}"
            time.sleep(0.005)


@contextlib.contextmanager
def live(
    run: Path, limits: Limits | None = None, *, api_key: str = "", endless: bool = False, **given: Any
) -> Iterator[Live]:
    """A server for `run`, stopped at the end; `endless`: no token ends an answer; `given`: see access."""
    service = Service(load_for_inference(str(run)), get_role("ba"), limits or Limits())
    if endless:
        service.scheduler._stop_ids = frozenset()
    listener = bind("127.0.0.1", 0)
    server = make_server(service, access("127.0.0.1", api_key=api_key, **given), grace=2)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield Live(service, f"http://127.0.0.1:{listener.getsockname()[1]}/v1", api_key)
    finally:
        server.should_exit = True
        thread.join(20)
        service.scheduler.stop()
        listener.close()
        assert not thread.is_alive()

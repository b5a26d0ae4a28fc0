"""llama.cpp as an oracle for tokens, through xllamacpp's server on the loopback interface."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any


class LlamaCpp:
    """A server for one GGUF file."""

    def __init__(self, path: Path) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.warmup, params.verbosity = 256, 1, False, -1
        params.cpuparams.n_threads = 1
        self.server = xllamacpp.Server(params)

    def _post(self, route: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            self.server.listening_address + route, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        """Token ids; special tokens written in the text are recognised."""
        tokens: list[int] = self._post(
            "/tokenize", {"content": text, "add_special": add_special, "parse_special": True}
        )["tokens"]
        return tokens

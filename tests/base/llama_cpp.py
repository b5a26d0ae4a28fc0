"""llama.cpp as an oracle for tokens and answers, through xllamacpp's server on the loopback interface."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any


class LlamaCpp:
    """A server for one GGUF file, with a LoRA adapter on it if one is given."""

    def __init__(self, path: Path, *, lora: Path | None = None, context: int = 256, chat_template: str = "") -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.warmup, params.verbosity = context, 1, False, -1
        if chat_template:
            params.chat_template, params.use_jinja = chat_template, True
        if lora is not None:
            params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(lora), 1.0)]
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

    def greedy(self, prompt: list[int], n: int) -> list[tuple[int, float | None]]:
        """The `n` tokens that follow `prompt` greedily (fewer if one ends the answer), and their
        log-probabilities; None where the server does not say it: it leaves out tokens that end within a character."""
        answer = self._complete(prompt, n)
        tokens = answer["tokens"]
        said = answer.get("completion_probabilities", [])
        if len(said) != len(tokens):
            said = []
            for k in range(len(tokens)):
                said += self._complete(prompt + tokens[:k], 1).get("completion_probabilities", [None])
        return [(token, one["logprob"] if one else None) for token, one in zip(tokens, said, strict=True)]

    def _complete(self, prompt: list[int], n: int) -> Any:
        body = {"prompt": prompt, "n_predict": n, "temperature": 0, "n_probs": 1}
        return self._post("/completion", body | {"cache_prompt": True, "return_tokens": True})

    def chat(self, messages: list[dict[str, str]]) -> str:
        """The conversation as llama.cpp renders it through the file's own template."""
        text: str = self._post("/apply-template", {"messages": messages})["prompt"]
        return text

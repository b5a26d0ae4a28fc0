"""The project's own openai: predictor on the project's own server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rescoldo.engine.types import Sampling
from rescoldo.models.engine_chat import predict_with_engine
from rescoldo.models.server import ServerOptions, open_server
from rescoldo.role import get_role
from tests.export.common import CONCEPTS
from tests.serve.common import live, tiny_run


def test_its_answers_are_the_engines_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny_run(tmp_path)
    role, sampling = get_role("ba"), Sampling(max_new_tokens=16)
    records = [{"concept": f"{CONCEPTS[i % 4]} {i}"} for i in range(10)]
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with live(run, api_key="secret") as server:
        loaded = server.service.loaded
        expected = dict(predict_with_engine(loaded.model, loaded.tokenizer, role, records, sampling))
        chat = open_server(f"openai:run@{server.url}", ServerOptions(concurrency=5))
        found = dict(chat.complete([role.messages(record) for record in records], sampling))
        assert {index: (one.text, one.ended, one.tokens, one.error) for index, one in found.items()} == {
            index: (one.text, one.ended, one.tokens, "") for index, one in expected.items()
        }
        assert json.loads(json.dumps(chat.describe()))["model"] == "run"

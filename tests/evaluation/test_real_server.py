"""A real llama.cpp server as the peer: the comparison and the server killed half-way, and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.data.examples import record, write
from tests.evaluation.llama_server import free_port, llama_server

pytestmark = pytest.mark.slow
COMMAND = "import sys; from rescoldo.cli.main import main; main()"


def start(*arguments: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OPENAI_API_KEY": ""},
    )  # fmt: skip


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_killed_and_resumed(tmp_path: Path) -> None:
    val = write(tmp_path / "val.jsonl", *(record(i) for i in range(3)))
    output, port = tmp_path / "c.json", free_port()
    partial = tmp_path / "c.json.partial.jsonl"
    arguments = [
        "compare", "--baseline", f"openai:base@http://127.0.0.1:{port}/v1",
        "--finetuned", f"openai:tuned@http://127.0.0.1:{port}/v1",
        "--dataset", val, "--output", output, "--max-new-tokens", 6, "--concurrency", 1, "--no-constrained", "--json",
    ]  # fmt: skip
    with llama_server(port) as server:
        first = start(*arguments)
        until = time.monotonic() + 120
        while len(lines(partial)) < 1:
            assert first.poll() is None, first.stderr and first.stderr.read()
            assert time.monotonic() < until
            time.sleep(0.02)
        first.send_signal(signal.SIGKILL)
        first.communicate()
        kept = lines(partial)
        assert 1 <= len(kept) < 6
        assert not output.exists()

        second = start(*arguments)  # now the server goes, in the middle of it
        while len(lines(partial)) <= len(kept):
            assert second.poll() is None, second.stderr and second.stderr.read()
            assert time.monotonic() < until
            time.sleep(0.02)
        server.kill()
        out, err = second.communicate(timeout=120)
        assert second.returncode == 1, err
        assert json.loads(out)["status"] == "failed"
        assert "the server no longer answers" in err
        assert "Traceback" not in err
        kept = lines(partial)

    third = start(*arguments)
    _, err = third.communicate(timeout=60)
    assert third.returncode == 1
    assert "no server answers" in err
    assert lines(partial) == kept

    with llama_server(port):
        last = start(*arguments)
        out, err = last.communicate(timeout=180)
    assert last.returncode == 0, err
    document = json.loads(out)
    rows = [row for part in document["models"].values() for row in part["predictions"]]
    assert len(rows) == 6
    assert all(row["tokens"] > 0 and not row.get("error") for row in rows)
    found = {row["key"]: row for row in rows}
    for line in kept:  # to the bit, times and all: they were not asked again
        row = found[line["key"]]
        assert row["text"] == line["prediction"]["text"]
        assert row["seconds"] == round(line["prediction"]["seconds"], 3)
    assert not partial.exists()
    assert output.exists()


def test_a_program_over_the_server_is_optimized_kept_loaded_and_compared(tmp_path: Path) -> None:
    """BootstrapFewShot finds no answer of this model good enough, so it shows training examples."""
    pytest.importorskip("dspy")
    from rescoldo.engine.types import Sampling
    from rescoldo.evaluation import Parts, compare
    from rescoldo.optimize.config import OptimizeConfig
    from rescoldo.optimize.optimizer import optimize

    train = write(tmp_path / "train.jsonl", *(record(i) for i in range(3, 6)))
    val = write(tmp_path / "val.jsonl", record(0), record(1))
    with llama_server() as server:
        lm = f"openai:smollm2@{server.url}"
        config = OptimizeConfig(lm, str(train), "bootstrap", shots=1, temperature=0, max_new_tokens=12)
        made = optimize(config, tmp_path / "program")
        assert (made["demos"], made["dev_examples"]) == (1, 1)
        sampling = Sampling(max_new_tokens=24)
        models = {"baseline": lm, "optimized": str(tmp_path / "program")}
        document = compare(models, val, Parts("baseline", "optimized"), output=tmp_path / "c.json", sampling=sampling)
    rows = document["models"]["optimized"]["predictions"]
    assert all(row["tokens"] > 0 and not row.get("error") for row in rows)
    assert rows[0]["text"] != document["models"]["baseline"]["predictions"][0]["text"], "the example shows"
    assert document["models"]["optimized"]["model"]["spec"] == lm
    assert document["comparison"]["decision"] is None, "there is no fine-tuned model to decide on"

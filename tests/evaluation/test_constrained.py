"""Constrained decoding in the commands: our engine, and servers that take a schema."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from rescoldo.cli.main import app, run_app
from rescoldo.engine.types import Sampling
from rescoldo.errors import RescoldoError
from rescoldo.evaluation import Parts, compare, evaluate_model
from rescoldo.evaluation.open import Opener
from rescoldo.models.server import ServerOptions, open_server
from rescoldo.role import get_role
from rescoldo.role.grammar import role_grammar
from tests.data.examples import record, write
from tests.evaluation.fake_server import fake_server, good
from tests.evaluation.llama_server import llama_server

CARD = {
    "type": "object", "required": ["kind", "count"],
    "properties": {"kind": {"enum": ["red", "green"]}, "count": {"type": "integer", "enum": [1, 2, 3]}},
}  # fmt: skip
TWO = Parts("baseline", finetuned="finetuned")
LIMIT = Sampling(max_new_tokens=300)
SHORT = Sampling(temperature=1.0, max_new_tokens=1000)


@pytest.fixture
def role(tmp_path: Path) -> str:
    """In YAML: a random model comes to the end of such an answer."""
    spec = {"name": "cards", "input": "topic", "answer": "card", "serialization": "yaml", "prompt": "{{ topic }}",
            "metric": "valid", "needs_answers": False, "schema": CARD}  # fmt: skip
    (tmp_path / "cards.yaml").write_text(json.dumps(spec))
    return str(tmp_path / "cards.yaml")


@pytest.fixture
def topics(tmp_path: Path) -> Path:
    return write(tmp_path / "topics.jsonl", *({"topic": f"thing {i}"} for i in range(4)))


def valid(part: dict[str, Any]) -> bool:
    return all(row["components"] == {"valid": 1.0} and row["ended"] for row in part["predictions"])


def test_eval(run: Path, role: str, topics: Path, tmp_path: Path) -> None:
    """All answers of a model of noise are valid, and they are not mixed up with the free ones that are kept."""
    output = tmp_path / "e.json"
    free = evaluate_model(str(run), topics, role=role, output=output, sampling=SHORT)
    held = evaluate_model(str(run), topics, role=role, output=output, sampling=SHORT, constrained=True)
    (free_part,), (held_part,) = free["models"].values(), held["models"].values()
    assert not valid(free_part)
    assert valid(held_part)
    assert (held_part["constrained"], held_part["constraint_unchecked"]) == ("yaml", [])
    assert "constrained" not in free_part
    again = evaluate_model(str(run), topics, role=role, output=output, sampling=SHORT, constrained=True)
    assert [row["text"] for row in again["models"]["finetuned"]["predictions"]] == [
        row["text"] for row in held_part["predictions"]
    ]


def test_compare_adds_the_constrained_baseline(base: Path, run: Path, role: str, topics: Path, tmp_path: Path) -> None:
    models = {"baseline": str(base), "finetuned": str(run)}
    document = compare(models, topics, TWO, role=role, sampling=SHORT, limit=2, constrained=True)
    assert list(document["models"]) == ["baseline", "baseline_constrained", "finetuned"]
    held = document["models"]["baseline_constrained"]
    assert valid(held)
    assert (held["constrained"], held["adapter"]) == ("yaml", False)
    assert document["comparison"]["decision"]["winner"] in models, "the rule knows its three parts"
    opener = Opener(get_role(role), specs=list(models.values()))
    names = ["base", f"constrained:{base}"]
    first, second = (opener.chat(name.replace("base", str(base), 1) if name == "base" else name) for name in names)
    assert first.loaded is second.loaded, "one copy of the weights"  # type: ignore[attr-defined]
    assert first.fingerprint() != second.fingerprint()


class Heard:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def answering(self, *_: Any) -> Any:
        return contextlib.nullcontext()


def test_servers_get_the_schema(role: str, topics: Path) -> None:
    def answer(body: dict[str, Any], times: int) -> tuple[int, Any]:
        return 200, good(json.dumps({"kind": "red", "count": 2}) if "response_format" in body else "red, I think")

    with fake_server(answer) as m1, fake_server(answer) as m3:
        models = {"baseline": f"openai:m@{m1.address}/v1", "finetuned": f"openai:m@{m3.address}/v1"}
        document = compare(models, topics, TWO, role=role, server=ServerOptions(2, 5, 0), constrained=True)
        assert valid(document["models"]["baseline_constrained"])
        assert not valid(document["models"]["baseline"])
        formats = [body.get("response_format") for body in m1.requests]
        assert sum(one is None for one in formats) == 4
        (sent, *others) = [one for one in formats if one]
        assert all(one == sent for one in others)
        assert sent["type"] == "json_schema"
        assert sent["json_schema"]["schema"] == {**CARD, "additionalProperties": False}
        assert all("response_format" not in body for body in m3.requests)


def test_a_server_that_does_not_constrain_is_no_reason_to_fail(role: str, topics: Path) -> None:
    def answer(body: dict[str, Any], times: int) -> tuple[int, Any]:
        return (400, {"error": {"message": "no such thing"}}) if "response_format" in body else (200, good("kind: red"))

    heard = Heard()
    with fake_server(answer) as server:
        spec = f"openai:m@{server.address}/v1"
        models = {"baseline": spec, "finetuned": spec}
        document = compare(
            models, topics, TWO, role=role, server=ServerOptions(2, 5, 0), constrained=True, console=heard
        )
        assert list(document["models"]) == ["baseline", "finetuned"]
        assert any("baseline_constrained is left out: none of 4 answers" in line for line in heard.lines)
        models["held"] = f"constrained:{spec}"
        with pytest.raises(RescoldoError, match="none of 4 answers"):  # asked for by name it has to be there
            compare(models, topics, TWO, role=role, server=ServerOptions(2, 5, 0))


def test_what_cannot_be_constrained_is_said(tmp_path: Path) -> None:
    val = write(tmp_path / "v.jsonl", {"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"})
    heard = Heard()
    with fake_server(lambda body, times: (200, good("b"))) as server:
        spec = f"openai:m@{server.address}/v1"
        document = compare(
            {"baseline": spec, "finetuned": spec}, val, TWO, role="generic", server=ServerOptions(2, 5, 0),
            constrained=True, console=heard,
        )  # fmt: skip
        assert list(document["models"]) == ["baseline", "finetuned"]
        assert any("not compared with constrained answers" in line and "no schema" in line for line in heard.lines)
    with pytest.raises(RescoldoError, match="the role has no schema"):
        Opener(get_role("generic")).chat("constrained:sample:smollm2")


def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: Any) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["rescoldo", *map(str, args)])
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    code = run_app(app)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_commands(
    run: Path, base: Path, role: str, topics: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--dataset", topics, "--role", role, "--max-new-tokens", 900, "--json"]
    code, out, _ = command(monkeypatch, capsys, "eval", run, "--constrained", *flags)
    assert code == 0
    assert valid(json.loads(out)["models"]["finetuned"])
    both = ["compare", "--baseline", base, "--finetuned", run, "--limit", 2, *flags]
    code, out, _ = command(monkeypatch, capsys, *both)
    assert (code, "baseline_constrained" in json.loads(out)["models"]) == (0, True)
    code, out, _ = command(monkeypatch, capsys, *both, "--no-constrained")
    assert (code, list(json.loads(out)["models"])) == (0, ["baseline", "finetuned"])


def test_chat(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["chat", run, "--concept", "A tool library", "--constrained", "--max-new-tokens", 30, "--compare", "--json"]
    code, out, err = command(monkeypatch, capsys, *flags)
    assert code == 0, err
    answers = json.loads(out)["answers"]
    assert set(answers) == {"base", "finetuned"}
    assert all(answer["text"].startswith("title: ") for answer in answers.values())


def test_a_server_that_ignores_the_schema_is_found_out(role: str, topics: Path) -> None:
    """It would be scored as the model that is held to the form, and is not."""
    heard = Heard()
    with fake_server(lambda body, times: (200, good("red, I think"))) as server:
        spec = f"openai:m@{server.address}/v1"
        models = {"baseline": spec, "finetuned": spec}
        document = compare(
            models, topics, TWO, role=role, server=ServerOptions(2, 5, 0), constrained=True, console=heard
        )
        assert list(document["models"]) == ["baseline", "finetuned"]
        assert any("baseline_constrained is left out: the server does not constrain" in line for line in heard.lines)
        models["held"] = f"constrained:{spec}"
        with pytest.raises(RescoldoError, match="does not hold answers to a schema"):
            compare(models, topics, TWO, role=role, server=ServerOptions(2, 5, 0))


def test_optimizers_over_a_constrained_model(base: Path, tmp_path: Path) -> None:
    pytest.importorskip("dspy")
    from rescoldo.optimize.config import OptimizeConfig
    from rescoldo.optimize.optimizer import optimize

    train = write(tmp_path / "train.jsonl", *(record(i) for i in range(4)))
    constrained = f"constrained:{base}"
    with pytest.raises(RescoldoError, match="no schema to constrain"):
        optimize(OptimizeConfig(str(base), str(train), "mipro", reflection_model=constrained), tmp_path / "p")
    made = OptimizeConfig(
        constrained, str(train), "labeled", shots=1, temperature=0, max_new_tokens=4, quantization="fp32"
    )
    assert optimize(made, tmp_path / "q")["model_described"]["constrained"] == "yaml"


@pytest.mark.slow
def test_llama_cpp_keeps_to_the_schema(role: str) -> None:
    """A real server: its answers are valid with the schema, and not without."""
    grammar = role_grammar(get_role(role))
    asked = [[{"role": "user", "content": f"Tell me about {thing}."}] for thing in ("tea", "the sea")]
    with llama_server() as server:
        chat = open_server(f"openai:m@{server.url}", ServerOptions(2, 120, 0))
        free = [prediction for _, prediction in chat.complete(asked, LIMIT)]
        held = [prediction for _, prediction in chat.constrained(grammar).complete(asked, LIMIT)]
    assert grammar.schema is not None
    for prediction in held:
        assert prediction.ended, prediction
        jsonschema.validate(json.loads(prediction.text), grammar.schema)
    for prediction in free:
        with pytest.raises(ValueError):
            json.loads(prediction.text)

"""DSPy's optimizers over a server, from the command to the program; interrupted and resumed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from rescoldo.cli.main import app, run_app
from rescoldo.errors import RescoldoError
from rescoldo.models.server import ServerOptions
from rescoldo.optimize.config import OptimizeConfig
from rescoldo.optimize.methods import METHODS
from rescoldo.optimize.optimizer import _examples, optimize
from rescoldo.optimize.watch import Watch, feedback
from rescoldo.programs.program import read_program
from rescoldo.role import get_role
from tests.data.examples import record, write
from tests.evaluation.fake_server import fake_server, good

dspy = pytest.importorskip("dspy")
ROLE = get_role("ba")
RECORDS = [record(i) for i in range(10)]
QUICK = ServerOptions(4, 5, 0)


@pytest.fixture
def train(tmp_path: Path) -> Path:
    return write(tmp_path / "train.jsonl", *RECORDS)


def pupil(body: dict[str, Any], times: int) -> tuple[int, Any]:
    """Answers well only where it is shown how; writes an instruction where it is asked for one."""
    messages = body["messages"]
    text = messages[-1]["content"]
    if "[[ ## " in text:
        wanted = [line for line in text.splitlines() if "starting with the field `" in line]
        name = wanted[0].partition("`[[ ## ")[2].partition(" ## ]]`")[0] if wanted else "proposed_instruction"
        return 200, good(f"[[ ## {name} ## ]]\nWrite requirements, as shown.\n\n[[ ## completed ## ]]")
    if not text.startswith("Concept: ") and "\n\nConcept: " not in text:
        return 200, good("Write requirements, as shown.")
    answer = next(ROLE.target(one) for one in RECORDS if one["concept"] in text)
    return 200, good(answer if len(messages) > 1 else "title: Too short an answer")


@pytest.mark.parametrize("method", ["labeled", "bootstrap"])
def test_few_shots(method: str, train: Path, tmp_path: Path) -> None:
    with fake_server(pupil) as server:
        config = OptimizeConfig(f"openai:m@{server.address}/v1", str(train), method, shots=2, max_new_tokens=99)
        made = optimize(config, tmp_path / "out", server=QUICK)
        assert made["scores"]["before"]["mean"] < 0.5
        assert made["scores"]["after"]["mean"] == 1.0
        assert (made["shown_examples"], made["dev_examples"], made["demos"]) == (8, 2, 2)
        asked = len(server.requests)
        assert optimize(config, tmp_path / "out", server=QUICK) == made
        assert len(server.requests) == asked, "finished: nothing is asked"
        with pytest.raises(RescoldoError, match=r"made with other settings \(shots: 2 there, 1 now\)"):
            optimize(OptimizeConfig(config.model, str(train), method, shots=1, max_new_tokens=99), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith("run.lock")) == [
        "optimize.json",
        "program.json",
    ]
    program = read_program(tmp_path / "out", ROLE)
    assert (program.demos, program.lm) == (2, config.model)
    state = json.loads((tmp_path / "out" / "program.json").read_text())
    assert (state["lm"], state["traces"], state["train"]) == (None, [], [])


def test_mipro_interrupted_goes_on_where_it_was(train: Path, tmp_path: Path) -> None:
    """The server fails after some answers; the second call asks only what the first had not."""
    failing = 0

    def flaky(body: dict[str, Any], times: int) -> tuple[int, Any]:
        nonlocal failing
        failing += 1
        return (401, {}) if failing > 12 else pupil(body, times)

    def key(body: dict[str, Any]) -> str:
        return json.dumps(body, sort_keys=True)

    with fake_server(flaky) as server:
        model = f"openai:m@{server.address}/v1"
        config = OptimizeConfig(model, str(train), "mipro", shots=1, trials=2, dev=0.3, max_new_tokens=99)
        with pytest.raises(RescoldoError, match="the server says no"):
            optimize(config, tmp_path / "out", server=QUICK)
        assert not (tmp_path / "out" / "program.json").exists()
        answered = {key(body) for body in server.requests[:12]}
        before = len(server.requests)
        failing = -(1 << 30)
        made = optimize(config, tmp_path / "out", server=QUICK)
        assert answered.isdisjoint(key(body) for body in server.requests[before:])
        assert len(server.requests) > before
    assert made["scores"]["after"]["mean"] == 1.0
    assert made["answers_kept_from_before"] > 0
    assert not list((tmp_path / "out").glob("*partial*"))


GOOD = "Write title, description and three lists of requirements."


def heeds(body: dict[str, Any], times: int) -> tuple[int, Any]:
    """Answers well only where its instruction says what is wanted; as a reflection model, it reads what was wrong."""
    text = body["messages"][-1]["content"]
    if "examples_with_feedback" in text:
        return 200, good(GOOD if "completeness: functional_requirements is missing" in text else "Try harder.")
    answer = next(ROLE.target(one) for one in RECORDS if one["concept"] in text)
    return 200, good(answer if GOOD in text else "title: Too short an answer")


def test_gepa_reads_in_words_what_is_missing(train: Path, tmp_path: Path) -> None:
    with fake_server(heeds) as server:
        config = OptimizeConfig(f"openai:m@{server.address}/v1", str(train), "gepa", trials=2, dev=0.3)
        made = optimize(config, tmp_path / "out", server=QUICK)
        reflections = [body for body in server.requests if "examples_with_feedback" in body["messages"][-1]["content"]]
        assert reflections
        assert {body["temperature"] for body in reflections} == {1.0}
        asked = len(server.requests)
        assert optimize(config, tmp_path / "out", server=QUICK) == made
        assert len(server.requests) == asked
    assert made["scores"]["before"]["mean"] < 0.5
    assert made["scores"]["after"]["mean"] == 1.0
    assert (made["instructions"], made["demos"]) == (GOOD, 0)
    assert read_program(tmp_path / "out", ROLE).module.signature.instructions == GOOD


def test_gepa_interrupted_goes_on_where_it_was(train: Path, tmp_path: Path) -> None:
    """The server fails for good after some answers: GEPA ends, and says so; the second call asks only what is open."""
    failing, answered = 0, set()

    def flaky(body: dict[str, Any], times: int) -> tuple[int, Any]:
        nonlocal failing
        failing += 1
        if failing > 9:
            return 401, {}
        if failing > 0:  # noted here: requests that come at the same time may be counted in another order than kept
            answered.add(json.dumps(body, sort_keys=True))
        return heeds(body, times)

    with fake_server(flaky) as server:
        config = OptimizeConfig(f"openai:m@{server.address}/v1", str(train), "gepa", trials=3, dev=0.3)
        with pytest.raises(RescoldoError, match="the server says no"):
            optimize(config, tmp_path / "out", server=QUICK)
        assert not (tmp_path / "out" / "program.json").exists()
        before = len(server.requests)
        failing = -(1 << 30)
        made = optimize(config, tmp_path / "out", server=QUICK)
        assert answered.isdisjoint(json.dumps(body, sort_keys=True) for body in server.requests[before:])
    assert made["answers_kept_from_before"] > 0
    assert made["scores"]["after"]["mean"] == 1.0


def test_another_model_writes_the_instructions(train: Path, tmp_path: Path) -> None:
    with fake_server(heeds) as task, fake_server(heeds) as reflection:
        model, other = (f"openai:m@{server.address}/v1" for server in (task, reflection))
        config = OptimizeConfig(model, str(train), "gepa", trials=1, dev=0.3, reflection_model=other)
        made = optimize(config, tmp_path / "out", server=QUICK)
        assert all("examples_with_feedback" in body["messages"][-1]["content"] for body in reflection.requests)
        assert not any("examples_with_feedback" in body["messages"][-1]["content"] for body in task.requests)
    assert made["reflection_model_described"]["spec"] == other


@pytest.mark.parametrize("method", ["mipro", "gepa"])
def test_a_constrained_models_instructions_are_written_without_the_constraint(
    method: str, train: Path, tmp_path: Path
) -> None:
    """The task is asked with the role's schema, the instruction without it."""

    def constrained(body: dict[str, Any], times: int) -> tuple[int, Any]:
        status, answered = pupil(body, times) if method == "mipro" else heeds(body, times)
        if "response_format" in body:  # the role's YAML as the JSON that servers are held to
            message = answered["choices"][0]["message"]
            message["content"] = json.dumps(yaml.safe_load(message["content"]))
        return status, answered

    with fake_server(constrained) as server:
        model = f"constrained:openai:m@{server.address}/v1"
        shots = 1 if "shots" in METHODS[method].uses else None
        config = OptimizeConfig(model, str(train), method, shots=shots, trials=2, dev=0.3)
        made = optimize(config, tmp_path / "out", server=QUICK)
        held = ["response_format" in body for body in server.requests]
        task = ["oncept: " in body["messages"][-1]["content"] and "[[ ## " not in body["messages"][-1]["content"]
                for body in server.requests]  # fmt: skip
    assert any(held)
    assert not all(held)
    assert all(one for one, is_held in zip(task, held, strict=True) if is_held)
    assert made["scores"]["after"]["mean"] == 1.0


def test_the_feedback_names_faults_and_the_right_answer_where_the_metric_wants_it() -> None:
    ba = feedback(ROLE, RECORDS[0], "title: x")
    assert "completeness: functional_requirements is missing" in ba
    assert RECORDS[0]["requirements"]["description"] not in ba, "form alone is measured"
    assert feedback(ROLE, RECORDS[0], ROLE.target(RECORDS[0])).endswith("Nothing is missing.")
    generic = get_role("generic")
    assert "Ebro" in feedback(generic, {"prompt": "Name a river", "completion": "Ebro"}, "Tajo")


@pytest.mark.parametrize("method", ["mipro", "gepa"])
def test_a_writer_that_fails_on_each_question_ends_it_with_a_message(
    method: str, train: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """GEPA goes on with the instruction that is there; MIPROv2 cannot."""

    def refusing(body: dict[str, Any], times: int) -> tuple[int, Any]:
        text = body["messages"][-1]["content"]
        task = not ("[[ ## " in text or "examples_with_feedback" in text)
        return heeds(body, times) if task and "Concept: " in text else (400, {"error": {"message": "no such words"}})

    with fake_server(refusing) as server:
        flags = ["--model", f"openai:m@{server.address}/v1", "--train", train, "--method", method, "--trials", 1]
        code, out, err = run(monkeypatch, capsys, *flags, "-o", tmp_path / "out")
    assert "Traceback" not in err
    if method == "mipro":
        assert code == 1
        assert "the optimizer failed" in err
        assert "no such words" in err
        assert not (tmp_path / "out" / "program.json").exists()
    else:
        assert code == 0
        assert "GEPA: Per-task reflection failed" in out


def test_mipro_takes_instructions_without_markers(train: Path, tmp_path: Path) -> None:
    with fake_server(lambda body, n: (200, good("no marker at all"))) as server:
        config = OptimizeConfig(f"openai:m@{server.address}/v1", str(train), "mipro", shots=1, trials=2, dev=0.3)
        made = optimize(config, tmp_path / "out", server=QUICK)
    assert made["scores"]["after"]["mean"] == 0.0


def test_each_of_two_answers_to_one_question_is_scored_by_its_own() -> None:
    generic = get_role("generic")
    records = [{"prompt": "Name a river", "completion": name} for name in ("Ebro", "Tajo")]
    watch = Watch(generic, records, None)
    examples = _examples(dspy, generic, records)
    scores = [watch.metric(example, dspy.Prediction(answer="Ebro")) for example in examples]
    assert scores[0] == 1.0
    assert scores[1] < 1.0


def test_a_program_is_asked_by_all_that_the_record_asks() -> None:
    turns = [{"role": who, "content": who} for who in ("user", "assistant", "user", "assistant")]
    (example,) = _examples(dspy, get_role("generic"), [{"messages": turns}])
    assert example.prompt == "user\n\nassistant\n\nuser"


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: Any) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["rescoldo", "optimize", *map(str, args)])
    code = run_app(app)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_command(
    train: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with fake_server(pupil) as server:
        flags = ["--model", f"openai:m@{server.address}/v1", "--train", train, "--method", "labeled", "--shots", 1,
                 "--max-new-tokens", 99]  # fmt: skip
        code, out, err = run(monkeypatch, capsys, *flags, "-o", tmp_path / "a")
        assert (code, err) == (0, "")
        assert "100.0% after" in out
        code, out, _ = run(monkeypatch, capsys, *flags, "-o", tmp_path / "b", "--json")
        assert code == 0
        assert json.loads(out)["demos"] == 1
    with fake_server(heeds) as server:
        flags = ["--model", f"openai:m@{server.address}/v1", "--train", train, "--method", "gepa", "--trials", 1]
        code, out, err = run(monkeypatch, capsys, *flags, "-o", tmp_path / "c")
        assert (code, err) == (0, ""), "no progress bars of others"
        assert re.search(r"GEPA: Iteration 1: Found a better program on the valset with score 1\.0", out)
    with fake_server(pupil) as server:
        flags[1], flags[5:] = f"openai:m@{server.address}/v1", ["mipro", "--trials", 1, "--shots", 1]
        code, out, err = run(monkeypatch, capsys, *flags, "-o", tmp_path / "d")
        assert (code, err) == (0, "")
        assert "DSPy: Trial 1 / 1" in " ".join(out.split()), "how far it is"
    code, out, _ = run(monkeypatch, capsys, "--help")
    assert " optimize --model" in " ".join(out.split()).partition("Example: ")[2]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--method", "magic"], "no method 'magic'"),
        (["--shots", "0"], "--shots 0 is not allowed: use a whole number from 1 to 64"),
        (["--dev", "1"], "--dev"),
        (["--trials", "0"], "--trials"),
        (["--budget", "9"], "mipro has no budget of answers"),
        (["--method", "gepa", "--budget", "0"], "--budget 0 is not allowed"),
        (["--method", "labeled", "--reflection-model", "sample:smollm2"], "no instructions written by a model"),
        (["--method", "labeled", "--trials", "5"], "--method mipro or gepa, or leave it out"),
        (["--method", "labeled", "--threshold", "0.5"], "labeled does not show answers of the model itself"),
        (["--method", "bootstrap", "--trials", "5"], "bootstrap does not try several prompts"),
        (["--method", "gepa", "--shots", "2"], "gepa shows no examples"),
        (["--method", "gepa", "--budget", "9", "--trials", "2"], "--budget and --trials exclude each other"),
        (["--method", "gepa", "--reflection-model", "constrained:x"], "no schema to constrain"),
        (["--limit", "1"], "--limit"),
        (["--temperature", "-1"], "--temperature"),
        (["--timeout", "-1"], "--timeout"),
        (["--concurrency", "0"], "--concurrency"),
        (["--role", "poet"], "no role 'poet'"),
        (["--train", "nothing.jsonl"], "no such file"),
        (["--output", "{file}/x"], "cannot be made"),
    ],
)
def test_bad_flags(
    flags: list[str], message: str, train: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    given = ["--model", "sample:smollm2", "--train", train, "--output", tmp_path / "out"]
    code, out, err = run(monkeypatch, capsys, *given, *(flag.format(file=train) for flag in flags))
    assert (code, out) == (2, "")
    assert message in err
    assert not (tmp_path / "out").exists()

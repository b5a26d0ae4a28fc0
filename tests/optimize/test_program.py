"""DSPy programs: found, read, refused, asked."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from rescoldo.engine.types import Sampling
from rescoldo.errors import RescoldoError
from rescoldo.evaluate import evaluate
from rescoldo.programs.predictor import ProgramPredictor
from rescoldo.programs.program import Program, find_program, instruction, new_program, read_program
from rescoldo.role import get_role
from tests.data.examples import record, write
from tests.optimize.fake_chat import FakeChat

dspy = pytest.importorskip("dspy")
ROLE = get_role("ba")
GREEDY = Sampling(max_new_tokens=9)


def saved(path: Path, module: Any) -> Path:
    module.save(path)
    return path


def asked(program: Program, answer: Any, *records: dict[str, Any]) -> tuple[FakeChat, list[dict[str, Any]]]:
    chat = FakeChat(answer)
    part = evaluate(ProgramPredictor("p", program, chat, ROLE, "p"), records or [record(0)], ROLE, GREEDY)
    return chat, part["predictions"]


def test_a_program_with_examples_is_plain_turns(tmp_path: Path) -> None:
    made = new_program(ROLE)
    shown = record(1)
    made.module.demos = [dspy.Example(concept=shown["concept"], requirements=ROLE.target(shown)).with_inputs("concept")]
    program = read_program(saved(tmp_path / "p.json", made.module), ROLE)
    assert program.demos == 1
    chat, rows = asked(program, lambda messages: ROLE.target(record(0)), record(0), record(2))
    (batch,) = chat.calls
    assert len(batch) == 2, "both concepts in one batch"
    assert [message["role"] for message in batch[0]] == ["user", "assistant", "user"]
    assert batch[0][0]["content"].startswith("You are a business analyst.")
    assert batch[0][1]["content"] == ROLE.target(shown)
    assert {messages[-1]["content"] for messages in batch} == {f"Concept: {record(i)['concept']}" for i in (0, 2)}
    assert [row["score"] for row in rows] == [1.0, 1.0]
    assert chat.samplings[0] == GREEDY


def test_an_instruction_is_the_prompt_without_its_input() -> None:
    words = instruction(ROLE)
    assert words.startswith("You are a business analyst.")
    assert "Concept:" not in words


class FiveFields(dspy.Signature):  # type: ignore[misc]
    """Write requirements."""

    concept: str = dspy.InputField()
    title: str = dspy.OutputField()
    description: str = dspy.OutputField()
    functional_requirements: str = dspy.OutputField(desc="as YAML")
    non_functional_requirements: str = dspy.OutputField(desc="as YAML")
    constraints: str = dspy.OutputField(desc="as YAML")


def test_a_program_of_the_originals_form(tmp_path: Path) -> None:
    """A chain of thought with five fields, the lists as YAML, made by other hands."""
    program = read_program(saved(tmp_path / "p.json", dspy.ChainOfThought(FiveFields)), ROLE)
    fields = record(0)["requirements"]

    def answer(messages: Any) -> str:
        values = {
            "reasoning": "hm",
            **{name: json.dumps(v) if isinstance(v, list) else v for name, v in fields.items()},
        }
        return (
            "\n\n".join(f"[[ ## {name} ## ]]\n{value}" for name, value in values.items()) + "\n\n[[ ## completed ## ]]"
        )

    chat, (row,) = asked(program, answer)
    assert "Write requirements" in chat.calls[0][0][0]["content"]
    assert row["score"] == 1.0
    assert set(row["fields"]) == set(fields)
    assert row["text"].startswith("title: Product for amber0")


def test_what_dspy_cannot_read_is_scored_as_the_text_that_it_is(tmp_path: Path) -> None:
    program = read_program(saved(tmp_path / "p.json", dspy.Predict(FiveFields)), ROLE)
    chat, (row,) = asked(program, lambda messages: "I would rather not…")
    assert (row["text"], row["score"], row["ended"]) == ("I would rather not…", 0.0, False)
    assert "error" not in row
    assert chat.asked == 1, "no second question behind the program's back"


def test_one_failure_is_that_ones_and_a_lost_server_everyones() -> None:
    program = new_program(ROLE)
    first = record(0)["concept"]
    _, rows = asked(
        program,
        lambda messages: "error: context full" if first in messages[-1]["content"] else "x",
        record(0), record(1),
    )  # fmt: skip
    assert rows[0]["error"] == "context full"
    assert "error" not in rows[1]
    with pytest.raises(RescoldoError, match="server is gone"):
        asked(program, lambda messages: RescoldoError("server is gone"))


def test_state_brings_no_model_and_no_address(tmp_path: Path) -> None:
    """A program from elsewhere could send the concepts elsewhere."""
    path = saved(tmp_path / "p.json", new_program(ROLE).module)
    state = json.loads(path.read_text())
    state["lm"] = {"model": "openai/gpt", "api_base": "http://evil.example", "_dspy_lm_class": "os.system"}
    state["callbacks"] = ["x"]
    path.write_text(json.dumps(state))
    program = read_program(path, ROLE)
    assert program.module.lm is None
    assert not getattr(program.module, "callbacks", None)


def test_pickles_are_refused_and_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (open, (str(tmp_path / "ran"), "w"))

    import cloudpickle

    folder = tmp_path / "program"
    new_program(ROLE).module.save(folder, save_program=True)
    (tmp_path / "state.pkl").write_bytes(cloudpickle.dumps(Evil()))
    for path in (folder, tmp_path / "state.pkl"):
        with pytest.raises(RescoldoError, match=r"runs whatever code is in it(.|\n)*--allow-pickle"):
            read_program(path, ROLE)
    assert not (tmp_path / "ran").exists()
    loaded = read_program(folder, ROLE, allow_pickle=True)
    _, (row,) = asked(loaded, lambda messages: ROLE.target(record(0)))
    assert row["score"] == 1.0
    (tmp_path / "junk.pkl").write_bytes(b"junk")
    with pytest.raises(RescoldoError, match="cannot be loaded"):
        read_program(tmp_path / "junk.pkl", ROLE, allow_pickle=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as a DSPy program"),
        ("[" * 100_000, "cannot be read as a DSPy program"),
        ("[]", "is not a DSPy program's state"),
        ("{}", "is not a DSPy program's state"),
        ('{"a": {"signature": {}, "demos": []}, "b": {"signature": {}, "demos": []}}', "2 steps"),
        ('{"signature": {}, "demos": []}', "does not go from concept"),
        ('{"signature": {"fields": [{"prefix": "Concept:"}, {"prefix": 7}]}, "demos": []}', "a field has no name"),
        ('{"signature": {"fields": [{"prefix": "Question:"}, {"prefix": "A:"}]}, "demos": []}', "question, a"),
    ],
)
def test_bad_states(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(content)
    with pytest.raises(RescoldoError, match=message):
        read_program(tmp_path / "p.json", ROLE)


def test_which_specs_are_programs(tmp_path: Path) -> None:
    folder = tmp_path / "a@b"
    folder.mkdir()
    (folder / "program.json").write_text("{}")
    assert find_program(str(folder)) == (folder, "")
    assert find_program(f"{folder}@openai:m@http://x/v1") == (folder, "openai:m@http://x/v1")
    assert find_program(f"{folder}/program.json@sample:smollm2") == (folder / "program.json", "sample:smollm2")
    assert find_program("openai:m@http://x/v1") is None
    assert find_program("sample:smollm2") is None
    assert find_program(str(write(tmp_path / "data.jsonl", record(0)))) is None
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    assert find_program(str(tmp_path / "model")) is None
    (tmp_path / "two").mkdir()
    for name in ("a.json", "b.json"):
        (tmp_path / "two" / name).write_text("{}")
    with pytest.raises(RescoldoError, match="2 files that could be one"):
        read_program(tmp_path / "two", ROLE)


def test_without_dspy_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dspy", None)
    with pytest.raises(RescoldoError, match=r"pip install 'rescoldo\[dspy\]'"):
        new_program(ROLE)

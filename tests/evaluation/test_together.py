"""compare --together: the optimized prompt's instruction trained into the weights, one command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import rescoldo
from rescoldo.cli.main import app, run_app
from rescoldo.errors import RescoldoError
from rescoldo.evaluation.together import replace_prompt, together_config
from rescoldo.programs.program import new_program
from rescoldo.role import get_role, load_role
from tests.data.examples import record, write

dspy = pytest.importorskip("dspy")
ROLE = get_role("ba")
WORDS = "Write {{ requirements }}: {% raw %} {# as YAML #}, {'title': …}."


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the tiny model."""
    folder = tmp_path_factory.mktemp("trained")
    train = write(folder / "train.jsonl", *map(record, range(2)))
    val = write(folder / "val.jsonl", *map(record, range(2, 4)))
    settings: Any = {"base_model": str(base), "quantization": "fp32", "epochs": 1, "lora_r": 2}
    rescoldo.train(train=train, val=val, output=folder / "run", **settings, force=True, quiet=True)
    return folder / "run"


@pytest.fixture
def program(tmp_path: Path) -> Path:
    module = new_program(ROLE).module
    module.signature = module.signature.with_instructions(WORDS)
    shown = record(7)
    module.demos = [dspy.Example(concept=shown["concept"], requirements=ROLE.target(shown)).with_inputs("concept")]
    module.save(tmp_path / "program.json")
    return tmp_path / "program.json"


def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: Any) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["rescoldo", "compare", *map(str, words)])
    code = run_app(app)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_trained_once_and_asked_with_its_own_prompt(
    trained: Path, base: Path, program: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    val = write(tmp_path / "val.jsonl", record(5))
    both = tmp_path / "both"
    words = ["--baseline", base, "--optimized", program, "--finetuned", trained, "--together", both,
             "--dataset", val, "--no-constrained", "--greedy", "--max-new-tokens", 4, "--output", tmp_path / "c.json",
             "--json"]  # fmt: skip
    code, out, err = command(monkeypatch, capsys, *words)
    assert code == 0, err
    document = json.loads(out)
    assert list(document["models"]) == ["baseline", "optimized", "together", "finetuned"]
    assert "together" in {row["model"] for row in document["comparison"]["ranking"]}
    assert document["comparison"]["decision"]["reference"] == "optimized", "the rule is the contract's"
    role = load_role(both / "role")
    (asked,) = role.messages(record(5))
    concept = record(5)["concept"].strip()
    assert asked == {"role": "user", "content": f"{WORDS}\n\nConcept: {concept}"}
    assert role.target(record(5)) == ROLE.target(record(5))
    again = document["comparison"]["decision"]["content"]["missing"]
    assert any("--together" in (one["command"] or ()) for one in again)
    info = json.loads((both / "training_info.json").read_text())
    first = json.loads((trained / "training_info.json").read_text())
    for name in ("train_dataset", "learning_rate", "lora_r", "epochs", "quantization", "base_model"):
        assert info[name] == first[name]
    before = (both / "training_info.json").stat().st_mtime_ns
    code, out, err = command(monkeypatch, capsys, *words)
    assert code == 0, err
    assert "This run is finished" in err
    assert (both / "training_info.json").stat().st_mtime_ns == before
    assert json.loads(out)["models"]["together"]["predictions"] == document["models"]["together"]["predictions"]


def test_what_it_is_asked_is_what_the_program_asks(program: Path) -> None:
    """The trained and the optimized model see the same words, but for the examples."""
    from rescoldo.engine.types import Sampling
    from rescoldo.evaluation import evaluate
    from rescoldo.programs.predictor import ProgramPredictor
    from rescoldo.programs.program import read_program
    from tests.optimize.fake_chat import FakeChat

    found = read_program(program, ROLE)
    found.module.demos = []
    chat = FakeChat(lambda messages: "x")
    evaluate(ProgramPredictor("p", found, chat, ROLE, "p"), [record(5)], ROLE, Sampling())
    role = replace_prompt(ROLE, WORDS)
    assert chat.calls[0][0] == role.messages(record(5))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"optimized": ""}, "made of both"),
        ({"finetuned": "{base}"}, "this is no run directory"),
        ({"optimized": "{base}"}, "this is no DSPy program"),
        ({"optimized": "{thought}"}, "has more steps or other fields"),
    ],
)
def test_what_cannot_be_trained_together_is_refused_before_the_work(
    flags: dict[str, str], message: str, trained: Path, base: Path, program: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    thought = tmp_path / "thought.json"
    dspy.ChainOfThought("concept -> requirements").save(thought)
    named = {"optimized": str(program), "finetuned": str(trained)}
    named |= {name: value.format(base=base, thought=thought) for name, value in flags.items()}
    words = [word for name, value in named.items() if value for word in (f"--{name}", value)]
    val = write(tmp_path / "val.jsonl", record(5))
    code, _, err = command(
        monkeypatch, capsys, "--baseline", base, *words, "--together", tmp_path / "both", "--dataset", val
    )
    assert code == 2
    assert message in err
    assert not (tmp_path / "both").exists()


def test_another_prompt_is_another_run(trained: Path, program: Path, tmp_path: Path) -> None:
    config = together_config(str(trained), str(program), tmp_path / "both")
    first = load_role(Path(config.role)).identity
    module = new_program(ROLE).module
    module.save(tmp_path / "other.json")
    other = together_config(str(trained), str(tmp_path / "other.json"), tmp_path / "both")
    assert load_role(Path(other.role)).identity != first
    with pytest.raises(RescoldoError, match="no run directory"):
        together_config("sample:smollm2", str(program), tmp_path / "x")

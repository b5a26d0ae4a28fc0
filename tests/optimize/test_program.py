"""DSPy programs: found, read, refused, asked."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from rescoldo.engine.types import Sampling
from rescoldo.errors import RescoldoError
from rescoldo.evaluation import evaluate
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
        ('{"a": {"signature": {}, "demos": []}, "b": {"signature": {}, "demos": []}}', "no order of its steps"),
        ('{"signature": {}, "demos": []}', "does not go from concept"),
        ('{"signature": {"fields": [{"prefix": "Concept:"}, {"prefix": 7}]}, "demos": []}', "prefix 7 is not certain"),
        ('{"signature": {"fields": [{"prefix": "Q:"}, {"prefix": "A:"}]}, "demos": []}', "'Q:', 'A:' is not certain"),
        ('{"signature": {"fields": 7}, "demos": []}', "not a list of fields"),
        ('{"signature": {"fields": [7]}, "demos": []}', "not a list of fields"),
        ('{"signature": {"fields": []}, "demos": 7}', "demos[)] are not a list"),
        ('{"signature": {"fields": []}, "demos": ["x"]}', "example 1 is not a mapping"),
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
    with pytest.raises(RescoldoError, match=r"pip install .*dspy"):
        new_program(ROLE)


THOUGHT = {"prefix": "Reasoning: Let's think step by step in order to", "description": "${reasoning}"}
PLAIN = [
    {"prefix": "Concept:", "description": "what is wanted"},
    {"prefix": "Requirements:", "description": "the YAML"},
]
PARTS = ("title", "description", "functional_requirements", "non_functional_requirements", "constraints")
EACH = [PLAIN[0], *({"prefix": name.replace("_", " ").title() + ":", "description": "as YAML"} for name in PARTS)]


def chain(fields: list[dict[str, str]], thought: dict[str, str] | None = None) -> list[dict[str, str]]:
    return [fields[0], thought or THOUGHT, *fields[1:]]


def state_25(fields: list[dict[str, str]], demos: list[Any]) -> dict[str, Any]:
    """As DSPy 2.5 saved a ChainOfThought: the optimizers have changed extended_signature alone."""
    first = {"instructions": "Not this.", "fields": fields}
    asked = {"instructions": "Write requirements.", "fields": fields}
    step = {"lm": None, "traces": [], "train": [], "demos": demos, "signature": first, "extended_signature": asked}
    return {"_predict": step, "metadata": {"dependency_versions": {"python": "3.11", "dspy": "2.5.43"}}}


def state_26(fields: list[dict[str, str]], demos: list[Any], step: str = "predict") -> dict[str, Any]:
    """As DSPy 2.6 to 3.x: a program's steps by their attributes' names; a lone Predict's without one (step "")."""
    inner = {
        "traces": [], "train": [], "demos": demos, "lm": None,
        "signature": {"instructions": "Write requirements.", "fields": fields},
    }  # fmt: skip
    outer = {step: inner} if step else inner
    return {**outer, "metadata": {"dependency_versions": {"python": "3.11", "dspy": "2.6.27"}}}


def state_24(fields: list[tuple[str, str]], demos: list[Any]) -> dict[str, Any]:
    """As DSPy 2.4 with save_field_meta=True."""
    rows = [{"name": name, "field_type": kind, "description": "x", "prefix": "P:"} for name, kind in fields]
    words = {"signature_instructions": "Not this.", "signature_prefix": "P:"}
    words |= {"extended_signature_instructions": "Write requirements.", "extended_signature_prefix": "P:"}
    return {"self": {"lm": None, "traces": [], "train": [], "demos": demos, "fields": rows, **words}}


DEMO = {"augmented": True, "concept": "A shop", "reasoning": "hm", "requirements": "title: Shop"}
RATIONALE = {"prefix": THOUGHT["prefix"], "description": "${produce the requirements}. We ..."}
CHANGED = [PLAIN[0], {"prefix": "Here they are, complete and correct:", "description": "${requirements}"}]
ODD = [PLAIN[0], {"prefix": "Here they are:", "description": "the YAML"}]
LISTS_24 = [("concept", "input"), ("rationale", "output"), *((name, "output") for name in PARTS)]


@pytest.mark.parametrize(
    "state",
    [
        state_25(chain(PLAIN), []),
        state_25(chain(PLAIN, RATIONALE), [{**DEMO, "rationale": "hm", "reasoning": None}]),
        state_25(chain(EACH), []),
        state_26(PLAIN, [DEMO], ""),
        state_26(chain(PLAIN), [DEMO]),
        state_26(chain(PLAIN), [DEMO], "generate.predict"),
        state_26(chain(PLAIN), [{"concept": "A shop", "requirements": {"title": "Shop"}}]),
        state_26(chain(CHANGED), [DEMO]),
        state_26(chain(ODD), [DEMO]),
        state_26(chain(EACH), []),
        state_24([("concept", "input"), ("rationale", "output"), ("requirements", "output")], []),
        state_24(LISTS_24, []),
    ],
)
def test_a_perfect_program_scores_as_perfect(state: dict[str, Any], tmp_path: Path) -> None:
    """Whichever version of DSPy has saved it, its answer is what is scored; a chain of thought is no part of it."""
    (tmp_path / "p.json").write_text(json.dumps(state))
    program = read_program(tmp_path / "p.json", ROLE)
    assert program.module.signature.instructions == "Write requirements."
    names = list(program.module.signature.output_fields)
    values = {**record(0)["requirements"], "requirements": ROLE.target(record(0)), "reasoning": "hm", "rationale": "hm"}

    def answer(messages: Any) -> str:
        if names == ["requirements"]:
            return str(values["requirements"])
        texts = {name: values[name] if isinstance(values[name], str) else json.dumps(values[name]) for name in names}
        return "\n\n".join(f"[[ ## {name} ## ]]\n{text}" for name, text in texts.items()) + "\n\n[[ ## completed ## ]]"

    chat, (row,) = asked(program, answer)
    assert row["score"] == 1.0, row["notes"]
    shown = json.dumps(chat.calls[0][0])
    assert ("title: Shop" in shown) == (program.demos > 0)
    assert ("hm" in shown) == any("reasoning" in d or "rationale" in d for d in program.module.demos if len(names) > 1)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (state_26(chain([*PLAIN, {"prefix": "Confidence:", "description": "${confidence}"}]), []),
         "answers with confidence, which the role ba does not know: expected requirements alone"),
        (state_26(chain([*PLAIN, {"prefix": "Confidence:", "description": "0 to 1"}]), []), "'Confidence:' is not"),
        (state_26([PLAIN[0], {"prefix": "Answer:", "description": "${answer}"}], []), "answers with answer, which"),
        (state_26(chain(EACH[:-1]), []), "without constraints"),
        (state_26(chain([*EACH, PLAIN[1]]), []), "expected requirements alone, or each of title"),
        (state_26([PLAIN[0], {"prefix": "Context:", "description": "${context}"}, THOUGHT, PLAIN[1]], []),
         "not go from concept alone .*fields: concept, context"),
        (state_26([PLAIN[1]], []), "not go from concept"),
        (state_26([PLAIN[0], PLAIN[1], PLAIN[1]], []), "two fields have the same name"),
        (state_26(ODD, []), "prefix 'Here they are:' is not certain"),
        (state_26(chain(PLAIN), [DEMO, {"question": "A shop", "answer": "x"}]),
         "example 2 cannot be shown: expected concept and requirements, found question, answer"),
        (state_26(EACH, [{"concept": "A shop", "requirements": "title: Shop"}]), "example 1 cannot be shown"),
        (state_26(PLAIN, ["x"]), "example 1 is not a mapping"),
        ({**state_26(PLAIN, []), "retrieve": {"k": 3}}, "holds retrieve, which may change what is asked"),
        (state_26(PLAIN, [], "") | {"tools": ["search"]}, "holds tools"),
        ({"self": {**state_24([], [])["self"], "fields": []}}, "saved by DSPy 2.4, whose state does not say"),
        (state_24([("concept", "input"), ("title", "input"), ("requirements", "output")], []), "concept alone"),
        (state_26(PLAIN, [], "") | {"fields": {"requirements": {"threshold": 0.5}}}, "configures decisions"),
    ],
)  # fmt: skip
def test_what_is_not_certain_is_refused_by_name(state: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(json.dumps(state))
    with pytest.raises(RescoldoError, match=message):
        read_program(tmp_path / "p.json", ROLE)


def test_a_whole_program_with_another_output_is_refused() -> None:
    """What a pickled program answers with shows only when it does."""
    module = dspy.Predict("concept -> requirements, confidence")
    reply = "[[ ## requirements ## ]]\nx\n\n[[ ## confidence ## ]]\n1\n\n[[ ## completed ## ]]"
    with pytest.raises(RescoldoError, match="answers with confidence, which the role ba does not know"):
        asked(Program(module, None), lambda messages: reply)
    module = dspy.ChainOfThought("concept -> requirements")
    reply = f"[[ ## reasoning ## ]]\nhm\n\n[[ ## requirements ## ]]\n{ROLE.target(record(0))}\n\n[[ ## completed ## ]]"
    _, (row,) = asked(Program(module, None), lambda messages: reply)
    assert row["score"] == 1.0


def several(**steps: Any) -> dict[str, Any]:
    """A state of DSPy 3 with these steps: name → (fields, demos)."""
    inner = {name: state_26(fields, demos, "x")["x"] for name, (fields, demos) in steps.items()}
    return {**inner, "metadata": {"dependency_versions": {"python": "3.11", "dspy": "3.4.1"}}}


def fields(*names: str) -> list[dict[str, str]]:
    return [{"prefix": f"{name.replace('_', ' ').title()}:", "description": f"${{{name}}}"} for name in names]


class TwoSteps(dspy.Module):  # type: ignore[misc]
    """As users write them: the attributes are not in the order of running."""

    def __init__(self) -> None:
        super().__init__()
        self.write = dspy.ChainOfThought("concept, outline -> requirements")
        self.plan = dspy.Predict("concept -> outline")

    def forward(self, concept: str) -> Any:
        return self.write(concept=concept, outline=self.plan(concept=concept).outline)


def by_markers(**values: str) -> Any:
    """Answers with the fields that a conversation asks for, those of `values`."""

    def answer(messages: Any) -> str:
        system = messages[0]["content"].partition("Your output fields are:")[2].partition("All interactions")[0]
        wanted = [name for name in values if f"`{name}`" in system] or list(values)[:1]
        return "\n\n".join(f"[[ ## {n} ## ]]\n{values[n]}" for n in wanted) + "\n\n[[ ## completed ## ]]"

    return answer


def test_a_program_of_two_steps_answers_as_dspys_own(tmp_path: Path) -> None:
    path = saved(tmp_path / "p.json", TwoSteps())
    program = read_program(path, ROLE)
    assert program.steps == ("plan", "write.predict")
    assert program.outputs == ("requirements",)
    answers = by_markers(outline="first, second", requirements=ROLE.target(record(0)), reasoning="hm")

    def plain(messages: Any) -> str:
        return "first, second" if "[[ ## " not in messages[0]["content"] else str(answers(messages))

    chat, (row,) = asked(program, plain)
    assert row["score"] == 1.0
    own, (same,) = asked(Program(TwoSteps(), None), plain)
    assert [call[0] for call in chat.calls] == [call[0] for call in own.calls], "word for word what DSPy asks"
    assert len(chat.calls) == 2
    assert "first, second" in chat.calls[1][0][-1]["content"]
    assert (same["text"], same["score"]) == (row["text"], row["score"])
    part = ProgramPredictor("p", program, chat, ROLE, "p").describe()
    assert part["steps"] == ["plan", "write.predict"]


@pytest.mark.parametrize("seen", [(), ("title", "description")], ids=["unseen", "seen by the later step"])
def test_steps_that_answer_parts_and_show_examples(seen: tuple[str, ...], tmp_path: Path) -> None:
    state = several(
        lists=(fields("concept", "summary", *seen, *PARTS[2:]), []),
        start=(fields("concept", "summary"), [{"concept": "A shop", "summary": "It sells."}]),
        words=(fields("summary", *PARTS[:2]), []),
    )
    (tmp_path / "p.json").write_text(json.dumps(state))
    program = read_program(tmp_path / "p.json", ROLE)
    assert program.steps[0] == "start"
    assert sorted(program.outputs or ()) == sorted(PARTS)
    assert program.demos == 1
    wanted = record(0)["requirements"]
    values = {name: value if isinstance(value, str) else json.dumps(value) for name, value in wanted.items()}

    def answer(messages: Any) -> str:
        return "It is it." if "[[ ## " not in messages[0]["content"] else str(by_markers(**values)(messages))

    _, (row,) = asked(program, answer)
    assert row["score"] == 1.0, row["notes"]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (several(a=(fields("concept", "outline"), []), b=(fields("concept", "requirements"), [])),
         "no order of its steps gives each step its inputs"),  # what becomes of the outline?
        (several(a=(fields("context", "concept", "outline"), []), b=(fields("outline", "requirements"), [])),
         "no order .*a: context, concept, outline"),  # a retriever's
        (several(a=(fields("concept", "requirements"), []), b=(fields("concept", "requirements"), [])), "no order"),
        (several(a=(fields("concept", "draft"), []), b=(fields("draft", "draft_2"), []), c=(fields("draft", "x"), [])),
         "no order"),
        (several(a=(fields("concept", "x"), []), b=(fields("concept", "x", "y"), []),
                 c=(fields("x", "y", "requirements"), []), d=(fields("y", "title"), [])), "no order"),
        (several(**{f"s{i}": (fields("concept", f"x{i}"), []) for i in range(7)}), "7 steps: at most 6"),
        (several(a=(fields("concept", "outline"), []),
                 b=([*fields("concept"), {"prefix": "Plan:", "description": "from before"}, *fields("requirements")],
                    [])), "'Plan:' is not certain"),
        (several(a=(fields("concept", "outline"), [{"concept": "x"}]), b=(fields("outline", "requirements"), [])),
         "expected concept and outline, found concept"),
        (several(a=(fields("concept", "outline"), []), b=(fields("outline", "title"), [])), "without description"),
        (several(a=(fields("concept", "p", "q", "title"), []), b=(fields("concept", "q", "p", "description"), [])),
         "more than one order of its steps fits"),
        ({**several(a=(fields("concept", "o"), []), b=(fields("o", "requirements"), [])), "k": 3}, "holds k, which"),
    ],
)  # fmt: skip
def test_steps_that_are_not_certain_are_refused(state: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(json.dumps(state))
    with pytest.raises(RescoldoError, match=message):
        read_program(tmp_path / "p.json", ROLE)


def test_a_program_with_other_fields_is_not_constrained(tmp_path: Path) -> None:
    """A grammar of the answer would not let the markers of its fields through."""
    from rescoldo.evaluation.open import Opener

    thought = saved(tmp_path / "p.json", dspy.ChainOfThought("concept -> requirements"))
    with pytest.raises(RescoldoError, match="other fields than requirements alone"):
        Opener(ROLE).predictor(f"{thought}@constrained:sample:smollm2", "x")

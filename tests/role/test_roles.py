"""Roles from files: those that come with the program, the skeleton, bad ones, and what a run keeps."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from rescoldo.cli.main import app, run_app
from rescoldo.data import read_records
from rescoldo.data.audit import audit
from rescoldo.doctor.role import check_role, read_samples
from rescoldo.errors import RescoldoError
from rescoldo.role import get_role, keep_role, load_role, role_names, role_of_run

SIMPLE: dict[str, Any] = {
    "name": "simple",
    "input": "question",
    "answer": "reply",
    "prompt": "Answer: {{ question }}",
    "metric": "exact_match",
    "samples": [{"question": "1 + 1?", "reply": "2"}, {"question": "2 + 2?", "reply": "4"}],
}
SCHEMA = {
    "type": "object",
    "required": ["sum", "steps"],
    "properties": {
        "sum": {"type": "integer"},
        "steps": {
            "type": "array",
            "minItems": 1,
            "x-unique": "id",
            "items": {
                "type": "object",
                "required": ["id", "text"],
                "properties": {"id": {"type": "string", "pattern": "^S[0-9]$"}, "text": {"type": "string"}},
            },
        },
    },
}
ANSWER = {"sum": 3, "steps": [{"id": "S1", "text": "add"}, {"id": "S2", "text": "check"}]}


def role_file(folder: Path, **changes: Any) -> Path:
    """SIMPLE with changes (None: left out) as a role's file."""
    fields = {name: value for name, value in {**SIMPLE, **changes}.items() if value is not None}
    path = folder / "role.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(fields, sort_keys=False))
    return path


def with_schema(folder: Path, **changes: Any) -> Any:
    samples = [{"question": "1 + 2?", "reply": ANSWER}]
    given = {"schema": SCHEMA, "serialization": "yaml", "metric": "fields", "samples": samples}
    return load_role(role_file(folder, **{**given, **changes}))


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: Any) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["rescoldo", *map(str, args)])
    code = run_app(app)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("name", role_names())
def test_roles_that_come_with_the_program_are_fit(name: str) -> None:
    role, results = check_role(name)
    assert role.name == name
    assert role.spec.description
    assert [(result.name, result.details) for result in results if not result.ok] == []
    assert {result.name for result in results} - {"mend"} == {"file", "samples", "prompt", "own answers", "garbage"}
    samples, _ = read_samples(role)
    assert len(samples) >= 4
    path = Path(role.source).with_name("samples.jsonl")
    assert audit([path], role).ok
    assert len(read_records(path, role)) == len(samples)


def test_all_five_are_there() -> None:
    assert role_names() == ["architect", "ba", "generic", "po", "qa"]


def test_answers_of_one_role_do_not_do_for_another() -> None:
    for name, other in (("po", "qa"), ("qa", "architect"), ("architect", "po"), ("ba", "po")):
        role = get_role(name)
        sample = read_samples(role)[0][0]
        assert get_role(other).score(role.target(sample)).total < 0.4


def test_partial_credit_by_hand() -> None:
    role = get_role("po")
    sample = read_samples(role)[0][0]
    backlog = json.loads(json.dumps(sample["backlog"]))
    backlog["stories"][0]["priority"] = "High"  # one of three stories is wrong: half for the list, 2/3 of the rest
    del backlog["out_of_scope"]
    score = role.score(yaml.safe_dump(backlog, allow_unicode=True))
    assert score.components == {
        "completeness": pytest.approx(2 / 3),
        "outcome": 1.0,
        "stories": pytest.approx(0.5 + 1 / 3),
        "out_of_scope": 0.0,
    }
    assert "stories: stories[0].priority is 'High': expected one of Must, Should, Could, Won't" in score.notes


def test_skeleton_passes_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(monkeypatch, capsys, "role", "new", "release-notes")
    assert code == 0
    assert "rescoldo role check ./release-notes" in out
    code, out, _ = run(monkeypatch, capsys, "role", "check", "./release-notes", "--json")
    assert code == 0
    assert json.loads(out)["ok"] is True
    code, _, err = run(monkeypatch, capsys, "role", "new", "release-notes")
    assert code == 2
    assert "not overwritten" in err
    code, _, err = run(monkeypatch, capsys, "role", "new", "Big Name")
    assert code == 2
    assert not Path("Big Name").exists()
    code, out, _ = run(monkeypatch, capsys, "role", "list", "--json")
    assert [role["name"] for role in json.loads(out)["roles"]] == role_names()


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no prompt": ({"prompt": None}, "prompt is missing"),
    "no metric": ({"metric": None}, "metric: is missing"),
    "unknown metric": ({"metric": "bleu"}, "no metric 'bleu'.*exact_match"),
    "unknown field": ({"promt": "x"}, "promt: there is no such field"),
    "bad name": ({"name": "Big Name"}, "name"),
    "perplexity alone": ({"metric": "perplexity"}, "name another metric"),
    "schema for text": ({"schema": SCHEMA}, "serialization: text has no schema"),
    "json without schema": ({"serialization": "json"}, "schema is missing"),
    "fields without properties": (
        {"serialization": "json", "schema": {"type": "array"}, "metric": "fields"},
        "needs a schema of type object",
    ),
    "no schema at all": ({"serialization": "json", "schema": {"type": "objekt"}}, "objekt"),
    "reference outside": (
        {"serialization": "json", "schema": {"$ref": "http://example.org/schema"}},
        "points outside of the schema",
    ),
    "reference to nothing": ({"serialization": "json", "schema": {"$ref": "#/$defs/a"}}, "points to nothing"),
    "schema file elsewhere": ({"serialization": "json", "schema": "../schema.json"}, "not the name of a file"),
    "call": ({"prompt": "{{ range(9) }}"}, "call is not allowed in prompts"),
    "method": ({"prompt": "{{ question.upper() }}"}, "call is not allowed in prompts"),
    "import": ({"prompt": "{% import 'x' as y %}"}, "import is not allowed in prompts"),
    "assignment": ({"prompt": "{% set a = question %}{{ a }}"}, "assign is not allowed in prompts"),
    "product": ({"prompt": "{{ question * 9999999 }}"}, "mul is not allowed in prompts"),
    "glue": ({"prompt": "{{ question ~ question }}"}, "concat is not allowed in prompts"),
    "filter": ({"prompt": "{{ question | center(99999999) }}"}, "no filter 'center'"),
    "private": ({"prompt": "{{ _turns }}"}, "no field '_turns'"),
    "syntax": ({"prompt": "{{ question"}, "role.yaml:4: prompt: unexpected end of template"),
    "conversation's fields": ({"format": "conversation"}, "leave both out"),
    "last message": ({"prompt": [{"role": "system", "content": "x"}]}, "must be the user's"),
    "not a reference": ({"check": "os system"}, "not module:function"),
    "temperature": ({"sampling": {"temperature": -1}}, "sampling.temperature"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_roles(tmp_path: Path, name: str) -> None:
    changes, message = BAD[name]
    path = role_file(tmp_path, **changes)
    with pytest.raises(RescoldoError, match=message) as caught:
        get_role(str(path))
    assert str(path) in caught.value.where
    assert len(str(caught.value).splitlines()) <= 2


BAD_TEXTS = {
    "no YAML": ("name: [", "not YAML"),
    "a list": ("- a", "a mapping of fields"),
    "twice": ("name: a\nname: b", "is repeated"),
    "alias": ("a: &a x\nb: *a", "aliases"),
    "date": ("name: 2024-01-01", "other than text, number or list"),
    "python": ("name: !!python/object/apply:os.system [ls]", "is not valid YAML"),
    "latin-1": (b"name: espa\xf1ol", "not UTF-8"),
    "deep": ("[" * 20_000, "nested too deeply"),
}


@pytest.mark.parametrize("name", BAD_TEXTS)
def test_bad_files(tmp_path: Path, name: str) -> None:
    text, message = BAD_TEXTS[name]
    path = tmp_path / "role.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RescoldoError, match=message):
        get_role(str(path))
    with pytest.raises(RescoldoError, match="no such file"):
        get_role(str(tmp_path / "none"))


LINES = {  # what is wrong → line of the file, what the message says
    "promt: x": (6, "promt: there is no such field: did you mean `prompt`?"),
    "sampling: {temperature: 0,\n  max_new_tokns: 5}": (
        7,
        "did you mean `max_new_tokens`? (fields: temperature, top_p,",
    ),
    "sampling:\n  top_p: high": (7, "sampling.top_p: is 'high': expected a number"),
    "input: _x": (6, "'_x' is not a valid field name"),
    "input: no": (6, "input: is False: expected text"),
    "serialization: xml": (6, "is 'xml': expected one of 'yaml', 'json' or 'text'"),
    "prompt: 3": (6, "prompt: is 3: expected text or a list"),
    "prompt:\n- {role: system, content: x}\n- {role: boss, content: x}": (
        8,
        "prompt[1].role: is 'boss': expected one of",
    ),
    "prompt:\n- role: user": (7, "prompt[0].content: is missing"),
    "prompt: |\n  one\n  {{ question }} {% x %}\n": (8, "prompt: Encountered unknown tag 'x'"),
    "prompt:\n- role: user\n  content: |-\n    {{ a }}\n    {{ a | b }}": (
        10,
        "prompt[0].content: there is no filter 'b'",
    ),
    "serialization: yaml\nschema:\n  properties:\n    a: {type: text}": (
        9,
        "properties.a.type: is 'text': expected one of object,",
    ),
    "serialization: yaml\nschema: {type: array}\nmetric: fields": (8, "`fields` needs a schema of type object"),
    "serialization: 5\nsampling: {top_p: 2}": (6, "; line 7, sampling.top_p: is 2: expected at most 1"),
}


@pytest.mark.parametrize("text", LINES)
def test_faults_are_at_their_line_in_plain_words(tmp_path: Path, text: str) -> None:
    line, message = LINES[text]
    fields = {"name": "x", "input": "question", "answer": "reply", "prompt": "'{{ question }}'", "metric": "valid"}
    kept = [f"{name}: {value}\n" for name, value in fields.items() if not re.search(rf"^{name}:", text, re.MULTILINE)]
    path = tmp_path / "role.yaml"
    path.write_text("#\n" * (5 - len(kept)) + "".join(kept) + text)
    with pytest.raises(RescoldoError) as caught:
        get_role(str(path))
    assert message in str(caught.value)
    assert caught.value.where == f"{path}:{line}"
    for raw in ("Input should", "should match", "validation", "MessageTemplate"):
        assert raw not in str(caught.value)


SCHEMA_FILES = {
    "s.json": ('{"type":\n"objekt"}', "s.json", "type: is 'objekt': expected one of"),
    "t.json": ('{"type":\n\t"object",}', "t.json:2", "is not JSON"),
    "u.json": ('{"type": "object", "type": "array"}', "u.json", "the key 'type' is repeated"),
    "v.yaml": ("type: object\nproperties:\n  a: {type: text}", "v.yaml:3", "properties.a.type: is 'text'"),
    "w.yaml": ('properties:\n  a: {$ref: "#/properties/a"}', "w.yaml:2", "is circular"),
}


@pytest.mark.parametrize("name", SCHEMA_FILES)
def test_faults_of_a_schema_file_are_its_own(tmp_path: Path, name: str) -> None:
    text, where, message = SCHEMA_FILES[name]
    role_file(tmp_path, serialization="json", schema=name)
    with pytest.raises(RescoldoError, match="no such file") as caught:
        get_role(str(tmp_path))
    assert "write the schema into role.yaml" in caught.value.fix
    (tmp_path / name).write_text(text)
    with pytest.raises(RescoldoError) as caught:
        get_role(str(tmp_path))
    assert caught.value.where == str(tmp_path / where)
    assert message in caught.value.what


def test_a_json_schema_is_read_as_json(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('\ufeff{\n\t"type": "object",\n\t"properties": {"a": {"maximum": 1e3}}\n}')
    role = load_role(role_file(tmp_path, serialization="json", schema="s.json", samples=None).parent)
    assert role.spec.schema_ == {"type": "object", "properties": {"a": {"maximum": 1000.0}}}


def test_loops_and_texts_are_bounded(tmp_path: Path) -> None:
    role = load_role(
        role_file(tmp_path, prompt="{% for a in q %}{% for b in q %}.{% endfor %}{% endfor %}{{ question }}")
    )
    record = {"question": "x", "q": "y" * 1000}
    began = time.monotonic()
    (fault,) = role.check(record, "f", 1, answers=False)
    assert "more than 10000 iterations" in fault.what
    assert role.messages({**record, "q": "yy"})[0]["content"] == "....x"
    long = load_role(role_file(tmp_path / "b", prompt="{% for a in q %}{{ question }}{% endfor %}"))
    (fault,) = long.check({"question": "x" * 100_000, "q": "y" * 1000}, "f", 1, answers=False)
    assert "longer than" in fault.what
    assert time.monotonic() - began < 5


def test_a_field_that_is_missing_is_named(tmp_path: Path) -> None:
    role = load_role(role_file(tmp_path, prompt="{{ audience }}: {{ question }}"))
    (fault,) = role.check({"question": "x", "reply": "y"}, "d.jsonl", 7)
    assert fault.where == "d.jsonl:7"
    assert "'audience' is undefined" in fault.what


def test_what_a_record_says_is_no_template(tmp_path: Path) -> None:
    role = load_role(role_file(tmp_path))
    assert role.messages({"question": "{{ 7 }} {% x"})[0]["content"] == "Answer: {{ 7 }} {% x"


def test_target_follows_the_schema(tmp_path: Path) -> None:
    role = with_schema(tmp_path)
    shuffled = {"more": 1, "steps": [{"text": "add", "x": 0, "id": "S1"}], "sum": "3"}
    target = role.target({"question": "q", "reply": shuffled})
    assert target == "sum: 3\nsteps:\n- id: S1\n  text: add"
    as_text = {"question": "q", "reply": yaml.safe_dump(shuffled)}
    assert role.target(role.read(as_text)) == target
    assert not role.check(as_text, "f", 1)
    as_json = with_schema(tmp_path / "json", serialization="json")
    assert json.loads(as_json.target({"question": "q", "reply": shuffled})) == yaml.safe_load(target)


def test_faults_of_an_answer_are_named(tmp_path: Path) -> None:
    role = with_schema(tmp_path)

    def faults(reply: Any) -> list[tuple[str, str]]:
        return [(fault.field, fault.what) for fault in role.check({"question": "q", "reply": reply}, "f", 1)]

    assert faults(ANSWER) == []
    assert faults({"sum": 1.5, "steps": ANSWER["steps"]}) == [("reply.sum", "is a number: expected a whole number")]
    assert faults({"steps": []}) == [
        ("reply.sum", "is missing"),
        ("reply.steps", "0 items, at least 1 wanted"),
    ]
    twice = {"sum": 1, "steps": [{"id": "S1", "text": "a"}, {"id": "S1", "text": "b"}]}
    assert faults(twice) == [("reply.steps[1].id", "S1 is already used in item 0")]
    wrong = {"sum": 1, "steps": [{"id": "1", "text": 5}, "x"]}
    assert faults(wrong) == [
        ("reply.steps[0].id", "is '1', which does not match ^S[0-9]$"),
        ("reply.steps[0].text", "is a number: expected text"),
        ("reply.steps[1]", "is text: expected an object"),
    ]
    assert faults(None) == [("reply", "is null: expected an answer")]


def test_only_what_teaches_is_in_the_digest(tmp_path: Path) -> None:
    def digest(folder: str, **changes: Any) -> str:
        return load_role(role_file(tmp_path / folder, **changes)).digest

    plain = digest("a")
    assert digest("b", description="other", samples=None, sampling={"top_p": 0.5}) == plain
    for change in ({"prompt": "{{ question }}"}, {"metric": "rouge_l"}, {"name": "x"}):
        assert digest("c", **change) != plain
    digests = set()
    for code in ("f = float", "f = int"):
        (tmp_path / "d").mkdir(exist_ok=True)
        (tmp_path / "d" / "m.py").write_text(code)
        role_file(tmp_path / "d", metric="m.py:f")
        digests.add(load_role(tmp_path / "d").digest)
    assert len(digests) == 2


def test_functions_of_a_role(tmp_path: Path) -> None:
    role_file(tmp_path, metric=["m.py:good", "m.py:parts", "m.py:bad", "m.py:wild"])
    (tmp_path / "m.py").write_text(
        "def good(prediction, record): return prediction == record['reply']\n"
        "def parts(prediction, record): return {'a': 1, 'b': 0.5}\n"
        "def bad(prediction, record): raise KeyError('x')\n"
        "def wild(prediction, record): return 7\n"
    )
    role = get_role(str(tmp_path)).ready()
    score = role.score("2", {"question": "1 + 1?", "reply": "2"})
    assert score.components == {"good": 1.0, "a": 1.0, "b": 0.5, "bad": 0.0, "wild": 0.0}
    assert score.total == pytest.approx(0.5)
    assert score.notes == [
        "bad: KeyError: 'x', m.py:3",
        "wild: returned 7 as wild: expected a number between 0 and 1, m.py:4",
    ]
    assert list(score.failures) == ["bad", "wild"]
    _, results = check_role(str(tmp_path))
    assert not all(result.ok for result in results)


@pytest.mark.parametrize(
    ("reference", "message"),
    [("m.py:f", "m.py"), ("no.such.module:f", "No module"), ("math:pi", "no function"), ("os.path:none", "none")],
)
def test_functions_that_are_not_there(tmp_path: Path, reference: str, message: str) -> None:
    path = role_file(tmp_path, metric=reference)
    with pytest.raises(RescoldoError, match=message):
        get_role(str(tmp_path)).ready()
    assert path.exists()


def test_a_run_keeps_its_role_and_runs_no_foreign_code(tmp_path: Path) -> None:
    role_file(tmp_path / "mine", metric="m.py:f")
    (tmp_path / "mine" / "m.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef f(p, r): return 1\n")
    role = get_role(str(tmp_path / "mine"))
    run = tmp_path / "run"
    keep_role(role, run)
    kept = role_of_run(run, {})
    assert (kept.identity, kept.trusted) == (role.identity, False)
    assert kept.messages({"question": "x"}) == role.messages({"question": "x"})
    with pytest.raises(RescoldoError, match="Python code") as caught:
        kept.ready()
    assert f"--role {run / 'role'}" in caught.value.fix
    with pytest.raises(RescoldoError, match="Python code"):
        kept.score("x", {})
    assert not (tmp_path / "ran").exists()
    assert role_of_run(run, {}, str(run / "role")).ready().score("x").total == 1
    keep_role(get_role(str(run / "role")), run)  # itself onto itself
    for name in role_names():
        keep_role(get_role(name), tmp_path / name)
        assert role_of_run(tmp_path / name, {}).ready().identity == get_role(name).identity
    assert role_of_run(None, {"role": "qa"}).name == "qa"
    assert role_of_run(None, {}).name == "ba"
    with pytest.raises(RescoldoError, match="no copy"):
        role_of_run(tmp_path, {"role": "os:system"})


def test_own_functions_are_those_written_for_roles(tmp_path: Path) -> None:
    keep_role(load_role(role_file(tmp_path / "a", metric="rescoldo.files:write_text")), tmp_path)
    with pytest.raises(RescoldoError, match="Python code"):
        role_of_run(tmp_path, {}).ready()


def test_check_finds_what_is_unfit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.py").write_text("def exact_match(p, r): return 1\none = exact_match\ndef half(p, r): return 0.5\n")
    for changes, message in (
        ({"samples": None}, "samples: there are none"),
        ({"samples": "none.jsonl"}, "none.jsonl: there is no such file"),
        ({"samples": [{"question": "x"}]}, "reply: is missing"),
        ({"prompt": "the same"}, "two samples have the same prompt"),
        (
            {"metric": "builtins:len"},
            "metric: `len` failed on 14 of 14 answers (sample 1, sample 2, nothing, blanks, …): ",
        ),
        ({"metric": "m.py:half"}, "own answers: sample 1: its own answer scores 0.500, not 1"),
        ({"mend": "builtins:len"}, "mend: "),
        ({"prompt": "{{ question }} {{ reply }}"}, "prompt: it uses `reply`, the answer"),
        ({"metric": ["exact_match", "m.py:exact_match"]}, "comes from both exact_match and m.py:exact_match"),
        (
            {
                "schema": {"type": "object", "requird": ["a"], "properties": {"a": {"typ": "string"}}},
                "serialization": "json",
                "samples": None,
            },
            "`typ` is not a keyword of JSON Schema: did you mean `type`?",
        ),
        ({"metric": "m.py:one"}, "garbage: 12 of 12 kinds score 1 like a perfect answer: nothing, "),
    ):
        role_file(tmp_path, **changes)
        code, out, _ = run(monkeypatch, capsys, "role", "check", tmp_path)
        assert code == 1
        assert message in out
        assert out.count("❌") <= 3, "the same fault is one line"
        assert "    → " in out
    (tmp_path / "s.jsonl").write_text('{"question": "x", "reply": "y"}\n{"question": 5, "reply": "y"}\n')
    role_file(tmp_path, samples="s.jsonl")
    code, out, _ = run(monkeypatch, capsys, "role", "check", tmp_path)
    assert f"{tmp_path / 's.jsonl'}:2, question: is a number: expected text" in out


def test_what_is_worth_a_look_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = [{"question": "a", "about": "b", "reply": "c"}, {"question": "d", "about": "e", "reply": "f"}]
    folder = tmp_path / "my roles"
    role_file(folder, prompt="{{ about }}", samples=samples)
    code, out, _ = run(monkeypatch, capsys, "role", "check", folder)
    assert code == 0
    assert "⚠️  prompt: it does not use `question`, the input\n    → put {{ question }}" in out
    assert f"→ rescoldo train --role '{folder}' --train" in out


@pytest.mark.parametrize("code", ["time.sleep(60)", "while True: pass"])
def test_a_slow_metric_does_not_stop_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.setattr("rescoldo.doctor.role.PATIENCE", 0.3)
    role_file(tmp_path, metric="m.py:f")
    swallows = f"    try:\n        {code}\n    except Exception:\n        return 1\n"
    (tmp_path / "m.py").write_text(f"import time\ndef f(p, r):\n{swallows}")
    began = time.monotonic()
    _, results = check_role(str(tmp_path))
    assert time.monotonic() - began < 10
    assert [result.details for result in results if not result.ok] == [["scoring sample 1 takes longer than 0.3 s"]]


def test_mend_is_called_by_the_check(tmp_path: Path) -> None:
    role_file(tmp_path, mend="m.py:f")
    for code, ok, message in (
        ("return record, []", True, "the corrected samples are valid"),
        ("record.clear()\n    return record, []", False, "after mend it is missing"),
        ("return record", False, "m.py:1: mend: m.py:f failed on"),
    ):
        (tmp_path / "m.py").write_text(f"def f(record):\n    {code}\n")
        (result,) = [result for result in check_role(str(tmp_path))[1] if result.name == "mend"]
        assert result.ok is ok
        assert message in result.details[0]


def test_names_of_roles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    for name in role_names():
        code, _, err = run(monkeypatch, capsys, "role", "new", name)
        assert code == 2
        assert "comes with the program" in err
        assert not Path(name).exists()
    code, _, err = run(monkeypatch, capsys, "role", "check", "nope")
    assert code == 2
    assert err.startswith("error: there is no role 'nope'")
    code, out, _ = run(monkeypatch, capsys, "role", "new", "notes", "-o", "my roles/notes")
    assert code == 0
    assert "→ rescoldo role check 'my roles/notes'" in out


def test_instruction() -> None:
    assert get_role("ba").instruction().startswith("You are a business analyst.")
    assert get_role("ba").instruction().endswith("keys, IDs and priorities stay in English.")
    assert get_role("generic").instruction() == get_role("generic").spec.description

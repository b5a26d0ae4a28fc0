"""Reports in Spanish: all of them, not half."""

from __future__ import annotations

import ast
import copy
import json
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rescoldo.evaluation
from rescoldo.errors import RescoldoError
from rescoldo.evaluation import write_document
from rescoldo.evaluation.decision import decide
from rescoldo.evaluation.language import ENGLISH, LANGUAGES, language
from rescoldo.evaluation.measures import MEASURES
from rescoldo.evaluation.page import page
from rescoldo.evaluation.report import FACTS, markdown
from rescoldo.evaluation.score import DOUBTS, doubts
from rescoldo.evaluation.spanish import MESSAGES, TEXTS
from rescoldo.evaluation.wording import LABELS, REASONS, VERDICTS
from rescoldo.phrase import Phrase, as_data
from rescoldo.role import get_role
from rescoldo.role.metrics import Note, place_of
from tests.browser import open_page
from tests.evaluation.test_content import compared, empty, judge, people, reference, repeating, votes
from tests.evaluation.test_page import document
from tests.role.test_roles import role_file

FOLDER = Path(rescoldo.evaluation.__file__).parent
ES = LANGUAGES["es"]
PLACE = re.compile(r"\{([^{}]+)\}")


def spoken() -> set[str]:
    """Each text that the code gives a Language to say, where it stands as it is."""
    found: set[str] = set()
    for name in ("wording", "report", "page"):
        for node in ast.walk(ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))):
            said = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "say"
            if said and node.args and isinstance(node.args[0], ast.Constant):  # type: ignore[attr-defined]
                found.add(node.args[0].value)  # type: ignore[attr-defined]
    found |= set(re.findall(r'say\("([^"]+)"\)', (FOLDER / "page.html.j2").read_text(encoding="utf-8")))
    return found


def test_all_that_is_said_has_a_translation() -> None:
    from_tables = {*LABELS.values(), *REASONS.values(), *(fact.replace("_", " ") for fact in FACTS)}
    from_tables |= {row.sentence for row in VERDICTS.values()}
    assert len(spoken()) > 60
    assert (spoken() | from_tables) - set(TEXTS) == set()
    assert set(LABELS) == set(MEASURES)
    sides = {(name, side) for name, kind in MEASURES.items()
             for side, bad in (("below", kind.low), ("above", kind.high)) if bad}  # fmt: skip
    assert set(REASONS) == sides


@pytest.mark.parametrize("table", [TEXTS, MESSAGES], ids=["texts", "messages"])
def test_translations_hold_the_same_values(table: dict[str, str]) -> None:
    """The same places, and numbers with the same decimals."""
    for english, spanish in table.items():
        assert set(PLACE.findall(english)) == set(PLACE.findall(spanish)), english


def templates(source: str) -> Iterator[str]:
    """The templates of the phrases that are made in a module; a call that does not show its own is refused."""
    tree = ast.parse(source)
    for scope in ast.walk(tree):
        if not isinstance(scope, ast.FunctionDef | ast.Module):
            continue
        body = list(own_nodes(scope))
        texts: dict[str, list[str]] = {}
        for node in body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
                for target in node.targets:
                    if isinstance(target, ast.Name):
                        texts.setdefault(target.id, []).append(node.value.value)  # type: ignore[arg-type]
        for node in body:
            called = node.func if isinstance(node, ast.Call) else None
            if not (isinstance(called, ast.Name) and called.id in ("Phrase", "Note")):
                continue
            first = node.args[0]  # type: ignore[attr-defined]
            if isinstance(first, ast.Constant):
                yield first.value  # type: ignore[misc]
            elif isinstance(first, ast.Name) and first.id in texts:
                yield from texts[first.id]
            elif ast.unparse(first) != "DOUBTS[kind]":
                raise AssertionError(f"line {first.lineno}: no template stands in Phrase({ast.unparse(first)})")


def own_nodes(scope: ast.AST) -> Iterator[ast.AST]:
    """All nodes of a function or module but those of the functions in it."""
    for node in ast.iter_child_nodes(scope):
        yield node
        if not isinstance(node, ast.FunctionDef):
            yield from own_nodes(node)


def all_templates() -> set[str]:
    found = {*DOUBTS.values()}
    for path in FOLDER.parent.rglob("*.py"):
        if path.name not in ("phrase.py", "metrics.py"):
            found |= set(templates(path.read_text(encoding="utf-8")))
    for name in ("phrase.py", "role/metrics.py"):
        found |= set(re.findall(r'(?:Phrase|cls)\("([^"]+)"', (FOLDER.parent / name).read_text(encoding="utf-8")))
    return found


def test_every_phrase_has_a_translation_and_every_translation_a_phrase() -> None:
    assert len(all_templates()) > 80
    assert all_templates() - set(MESSAGES) == set()
    assert set(MESSAGES) - all_templates() == set()
    imported = (FOLDER / "language.py").read_text(encoding="utf-8")
    assert "import re" not in imported, "a message is never found by its text"


def test_the_search_for_phrases_refuses_what_it_cannot_see() -> None:
    assert set(templates('def f():\n    text = "a"\n    return [Phrase(text), Note("b")]')) == {"a", "b"}
    for source in ('Phrase(f"{x}")', "Phrase(text)", 'Phrase("a" + b)', 'text = "a"\ndef f(text): Phrase(text)'):
        with pytest.raises(AssertionError, match="no template"):
            set(templates(source))


def own_messages(found: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """(object, key) of each message, or list of messages, of a document."""
    if isinstance(found, dict):
        for key in ("sentence", "caveat", "reasons", "warnings", "notes"):
            if found.get(key):
                yield found, key
        for name, value in found.items():
            if name != "messages":
                yield from own_messages(value)
    elif isinstance(found, list):
        for value in found:
            yield from own_messages(value)


@pytest.mark.parametrize("read", [False, True], ids=["made", "read"])
def test_all_that_a_document_says_has_its_template(read: bool) -> None:
    """In the JSON the English text, and beside it what it is made of."""
    for found in (document(), document(repeats=2), compared(empty)):
        whole = json.loads(json.dumps(found)) if read else found
        messages = list(own_messages(whole))
        assert len(messages) > 10
        for part, key in messages:
            data, texts = part["messages"][key], part[key]
            for one, text in zip([data], [texts]) if isinstance(texts, str) else zip(data, texts, strict=True):
                assert type(text) is str or not read
                assert filled(one) == text
                assert json.loads(json.dumps(one)) == one


def filled(data: dict[str, Any]) -> Phrase:
    """The English text of a message's data."""
    values = {name: filled(value) if isinstance(value, dict) else value for name, value in data["values"].items()}
    return Phrase(data["template"], **values)


@pytest.mark.parametrize("scores", [
    ([0.0] * 9, [1.0] * 9), ([0.9] * 9, [0.92] * 9), ([0.9] * 9, [0.8] * 9), ([0.2] * 9, [0.6] * 9),
    ([0.0] * 3, [1.0] * 3), ([0.5], [1.0]), ([0.5, 0.6] * 4, [0.6, 0.65] * 4),
])  # fmt: skip
@pytest.mark.parametrize("train_score", [None, 0.5, 0.99])
def test_all_that_the_rule_says_is_said_in_spanish(scores: tuple[list[float], list[float]], train_score: float) -> None:
    old, new = scores
    found = decide({"base": [1.0] * len(old), "old": old, "new": new}, finetuned="new", reference="old",
                   baseline="base", train_score=train_score)  # fmt: skip
    for phrase in [found["sentence"], *found["reasons"]]:
        shown = ES(phrase.template, **phrase.json["values"])
        assert not re.search(r"\d\.\d|\d%|\b(the|points?|examples?|is|at least|below)\b", shown), shown


NOTES = {  # what is wrong with an answer → in Spanish
    "ba": {
        "- a": "respuesta: no es un mapa YAML: es una lista",
        "plain": "respuesta: no es un mapa YAML: es texto corrido",
        "": "respuesta: no es un mapa YAML: está vacía",
        "a: b: c": "respuesta: no es un mapa YAML: aquí no puede ir un valor de un mapa (línea 1)",
        "title: x": "title: 1 caracteres, se esperaban de 10 a 100",
        "constraints: y": "constraints: no es una lista",
        "constraints: []": "constraints: 0 elementos, se esperaban al menos 2",
        "constraints:\n- {id: C1}": "id_format: C1 en constraints[0] no es C y tres cifras",
        "constraints:\n- {id: C001, description: d, priority: Urgent}": "constraints[0]: la priority 'Urgent' no es "
        "High, Medium ni Low",
        "constraints:\n- {id: C001}\n- {id: C001}": "id_format: C001 aparece 2 veces en constraints",
        "constraints:\n- 3": "constraints[0]: no es un mapa de id, description y priority",
    },
    "po": {
        "plain": "respuesta: es texto corrido",
        "- a": "respuesta: no es un objeto",
        "a: [": "respuesta: no es YAML: falta un valor (línea 2)",
        "a: 1": "completeness: falta outcome",
        "outcome: [1]": "outcome: es una lista, se esperaba texto",
    },
}


@pytest.mark.parametrize("role", NOTES)
def test_what_stands_in_an_answer_as_notes(role: str) -> None:
    for text, wanted in NOTES[role].items():
        notes = get_role(role).score(text).notes
        part = {"notes": notes, "messages": {"notes": as_data(notes)}}
        assert wanted in ES.messages(part, "notes"), text
        assert ENGLISH.messages(part, "notes") == notes


def test_a_json_answer_that_cannot_be_read(tmp_path: Path) -> None:
    """The parser's message is said in Spanish, and its place is kept."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    role = get_role(str(role_file(tmp_path, serialization="json", schema=schema, metric="valid")))
    note = role.score('{"a": 1,\n "b" 2}').notes[0]
    part = {"notes": [note], "messages": {"notes": as_data([note])}}
    assert note == "answer: not JSON: Expecting ':' delimiter: line 2 column 6 (char 14)"
    assert ES.messages(part, "notes") == ["respuesta: no es JSON: falta un «:»: línea 2, columna 6 (carácter 14)"]
    assert place_of(note) == (2,)


def test_numbers_are_written_as_in_spanish() -> None:
    phrase = Phrase("{model} {mean:.1%}, at least {limit:.0%}", model="qwen2.5", mean=0.955, limit=0.9)
    part = {"sentence": phrase, "messages": {"sentence": phrase.json}}
    assert phrase == "qwen2.5 95.5%, at least 90%"
    assert ES.message(part, "sentence") == "qwen2.5 95,5 %, como mínimo 90 %", "the digits of a name are not a number"
    assert ENGLISH.message(part, "sentence") == phrase
    assert (ES.percent(0.955, 1), ES.points(0.955), ES.number(12345, ",d")) == ("95,5 %", "+95,5", "12\u202f345")
    assert (ES.percent(12.3456, 1), ES.number(1234.5, "+,.1f")) == ("1234,6 %", "+1\u202f234,5")
    assert (ENGLISH.percent(0.955, 1), ENGLISH.number(12345.5, ",.1f")) == ("95.5%", "12,345.5")
    assert ES.listed(["a", "b", "c"]) == "a, b y c"


DATA = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(sorted(MESSAGES)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["template", "values", "model", "what", "k", "n"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.text(max_size=50), DATA)
def test_any_document(text: str, data: Any) -> None:
    """A document comes from a file. Whatever stands in it, there is a text, and nothing but the program's own templates
    is filled in."""
    for part in ({"sentence": text, "messages": data}, {"sentence": text, "messages": {"sentence": data}}):
        assert ENGLISH.message(part, "sentence") == text
        assert isinstance(ES.message(part, "sentence"), str)
        assert ES.messages({"notes": [text], "messages": {"notes": data}}, "notes")
        assert ENGLISH.messages({"notes": [text], "messages": {"notes": [data]}}, "notes") == [text]


@pytest.mark.parametrize("data", [
    {"template": "{model.__class__}", "values": {"model": "x"}}, {"template": "{x:1000000000}", "values": {"x": 1}},
    {"template": "adopt {model}", "values": {}}, {"template": "adopt {model}", "values": {"other": 1}},
    {"template": "{text}", "values": {"text": {"template": "unknown", "values": {}}}},
    {"template": "adopt {model}"}, "adopt", None, [], 3,
])  # fmt: skip
def test_data_that_no_template_fits_leaves_the_text(data: Any) -> None:
    assert ES.message({"sentence": "as it is", "messages": {"sentence": data}}, "sentence") == "as it is"


def test_documents_without_data_are_shown_as_they_are() -> None:
    """Those of earlier versions: the program's own words in Spanish, the document's in English."""
    found = json.loads(json.dumps(compared(empty, metadata={"lang": "es"})))
    now = markdown(found)
    for part, _ in own_messages(found):
        part.pop("messages", None)
    then = markdown(found)
    assert "el intervalo del 95 % de finetuned - base va de" in now
    assert "the 95 % interval of finetuned - base is" in then
    assert "# Comparación" in then


def test_a_phrase_is_a_text_that_can_be_copied_and_sent() -> None:
    phrase = Phrase("{a} and {b:.1f}", a=Phrase("{n} cats", n=3), b=2.0)
    assert (phrase, json.dumps(phrase)) == ("3 cats and 2.0", '"3 cats and 2.0"')
    assert phrase.json == {"template": "{a} and {b:.1f}",
                           "values": {"a": {"template": "{n} cats", "values": {"n": 3}}, "b": 2.0}}  # fmt: skip
    note = Note.at(phrase, "list", 0)
    for again in (copy.deepcopy(note), pickle.loads(pickle.dumps(note))):
        assert (again, again.json, again.place) == (phrase, phrase.json, ("list", 0))
    own = Note.at("a text with {braces}", 1)
    assert (own, own.json["values"]) == ("a text with {braces}", {"text": "a text with {braces}"})


def test_there_is_no_other_language() -> None:
    with pytest.raises(RescoldoError, match="--lang: invalid value 'fr': expected en or es"):
        language("fr")


EVIDENCE = [
    {},
    {"people": people(votes(26, 4)), "judges": [judge(votes(20, 20))]},
    {"people": people(votes(16, 14)), "judges": [judge(votes(40, 1), passed=False)]},
    {"judges": [judge(votes(2, 40))]},
]
# Words that no Spanish text has; in names, keys and the answers themselves they may stand.
ENGLISH_WORDS = re.compile(
    r"\b(the|of|and|with|answers?|points?|keep|adopt|learned|missing|warning|scores?|mean|interval|unlike|against|"
    r"tokens an|words|normal range|judge that|people|votes of|content|form|nothing|repeat(ed)?|empty|at least)\b",
    re.IGNORECASE,
)


@pytest.mark.parametrize("evidence", EVIDENCE)
@pytest.mark.parametrize("model", [reference, repeating], ids=lambda model: model.__name__)
def test_no_english_in_spanish_reports(model: Any, evidence: dict[str, Any]) -> None:
    found = compared(model, metadata={"lang": "es", "dataset": "d.jsonl", "examples": 22}, **evidence)
    sentence = found["comparison"]["decision"]["verdict"]
    for part in found["models"].values():  # what is left is what the report says itself
        for row in part["predictions"]:
            row["text"], row["concept"] = "", "c"
    for text in (markdown(found), page(found)):
        shown = re.sub(
            r"<style>.*?</style>|<[^>]*>|\\?`[^`]*`|completeness|title|description\w*", " ", text, flags=re.DOTALL
        )
        shown = re.sub(r"\w*\\?_\w*|rescoldo [^|<\n]*|- id_format.*|constraints|--judge \w+", " ", shown)
        assert not ENGLISH_WORDS.search(shown), ENGLISH_WORDS.findall(shown)
        assert "95 %" in text
        assert not re.search(r"\d\.\d%|\d%", shown)
    assert "finetuned has learned" in sentence, "the document itself stays English"


def test_models_that_answer_alike_leave_nothing_to_choose() -> None:
    """It is said so, instead of a win rate of no vote."""
    none = {**votes(1, 0), "wins": 0, "win_rate": 0.5, "interval": [0.0, 1.0], "settled": False}
    for lang, said in (("en", "no two answers to choose from"), ("es", "no hay dos respuestas entre las que elegir")):
        found = markdown(compared(reference, judges=[judge(none)], metadata={"lang": lang}))
        (line,) = (line for line in found.splitlines() if said in line)
        assert "50" not in line


def test_the_verdict_is_first() -> None:
    found = compared(repeating, metadata={"lang": "es"})
    assert (
        markdown(found)
        .splitlines()[2]
        .startswith("**Mantener base por ahora: finetuned ha aprendido la forma (100,0 %")
    )
    assert '<html lang="es">' in page(found)


def test_in_a_browser(tmp_path: Path) -> None:
    found = document()
    found["metadata"]["lang"] = "es"
    shown = open_page(write_document(found, tmp_path / "c.json")[1], width=390)
    assert (shown.console, shown.requests, shown.overflow) == ([], [], 0)
    assert shown.text.split("\n\n")[1].startswith("Mantener optimized por ahora: finetuned ha aprendido la forma")
    assert "Puntuaciones" in shown.text


def test_doubts_are_said() -> None:
    row = {"diagnostics": {"concept_words_used": 0.0, "longest_copied_run": 99}, "ended": False, "text": "x"}
    assert len(doubts(row)) == 3
    assert all(text in TEXTS for text in doubts(row))

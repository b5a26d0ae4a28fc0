"""Out into another program's form and in again: the same records; and what a form cannot hold is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rescoldo.data import read_records
from rescoldo.errors import RescoldoError
from rescoldo.intake.forms import FORMS, export_records
from rescoldo.intake.importer import import_rows, preview
from rescoldo.intake.open import open_source
from rescoldo.role import get_role
from tests.data.examples import record, write
from tests.intake.test_import import TOOLS

GENERIC = get_role("generic")
CHAT = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": "q1"},
    {"role": "assistant", "content": "a1", "weight": 0},
    {"role": "user", "content": "q2"},
    {"role": "assistant", "content": "a2"},
]
DEFINED = [{"type": "function", "function": {"name": "f"}}]
ONE = [
    {"prompt": "q", "completion": "a", "id": 1},
    {"instruction": "i", "input": "x", "output": "o", "system": "s"},
    {"instruction": "i", "context": "x", "response": "o"},
    {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "lang": "en"},
    {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "metadata": {"x": [1]}},
]
SEVERAL = [
    {"prompt": [CHAT[0], CHAT[1], {"role": "assistant", "content": "a1"}, CHAT[3]], "completion": [CHAT[4]]},
    {"messages": CHAT, "source": "x"},
    {"instruction": "q2", "output": "a2", "history": [["q1", "a1"]]},
    {"system": "s", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a", "weight": 1}]},
]


def back(path: Path) -> Path:
    source = open_source(str(path))
    output = path.with_suffix(".back.jsonl")
    import_rows(source, preview(source).plan, output)
    return output


def taught(path: Path) -> list[Any]:
    """What training sees of a file."""
    rows = read_records(path, GENERIC)
    learned = [GENERIC.conversation(one).learned for one in rows]
    return [(GENERIC.messages(one), GENERIC.target(one), places) for one, places in zip(rows, learned, strict=True)]


@pytest.mark.parametrize("form", FORMS)
def test_out_and_in_again_teaches_the_same(tmp_path: Path, form: str) -> None:
    path = write(tmp_path / "d.jsonl", *ONE, *(SEVERAL if form != "alpaca" else []))
    export_records(path, GENERIC, form, tmp_path / "out.jsonl")
    made = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    key = {"openai": "messages", "sharegpt": "conversations", "alpaca": "instruction"}[form]
    assert all(key in one for one in made)
    assert taught(back(tmp_path / "out.jsonl")) == taught(path)
    notes = [{k: v for k, v in one.items() if k in ("id", "lang", "metadata")} for one in made]
    assert notes[: len(ONE)] == [{"id": 1}, {}, {}, {"lang": "en"}, {"metadata": {"x": [1]}}]


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(str.strip)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(TEXT, min_size=2, max_size=6), min_size=1, max_size=4), st.sampled_from(["openai", "sharegpt"])
)
def test_any_conversation_is_the_same_record_again(talks: list[list[str]], form: str) -> None:
    import tempfile

    wanted = []
    for talk in talks:
        turns = [
            {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(talk[: len(talk) & ~1])
        ]
        wanted.append({"messages": turns, "note": talk[0]})
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "d.jsonl", *wanted)
        export_records(path, GENERIC, form, Path(folder) / "x.jsonl")
        export_records(back(Path(folder) / "x.jsonl"), GENERIC, "openai", Path(folder) / "y.jsonl")
        again = [json.loads(line) for line in (Path(folder) / "y.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
    assert again == wanted


def test_sharegpt_s_tools_become_openai_s(tmp_path: Path) -> None:
    turns = [
        ("human", "q"),
        ("function_call", '{"name": "f", "arguments": {"x": 1}}'),
        ("observation", "r"),
        ("gpt", "a"),
    ]
    row = {"conversations": [{"from": who, "value": text} for who, text in turns], "tools": DEFINED}
    path = write(tmp_path / "d.jsonl", row)
    export_records(path, GENERIC, "openai", tmp_path / "o.jsonl")
    (made,) = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    call = made["messages"][1]["tool_calls"][0]
    assert (call["function"], call["id"]) == (
        {"name": "f", "arguments": '{"x": 1}'},
        made["messages"][2]["tool_call_id"],
    )
    assert taught(tmp_path / "o.jsonl") == taught(path)


def call(name: str, number: int) -> dict[str, Any]:
    return {"id": name, "type": "function", "function": {"name": "f", "arguments": json.dumps({"x": number})}}


ASK = [{"role": "user", "content": "q"}]
SAID_AND_CALLED = {"role": "assistant", "content": "Let me look.", "tool_calls": [call("c", 1)]}
BOTH = [*ASK, {"role": "assistant", "content": None, "tool_calls": [call("c", 1), call("d", 2)]}]
RESULTS = [{"role": "tool", "tool_call_id": name, "content": f"of {name}"} for name in ("c", "d")]
LAST = {"role": "assistant", "content": "a"}
CROSSED = [*BOTH, *reversed(RESULTS), LAST]


def without_ids(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_ids(one) for key, one in value.items() if key not in ("id", "tool_call_id")}
    return [without_ids(one) for one in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("turns", [[*TOOLS[:3], LAST], [*BOTH, *RESULTS, LAST]])
def test_calls_in_sharegpt_s_way_and_back(tmp_path: Path, turns: list[Any]) -> None:
    path = write(tmp_path / "d.jsonl", {"messages": turns, "tools": DEFINED})
    export_records(path, GENERIC, "sharegpt", tmp_path / "s.jsonl")
    (made,) = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert [turn["from"] for turn in made["conversations"]][:3] == ["human", "function_call", "observation"]
    assert isinstance(json.loads(made["tools"])[0]["name"], str)
    again = back(tmp_path / "s.jsonl")
    assert without_ids(taught(again)) == without_ids(taught(path))
    (mine,), (theirs,) = read_records(path, GENERIC), read_records(again, GENERIC)
    assert GENERIC.conversation(mine).tools == GENERIC.conversation(theirs).tools
    export_records(tmp_path / "s.jsonl", GENERIC, "sharegpt", tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_text() == (tmp_path / "s.jsonl").read_text()


def test_openai_is_given_what_it_takes(tmp_path: Path) -> None:
    function = {"name": "f", "arguments": {"x": 1}}
    turns = [
        *ASK,
        {"role": "assistant", "content": "", "tool_calls": [{"function": function}]},
        {"role": "tool", "content": "r"},
        LAST,
    ]
    row = {"messages": turns, "tools": json.dumps([{"name": "f", "description": "d", "parameters": {}}])}
    export_records(write(tmp_path / "d.jsonl", row), GENERIC, "openai", tmp_path / "o.jsonl")
    made = json.loads((tmp_path / "o.jsonl").read_text())
    assert made["tools"][0]["type"] == "function", "a list of objects, and not the text of one"
    [called] = made["messages"][1]["tool_calls"]
    assert (called["type"], called["function"]["arguments"]) == ("function", '{"x": 1}')
    assert made["messages"][2]["tool_call_id"] == called["id"]


def test_loose_calls_in_a_prompt_of_messages(tmp_path: Path) -> None:
    loose = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}
    row = {"prompt": [*ASK, loose, {"role": "tool", "content": "r"}], "completion": [LAST], "tools": DEFINED}
    path = write(tmp_path / "d.jsonl", row)
    export_records(path, GENERIC, "openai", tmp_path / "o.jsonl")
    assert taught(tmp_path / "o.jsonl") == taught(path)


def test_alpaca_s_history_is_written(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", SEVERAL[2])
    export_records(path, GENERIC, "alpaca", tmp_path / "a.jsonl")
    made = json.loads((tmp_path / "a.jsonl").read_text())
    assert made["history"] == SEVERAL[2]["history"]
    assert taught(back(tmp_path / "a.jsonl")) == taught(path)


def typed(message: dict[str, Any]) -> dict[str, Any]:
    """Its calls with the type that OpenAI wants."""
    calls = message.get("tool_calls")
    return {"tool_calls": [{**one, "type": "function"} for one in calls]} if calls else {}


def test_tools_stay_whole_in_openai_s_form(tmp_path: Path) -> None:
    rows = [{"messages": TOOLS, "tools": DEFINED}]
    path = write(tmp_path / "d.jsonl", *rows)
    export_records(path, GENERIC, "openai", tmp_path / "o.jsonl")
    assert [json.loads(line) for line in back(tmp_path / "o.jsonl").read_text().splitlines()] == [
        {"messages": [{**one, "content": one.get("content"), **typed(one)} for one in TOOLS], "tools": DEFINED}
    ]


@pytest.mark.parametrize(
    ("form", "row", "what"),
    [
        ("alpaca", SEVERAL[0], "messages[2].weight cannot be written"),
        ("alpaca", SEVERAL[1], "messages[2].weight cannot be written"),
        ("alpaca", {"messages": TOOLS}, "cannot be written in Alpaca's format"),
        (
            "sharegpt",
            {"messages": [*ASK, SAID_AND_CALLED]},
            "messages[1].tool_calls cannot be written in ShareGPT's format",
        ),
        ("sharegpt", {"messages": CROSSED}, "results are in another order than calls"),
        ("alpaca", {**ONE[0], "tools": DEFINED}, "tools cannot be written in Alpaca's format"),
    ],
)
def test_what_a_form_has_no_place_for_is_refused(tmp_path: Path, form: str, row: Any, what: str) -> None:
    path = write(tmp_path / "d.jsonl", ONE[0], row)
    with pytest.raises(RescoldoError) as caught:
        export_records(path, GENERIC, form, tmp_path / "out.jsonl")
    assert caught.value.where == f"{path}:2"
    assert what in caught.value.what
    assert not (tmp_path / "out.jsonl").exists()


def test_a_role_s_records_become_its_prompt_and_answer(tmp_path: Path) -> None:
    role = get_role("ba")
    path = write(tmp_path / "d.jsonl", record(1), record(2))
    assert export_records(path, role, "openai", tmp_path / "o.jsonl") == 2
    assert [one[:2] for one in taught(tmp_path / "o.jsonl")] == [
        (role.messages(one), role.target(one)) for one in (record(1), record(2))
    ]
    with pytest.raises(RescoldoError, match="exists already"):
        export_records(path, role, "openai", tmp_path / "o.jsonl")
    with pytest.raises(RescoldoError, match="data audit"):
        export_records(write(tmp_path / "bad.jsonl", {"concept": ""}), role, "openai", tmp_path / "p.jsonl")

"""The formats that people have: real lines, malformed lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rescoldo.data import read_records
from rescoldo.data.audit import audit
from rescoldo.data.fix import fix_file
from rescoldo.data.split import split_files
from rescoldo.data.tokenize import tokenize_records
from rescoldo.errors import RescoldoError
from rescoldo.role import get_role
from tests.base.make_models import tiny_tokenizer
from tests.data.examples import write

GENERIC = get_role("generic")
SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Where is the Prado?"}
ASSISTANT = {"role": "assistant", "content": "In Madrid."}


def human(text: str) -> dict[str, str]:
    return {"from": "human", "value": text}


def gpt(text: str) -> dict[str, str]:
    return {"from": "gpt", "value": text}


CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "1"}

GOOD: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "openai": ({"messages": [USER, ASSISTANT]}, ["user"], "In Madrid."),
    "openai with system": ({"messages": [SYSTEM, USER, ASSISTANT]}, ["system", "user"], "In Madrid."),
    "openai's developer": (
        {"messages": [{**SYSTEM, "role": "developer"}, USER, {**ASSISTANT, "weight": 1}]},
        ["system", "user"],
        "In Madrid.",
    ),
    "openai's parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Where?"}]}, ASSISTANT]},
        ["user"],
        "In Madrid.",
    ),
    "several turns": (
        {"messages": [USER, ASSISTANT, {**USER, "content": "And the Louvre?"}, {**ASSISTANT, "content": "Paris"}]},
        ["user", "assistant", "user"],
        "Paris",
    ),
    "sharegpt": ({"id": "x_0", "conversations": [human("Hi"), gpt(" Hello! ")]}, ["user"], " Hello! "),
    "sharegpt with system": (
        {"conversations": [{"from": "system", "value": "Be brief."}, human("Hi"), gpt("Hello")]},
        ["system", "user"],
        "Hello",
    ),
    "alpaca": ({"instruction": "Add.", "input": "1 and 2", "output": "3"}, ["user"], "3"),
    "alpaca without input": ({"instruction": "Name a river.", "input": "", "output": "Ebro"}, ["user"], "Ebro"),
    "sharegpt's own system": (
        {"system": " Be brief. ", "conversations": [human("Hi"), gpt("Hello")]},
        ["system", "user"],
        "Hello",
    ),
    "the same system twice": (
        {"system": "Be brief.", "messages": [SYSTEM, USER, ASSISTANT]},
        ["system", "user"],
        "In Madrid.",
    ),
    "alpaca with history": (
        {"instruction": "And then?", "history": [["Count.", "One."], ["On.", "Two."]], "output": "Three."},
        ["user", "assistant", "user", "assistant", "user"],
        "Three.",
    ),
    "alpaca's empty extras": (
        {"instruction": "Count.", "history": [], "system": "", "context": None, "response": None, "output": "One."},
        ["user"],
        "One.",
    ),
    "dolly": (
        {"instruction": "Sum up.", "context": "Long.", "response": "Short.", "category": "x"},
        ["user"],
        "Short.",
    ),
    "a prompt beside messages": (
        {"prompt": "Where is the Prado?", "prompt_id": "1", "messages": [USER, ASSISTANT]},
        ["user"],
        "In Madrid.",
    ),
    "prompt": ({"prompt": "Say yes.", "completion": " yes"}, ["user"], " yes"),
    "indentation": (
        {"prompt": "if x:\n", "completion": "    return 1\nelse:\n    return 2\n"},
        ["user"],
        "    return 1\nelse:\n    return 2\n",
    ),
    "trl's prompt and completion": (
        {"prompt": [SYSTEM, USER], "completion": [ASSISTANT]},
        ["system", "user"],
        "In Madrid.",
    ),
    "messages and a text": ({"prompt": [USER], "completion": "In Madrid."}, ["user"], "In Madrid."),
    "an empty system message": (
        {"messages": [{"role": "system", "content": ""}, USER, ASSISTANT]},
        ["system", "user"],
        "In Madrid.",
    ),
    "pygmalion": (
        {"conversations": [{"role": "human", "value": "Hi"}, {"role": "gpt", "value": "Hello"}]},
        ["user"],
        "Hello",
    ),
    "weights that change nothing": (
        {
            "messages": [
                {**USER, "weight": 0},
                {**ASSISTANT, "weight": 0, "train": False},
                USER,
                {**ASSISTANT, "weight": 1, "train": True, "name": "", "tool_calls": None, "reasoning_content": ""},
                USER,
                {**ASSISTANT, "content": "Nowhere.", "weight": 0},
            ],
            "weight": 1,
            "label": True,
            "images": [],
            "tools": "[]",
            "metadata": {"anything": 1},
        },
        ["user", "assistant", "user"],
        "In Madrid.",
    ),
    "a call and its result": (
        {"messages": [USER, {"role": "assistant", "tool_calls": [CALL]}, RESULT, ASSISTANT], "tools": [{"name": "f"}]},
        ["user", "assistant", "tool"],
        "In Madrid.",
    ),
    "trl's completion of several": (
        {"prompt": [USER], "completion": [{**ASSISTANT, "content": "", "tool_calls": [CALL]}, RESULT, ASSISTANT]},
        ["user", "assistant", "tool"],
        "In Madrid.",
    ),
    "thoughts beside": ({"messages": [USER, {**ASSISTANT, "reasoning_content": "Hm."}]}, ["user"], "In Madrid."),
    "a speaker's name": ({"messages": [{**USER, "name": "Ana"}, ASSISTANT]}, ["user"], "In Madrid."),
    "alpaca's rendered text": (
        {"instruction": "Add.", "input": "", "output": "3", "text": "### Instruction:\nAdd.\n### Response:\n3"},
        ["user"],
        "3",
    ),
    "prompt and response": ({"prompt": "Say yes.", "response": "yes", "system": "Obey."}, ["system", "user"], "yes"),
}


@pytest.mark.parametrize("name", GOOD)
def test_good_lines(tmp_path: Path, name: str) -> None:
    line, speakers, answer = GOOD[name]
    path = write(tmp_path / "d.jsonl", line)
    (record,) = read_records(path, GENERIC)
    messages = GENERIC.messages(record)
    assert [message["role"] for message in messages] == speakers
    assert GENERIC.target(record) == answer
    assert GENERIC.key(record) == messages[-1]["content"].strip()
    assert GENERIC.score(answer, record).total == 1.0
    assert GENERIC.messages(line) == messages  # as it stands in the file, too
    assert audit([path], GENERIC).ok
    (asked,) = read_records(path, GENERIC, answers=False)
    assert GENERIC.messages(asked) == messages


def test_alpaca_joins_instruction_and_input() -> None:
    assert GENERIC.key(GOOD["alpaca"][0]) == "Add.\n\n1 and 2"
    assert GENERIC.key(GOOD["dolly"][0]) == "Sum up.\n\nLong."


def test_what_stands_beside_the_turns_is_in_the_prompt() -> None:
    assert GENERIC.messages(GOOD["sharegpt's own system"][0])[0] == {**SYSTEM, "content": " Be brief. "}
    texts = [message["content"] for message in GENERIC.messages(GOOD["alpaca with history"][0])]
    assert texts == ["Count.", "One.", "On.", "Two.", "And then?"]


@pytest.mark.parametrize("first", [[], [{"from": "system", "value": "Be brief."}]])
def test_an_answer_before_the_first_question_is_cut(tmp_path: Path, first: list[dict[str, str]]) -> None:
    path = write(tmp_path / "d.jsonl", {"id": 1, "conversations": [*first, gpt("Hello!"), human("Hi"), gpt("Yes?")]})
    (fault,) = audit([path], GENERIC).faults
    assert (fault.field, fault.fixable) == (f"conversations[{len(first)}]", True)
    fixed = fix_file(path, GENERIC)
    assert [(change.field, change.what) for change in fixed.changes] == [
        (fault.field, "left out: the assistant's words before the first question")
    ]
    assert json.loads(fixed.content) == {"id": 1, "conversations": [*first, human("Hi"), gpt("Yes?")]}
    assert fixed.left == []


BAD: dict[str, tuple[Any, str, str]] = {
    "no format": ({"hello": "text"}, "", "is in no known format"),
    "plain text among conversations": ({"text": "hello"}, "", "is plain text without a question"),
    "trl's preferences": (
        {"chosen": [USER, ASSISTANT], "rejected": [USER, ASSISTANT]},
        "",
        "preference pair",
    ),
    "axolotl's segments": ({"segments": [{"label": True, "text": "x"}]}, "", "segments"),
    "weight 0 on the answer": (
        {"messages": [USER, {**ASSISTANT, "weight": 0}]},
        "messages[1]",
        "not to be learned .its weight is 0",
    ),
    "train false on the answer": (
        {"conversations": [human("x"), {**gpt("y"), "train": False}]},
        "conversations[1]",
        "not to be learned",
    ),
    "llama factory's loss_weight": (
        {"messages": [USER, {**ASSISTANT, "loss_weight": 0.0}]},
        "messages[1]",
        "not to be",
    ),
    "weight 1 on the user": ({"messages": [{**USER, "weight": 1}, ASSISTANT]}, "messages[0]", "is the user's"),
    "half a weight": (
        {"messages": [USER, {**ASSISTANT, "weight": 0.5}]},
        "messages[1].weight",
        "is 0.5: expected 0 or 1",
    ),
    "a weight as text": (
        {"messages": [USER, {**ASSISTANT, "weight": "0"}]},
        "messages[1].weight",
        "is '0': expected 0 or 1",
    ),
    "contrary weights": (
        {"messages": [USER, {**ASSISTANT, "weight": 1, "train": False}]},
        "messages[1].train",
        "the contrary",
    ),
    "train_detail": (
        {"conversations": [human("x"), {**gpt("y"), "train_detail": [{"begin_offset": 0}]}]},
        "conversations[1].train_detail",
        "parts of an answer",
    ),
    "an unknown key of a message": (
        {"messages": [USER, {**ASSISTANT, "mask_from": 3}]},
        "messages[1].mask_from",
        "is unknown and may",
    ),
    "tools that are none": ({"tools": [{"type": "function"}], "messages": [USER, ASSISTANT]}, "tools[0]", "a name"),
    "sharegpt's tools": ({"tools": "[{]", "conversations": [human("x"), gpt("y")]}, "tools", "not JSON"),
    "a search of the web": (
        {"tools": [{"type": "web_search"}], "messages": [USER, ASSISTANT]},
        "tools[0]",
        "of type 'web_search', only functions",
    ),
    "tools twice": (
        {"functions": [{"name": "f"}], "tools": [{"name": "f"}], "messages": [USER, ASSISTANT]},
        "",
        "both tools and functions",
    ),
    "a forced choice": ({"tool_choice": "required", "messages": [USER, ASSISTANT]}, "tool_choice", "that is forced"),
    "the user calls": (
        {"messages": [{**USER, "tool_calls": [CALL]}, ASSISTANT]},
        "messages[0].tool_calls",
        "belong in",
    ),
    "arguments that are no JSON": (
        {"messages": [USER, {**ASSISTANT, "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
        "messages[1].tool_calls[0]",
        "arguments that are not JSON",
    ),
    "arguments that are a list": (
        {"messages": [USER, {**ASSISTANT, "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}]},
        "messages[1].tool_calls[0]",
        "arguments that are a list",
    ),
    "a result of no call": (
        {"messages": [USER, {**ASSISTANT, "tool_calls": [CALL]}, {**RESULT, "tool_call_id": "other"}, ASSISTANT]},
        "messages[2].tool_call_id",
        "not the id of a call",
    ),
    "a call without its result": (
        {"messages": [USER, {**ASSISTANT, "tool_calls": [CALL]}, USER, ASSISTANT]},
        "messages[2]",
        "expected the result of the tool call",
    ),
    "two thinking parts": (
        {"messages": [USER, {"role": "assistant", "content": "<think>a</think>b", "reasoning_content": "c"}]},
        "messages[1]",
        "holds two thinking parts",
    ),
    "thinking that is no text": (
        {"messages": [USER, {**ASSISTANT, "reasoning_content": ["x"]}]},
        "messages[1].reasoning_content",
        "is a list: expected text",
    ),
    "the user thinks": (
        {"messages": [{**USER, "reasoning_content": "x"}, ASSISTANT]},
        "messages[0].reasoning_content",
        "part of the assistant's",
    ),
    "a name that is none": ({"messages": [{**USER, "name": 5}, ASSISTANT]}, "messages[0].name", "is a number"),
    "a refusal": (
        {"messages": [USER, {**ASSISTANT, "refusal": "No."}]},
        "messages[1].refusal",
        "refusal outside of the content",
    ),
    "kto": ({"messages": [USER, ASSISTANT], "label": False}, "label", "is false, which marks a bad answer"),
    "trl's kto": ({"prompt": "x", "completion": "y", "label": False}, "label", "a bad answer"),
    "images": ({"messages": [USER, ASSISTANT], "images": ["a.jpg"]}, "images", "only text"),
    "videos": ({"messages": [USER, ASSISTANT], "videos": ["a.mp4"]}, "videos", "only text"),
    "audios": ({"messages": [USER, ASSISTANT], "audios": ["a.flac"]}, "audios", "only text"),
    "llama factory's dpo": (
        {"conversations": [human("x")], "chosen": gpt("y"), "rejected": gpt("z")},
        "chosen",
        "a preferred and a rejected answer",
    ),
    "trl's dpo": ({"prompt": "x", "chosen": "y", "rejected": "z"}, "chosen", "a preferred and"),
    "trl's stepwise": ({"prompt": "x", "completions": ["a"], "labels": [True]}, "completions", "graded"),
    "axolotl's reflection": (
        {"instruction": "x", "output": "y", "reflection": "z", "corrected": "w"},
        "reflection",
        "is unknown and may",
    ),
    "history beside messages": ({"messages": [USER, ASSISTANT], "history": [["a", "b"]]}, "history", "is unknown"),
    "context beside a prompt": ({"prompt": "x", "context": "long", "completion": "y"}, "context", "is unknown"),
    "input beside a prompt": ({"prompt": "x", "input": "long", "completion": "y"}, "", "both prompt and input"),
    "a weight of the line": ({"messages": [USER, ASSISTANT], "weight": 0.2}, "weight", "weight of a line"),
    "another text beside": ({"messages": [USER, ASSISTANT], "text": "Something else."}, "text", "is unknown and may"),
    "turns of one's own": ({"turns": [USER], "prompt": "x", "completion": "y"}, "turns", "is unknown and may"),
    "trl's completion that asks": (
        {"prompt": [USER], "completion": [USER, ASSISTANT]},
        "completion",
        "begins with a message that is not the assistant's",
    ),
    "tools in a completion": (
        {"prompt": [USER], "completion": [{"role": "tool", "content": "x"}]},
        "completion",
        "begins with a message that is not the assistant's",
    ),
    "messages no list": ({"messages": "x"}, "messages", "is text: expected a list"),
    "messages empty": ({"messages": []}, "messages", "is empty"),
    "message no object": ({"messages": ["x"]}, "messages[0]", "is text: expected an object"),
    "no role": ({"messages": [{"content": "x"}]}, "messages[0].role", "is missing"),
    "unknown role": ({"messages": [{**USER, "role": "wizard"}]}, "messages[0].role", "'wizard': expected one of"),
    "no content": ({"messages": [{"role": "user"}]}, "messages[0].content", "is missing"),
    "null content": ({"messages": [USER, {**ASSISTANT, "content": None}]}, "messages[1].content", "is null"),
    "empty content": ({"messages": [USER, {**ASSISTANT, "content": " "}]}, "messages[1].content", "is empty"),
    "image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, ASSISTANT]},
        "messages[0].content",
        "more than text",
    ),
    "a call of nothing": (
        {"messages": [USER, {**ASSISTANT, "tool_calls": [{"id": "x"}]}]},
        "messages[1].tool_calls[0]",
        "not a call with the name",
    ),
    "tool's result": (
        {"messages": [USER, {"role": "tool", "content": "x"}]},
        "messages[1]",
        "without a tool call before",
    ),
    "assistant first": ({"messages": [ASSISTANT, USER]}, "messages[0]", "the user begins"),
    "user twice": ({"messages": [USER, USER, ASSISTANT]}, "messages[1]", "they take turns"),
    "system later": ({"messages": [USER, SYSTEM, ASSISTANT]}, "messages[1]", "they take turns"),
    "system alone": ({"messages": [SYSTEM]}, "messages", "holds no question"),
    "no answer": ({"messages": [USER]}, "messages", "no answer to learn"),
    "sharegpt no value": ({"conversations": [{"from": "human"}]}, "conversations[0].value", "is missing"),
    "sharegpt no answer": ({"conversations": [human("x")]}, "conversations", "no answer to learn"),
    "sharegpt begins with gpt": ({"conversations": [gpt("x"), human("y")]}, "conversations[0]", "the user begins"),
    "alpaca number": ({"instruction": 5, "output": "x"}, "instruction", "is a number"),
    "alpaca empty": ({"instruction": "", "output": "x"}, "instruction", "is empty"),
    "alpaca input": ({"instruction": "x", "input": ["y"], "output": "x"}, "input", "is a list: expected text"),
    "alpaca no output": ({"instruction": "x", "input": ""}, "output", "is missing"),
    "prompt list": ({"prompt": ["x"], "completion": "y"}, "prompt[0]", "is text: expected an object"),
    "no completion": ({"prompt": "x"}, "completion", "is missing"),
    "empty completion": ({"prompt": "x", "completion": ""}, "completion", "is empty"),
    "system number": ({"prompt": "x", "completion": "y", "system": 5}, "system", "is a number"),
    "another system": (
        {"system": "Obey.", "messages": [SYSTEM, USER, ASSISTANT]},
        "system",
        r"differs from the system message in messages\[0\]",
    ),
    "messages and prompt": (
        {"prompt": "a", "completion": "b", "messages": [USER, ASSISTANT]},
        "",
        "both messages and prompt",
    ),
    "messages and conversations": (
        {"messages": [USER, ASSISTANT], "conversations": [human("x"), gpt("y")]},
        "",
        "both messages and conversations",
    ),
    "two answers": ({"prompt": "a", "response": "c", "completion": "b"}, "", "both completion and response"),
    "two outputs": ({"instruction": "a", "output": "c", "response": "b"}, "", "both response and output"),
    "input and context": ({"instruction": "a", "input": "b", "context": "c", "output": "d"}, "", "input and context"),
    "history text": ({"instruction": "a", "history": "b", "output": "c"}, "history", "is text: expected a list"),
    "history of one": ({"instruction": "a", "history": [["b"]], "output": "c"}, "history[0]", "question, answer"),
    "history number": ({"prompt": "a", "history": [["b", 1]], "completion": "c"}, "history[0][1]", "is a number"),
    "not json": ("{'prompt': 'x'}", "", "not JSON"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_lines(tmp_path: Path, name: str) -> None:
    line, field, message = BAD[name]
    path = write(tmp_path / "d.jsonl", GOOD["sharegpt"][0], line)
    with pytest.raises(RescoldoError, match=message) as caught:
        read_records(path, GENERIC)
    assert caught.value.where == f"{path}:2" + (f", {field}" if field else "")
    assert caught.value.fix.endswith("--role generic")
    errors = [fault for fault in audit([path], GENERIC).faults if fault.level == "error"]
    assert (errors[0].line, errors[0].field) == (2, field)
    assert {fault.line for fault in errors} == {2}


def test_without_more_words_the_last_answer_is_tokenized() -> None:
    tokenizer = tiny_tokenizer()
    record = GOOD["several turns"][0]
    (example,) = tokenize_records([record], GENERIC, tokenizer, 4096).examples
    assert tokenizer.decode(example.tokens[example.n_prompt :]) == "Paris<|im_end|>"
    assert "In Madrid." in tokenizer.decode(example.tokens[: example.n_prompt])


def test_a_template_without_system_gets_it_with_the_question() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "[{{ m.role }}]{{ m.content }}{% endfor %}"
    )
    (example,) = tokenize_records([{"messages": [SYSTEM, USER, ASSISTANT]}], GENERIC, tokenizer, 4096).examples
    assert tokenizer.decode(example.tokens[: example.n_prompt]) == "[user]Be brief.\n\nWhere is the Prado?"


def test_split_and_duplicates(tmp_path: Path) -> None:
    lines = [{"prompt": f"Question {word}", "completion": word} for word in "abcdefgh"]
    lines[3] = {"messages": [{"role": "user", "content": "Question a"}, {"role": "assistant", "content": "a"}]}
    path = write(tmp_path / "all.jsonl", *lines)
    codes = [(fault.line, fault.code) for fault in audit([path], GENERIC).faults]
    assert codes == [(4, "duplicate")]
    done = split_files([path], 0.25, 1, tmp_path / "t.jsonl", tmp_path / "v.jsonl", GENERIC)
    assert (0 in done.train) == (3 in done.train)
    first, second = write(tmp_path / "1.jsonl", *lines[:3]), tmp_path / "2.json"
    second.write_text(json.dumps(lines[3:]))  # without a line's end
    assert split_files([first, second], 0.25, 1, tmp_path / "t2.jsonl", tmp_path / "v2.jsonl", GENERIC) == done
    assert (tmp_path / "t2.jsonl").read_bytes() == (tmp_path / "t.jsonl").read_bytes()
    written = (tmp_path / "t.jsonl").read_text() + (tmp_path / "v.jsonl").read_text()
    assert sorted(written.splitlines()) == sorted(json.dumps(line) for line in lines)

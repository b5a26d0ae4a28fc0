"""The formats that others define, small ones rebuilt: each is learned as its authors mean it, or refused by line.

LLaMA-Factory's data/ folder (alpaca, sharegpt, tool calls, reasoning with tools, plain text, images), the dataset
formats of TRL's documentation, and OpenAI's fine-tuning files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rescoldo.data.audit import audit
from rescoldo.data.dataset import check_dataset, read_dataset
from rescoldo.data.teaching import Teaching
from rescoldo.data.tokenize import let_think
from rescoldo.errors import RescoldoError
from rescoldo.role import get_role
from tests.data import templates as t
from tests.data.test_turns import CALLED, PARTS, SHAREGPT, WEATHER, assistant, learned, user

GENERIC = get_role("generic")
END = "<|im_end|>"
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"place": "Ávila"}}\n</tool_call>' + END
IMAGE = {"type": "image_url", "image_url": {"url": "https://example.org/a.jpg"}}
TURN = [user("Where is the Prado?"), assistant("In Madrid.")]

LEARNED: dict[str, tuple[list[Any], list[str]]] = {
    "llama factory: alpaca": ([{"instruction": "Add.", "input": "1 and 2", "output": "3"}], ["3" + END]),
    "llama factory: alpaca with history": (
        [{"instruction": "On.", "input": "", "output": "Two.", "system": "Count.", "history": [["Begin.", "One."]]}],
        ["One." + END, "Two." + END],
    ),
    "llama factory: sharegpt": (
        [{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}] * 2, "system": "Hm."}],
        ["Hello" + END, "Hello" + END],
    ),
    "llama factory: tool calls": ([SHAREGPT], [CALL, "No: 3 degrees." + END]),
    "llama factory: a conversation with an empty list of tools": (
        [{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}], "tools": "[]"}],
        ["Hello" + END],
    ),
    "llama factory: openai's form": ([{"messages": TURN}], ["In Madrid." + END]),
    "llama factory: plain text": (
        [{"text": "One document.", "timestamp": "2019-04-25", "url": "https://example.org"}],
        ["ne document.<|im_end|>"],  # the first token of all follows nothing
    ),
    "trl: language modelling": ([{"text": "The sky is blue."}], ["he sky is blue.<|im_end|>"]),
    "trl: conversational language modelling": ([{"messages": TURN * 2}], ["In Madrid." + END] * 2),
    "trl: prompt and completion": ([{"prompt": "The sky is", "completion": " blue."}], [" blue." + END]),
    "trl: conversational prompt and completion": (
        [{"prompt": [*TURN, user("And the Louvre?")], "completion": [assistant("In Paris.")]}],
        ["In Paris." + END],
    ),
    "trl: tools": ([{"messages": CALLED, "tools": [WEATHER]}], [CALL, "No: 3 degrees." + END]),
    "trl: arguments as an object": (
        [
            {
                "messages": [
                    CALLED[0],
                    {
                        "role": "assistant",
                        "tool_calls": [
                            {"type": "function", "function": {"name": "get_weather", "arguments": {"place": "Ávila"}}}
                        ],
                    },
                    {"role": "tool", "name": "get_weather", "content": '{"celsius": 3}'},
                    CALLED[3],
                ],
                "tools": [WEATHER],
            }
        ],
        [CALL, "No: 3 degrees." + END],
    ),
    "trl: unpaired preference, a good answer": (
        [{"prompt": "The sky is", "completion": " blue.", "label": True}],
        [" blue." + END],
    ),
    "openai: chat": ([{"messages": [{"role": "system", "content": "Be brief."}, *TURN]}], ["In Madrid." + END]),
    "openai: weights": (
        [{"messages": [TURN[0], {**TURN[1], "weight": 0}, TURN[0], {**assistant("Madrid."), "weight": 1}]}],
        ["Madrid." + END],
    ),
    "openai: tool calls": (
        [{"messages": CALLED[:2], "tools": [WEATHER], "parallel_tool_calls": False}],
        [CALL],
    ),
    "openai: functions": (
        [
            {
                "messages": [CALLED[0], {"role": "assistant", "function_call": CALLED[1]["tool_calls"][0]["function"]}],
                "functions": [WEATHER["function"]],
            }
        ],
        [CALL],
    ),
    "openai: developer": ([{"messages": [{"role": "developer", "content": "Be brief."}, *TURN]}], ["In Madrid." + END]),
}

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "llama factory: dpo": (
        {
            "conversations": [{"from": "human", "value": "Hi"}],
            "chosen": {"from": "gpt", "value": "Hello"},
            "rejected": {"from": "gpt", "value": "Go"},
        },
        "a preferred and a rejected",
    ),
    "llama factory: kto": ({"messages": TURN, "label": False}, "a bad answer"),
    "llama factory: images": ({"messages": TURN, "images": ["mllm_demo_data/1.jpg"]}, "only text"),
    "llama factory: audio": ({"messages": TURN, "audios": ["mllm_demo_data/1.mp3"]}, "only text"),
    "llama factory: video": ({"messages": TURN, "videos": ["mllm_demo_data/1.mp4"]}, "only text"),
    "trl: prompt only": ({"prompt": "The sky is"}, "is missing"),
    "trl: preference": (
        {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
        "a preferred and a rejected",
    ),
    "trl: implicit preference": ({"chosen": "It is blue.", "rejected": "It is green."}, "preference pair"),
    "trl: unpaired preference": ({"prompt": "The sky is", "completion": " green.", "label": False}, "a bad answer"),
    "trl: stepwise supervision": ({"prompt": "x", "completions": ["a", "b"], "labels": [True, False]}, "graded"),
    "trl: vision": (
        {
            "images": ["a.jpg"],
            "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}],
            "completion": [assistant("A cat.")],
        },
        "more than text .a part of type 'image'",
    ),
    "openai: vision": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "What?"}, IMAGE]}, TURN[1]]},
        "more than text .a part of type 'image_url'",
    ),
    "openai: audio": (
        {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}, TURN[1]]},
        "more than text .a part of type 'input_audio'",
    ),
    "openai: preference": (
        {
            "input": {"messages": [TURN[0]]},
            "preferred_output": [TURN[1]],
            "non_preferred_output": [assistant("In Paris.")],
        },
        "preference pair",
    ),
}


def lines(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), "utf-8")
    return path


@pytest.mark.parametrize("name", LEARNED)
def test_learned_as_meant(tmp_path: Path, name: str) -> None:
    records, wanted = LEARNED[name]
    path = lines(tmp_path / "d.jsonl", records)
    tokenizer = t.with_template(t.TOOLS)
    data = read_dataset(path, GENERIC, tokenizer, 4096, None, check_dataset(path, GENERIC))
    assert [text for one in data.examples for text in learned(one, tokenizer)] == wanted
    assert audit([path], GENERIC).ok


def test_reasoning_with_tools(tmp_path: Path) -> None:
    path = lines(tmp_path / "d.jsonl", [PARTS])
    tokenizer = t.with_template(t.THINKING_TOOLS)
    records = check_dataset(path, GENERIC)
    for how, first in (("keep", "<think>\nI must look.\n</think>\n\n" + CALL), ("drop", CALL), ("mask", CALL)):
        let_think(tokenizer, records, GENERIC, Teaching(thinking=how))
        data = read_dataset(path, GENERIC, tokenizer, 4096, None, records, Teaching(thinking=how))
        texts = [text for one in data.examples for text in learned(one, tokenizer)]
        assert (texts[0], len(texts)) == (first, 2)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_the_line_and_the_reason(tmp_path: Path, name: str) -> None:
    record, reason = REFUSED[name]
    path = lines(tmp_path / "d.jsonl", [{"messages": TURN}, record])
    with pytest.raises(RescoldoError, match=reason) as caught:
        check_dataset(path, GENERIC)
    assert (caught.value.where or "").startswith(f"{path}:2")
    assert caught.value.fix

"""What is trained is what the model's chat template makes of the same conversation, or it is said."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from rescoldo.base import open_base
from rescoldo.data import read_records
from rescoldo.data.dataset import read_dataset
from rescoldo.data.teaching import LAST
from rescoldo.data.template_check import check_template
from rescoldo.data.tokenize import end_of_turn, fix_date, prompt_ids, prompt_text, stop_ids, tokenize_records
from rescoldo.errors import RescoldoError
from rescoldo.role import get_role
from tests.base.make_models import CHATML
from tests.base.test_tokenizer import _mistral_gguf
from tests.data import templates as t
from tests.data.examples import write

GENERIC = get_role("generic")
USER = {"role": "user", "content": "Where is the Prado?"}
ASSISTANT = {"role": "assistant", "content": "In Madrid."}
SYSTEM = {"role": "system", "content": "Be brief."}
AGAIN = [{"role": "user", "content": "And the Louvre?"}, {"role": "assistant", "content": "In Paris.\nNot far."}]
CONVERSATIONS = [
    [USER, ASSISTANT],
    [USER, ASSISTANT, *AGAIN],
    [SYSTEM, USER, ASSISTANT],
    [SYSTEM, USER, ASSISTANT, *AGAIN],
]
GOOD = {
    "chatml": (CHATML, "<|im_end|>", "<|im_end|>"),
    "chatml, another eos": (CHATML, "<|endoftext|>", "<|im_end|>"),
    "qwen3": (t.QWEN3, "<|im_end|>", "<|im_end|>"),
    "llama3": (t.LLAMA3, "<|endoftext|>", "<|eot_id|>"),
    "gemma": (t.GEMMA, "<|endoftext|>", "<end_of_turn>"),
    "phi3": (t.PHI3, "<|endoftext|>", "<|end|>"),
    "smollm2": (t.SMOLLM2, "<|im_end|>", "<|im_end|>"),
}


def checked(tokenizer: Any, *lines: dict[str, Any], tmp_path: Path) -> list[str]:
    path = write(tmp_path / "d.jsonl", *lines)
    return check_template(path, read_records(path, GENERIC), GENERIC, tokenizer)


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("messages", CONVERSATIONS, ids=["one turn", "two", "system", "system, two"])
def test_training_tokens_are_transformers_own(tmp_path: Path, name: str, messages: list[dict[str, str]]) -> None:
    template, eos, end = GOOD[name]
    tokenizer = t.with_template(template, eos_token=eos)
    assert checked(tokenizer, {"messages": messages}, tmp_path=tmp_path) == []
    (example,) = tokenize_records([{"messages": messages}], GENERIC, tokenizer, 4096).examples
    asked = messages[:-1]
    if name == "gemma" and asked[0]["role"] == "system":
        asked = [{"role": "user", "content": f"{SYSTEM['content']}\n\n{USER['content']}"}, *asked[2:]]
    whole = tokenizer.apply_chat_template([*asked, messages[-1]], return_dict=False)
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, enable_thinking=False, return_dict=False)
    assert list(example.tokens) == whole[: len(example.tokens)]
    assert list(example.tokens[: example.n_prompt]) == prompt
    assert example.tokens[-1] == tokenizer.convert_tokens_to_ids(end) == end_of_turn(tokenizer)
    assert {end_of_turn(tokenizer), tokenizer.eos_token_id} == stop_ids(tokenizer)


@pytest.mark.parametrize("version", ["v1", "v3"])
@pytest.mark.parametrize("messages", CONVERSATIONS[:2], ids=["one turn", "two"])
def test_training_tokens_are_mistral_commons(tmp_path: Path, version: str, messages: list[dict[str, str]]) -> None:
    instruct = pytest.importorskip("mistral_common.protocol.instruct.messages")
    from mistral_common.protocol.instruct.request import InstructRequest
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    tokenizer = open_base(str(_mistral_gguf(tmp_path / "m.gguf", version))).tokenizer()
    assert checked(tokenizer, {"messages": messages}, tmp_path=tmp_path) == []
    oracle = MistralTokenizer.v1() if version == "v1" else MistralTokenizer.v3()
    kinds = {"user": instruct.UserMessage, "assistant": instruct.AssistantMessage}
    turns = [kinds[message["role"]](content=message["content"]) for message in messages]
    (example,) = tokenize_records([{"messages": messages}], GENERIC, tokenizer, 4096).examples
    assert list(example.tokens) == oracle.instruct_tokenizer.encode_instruct(InstructRequest(messages=turns)).tokens


@pytest.mark.parametrize("answer", ["In Madrid.", "    return 1\nelse:\n    return 2", "日本", "\n- a\n- b", "a\n"])
@pytest.mark.parametrize("template", [t.ZEPHYR, t.MISTRAL], ids=["line end", "blank"])
def test_sentencepiece_behind_a_line_end(tmp_path: Path, template: str, answer: str) -> None:
    """The answer's first token is the one that the full rendering has: no space mark of its own behind a line end."""
    pytest.importorskip("mistral_common")
    tokenizer: PreTrainedTokenizerFast = open_base(str(_mistral_gguf(tmp_path / "m.gguf", "v1"))).tokenizer()
    tokenizer.chat_template = template
    messages = [USER, {"role": "assistant", "content": answer}]
    assert checked(tokenizer, {"messages": messages}, tmp_path=tmp_path) == []
    (example,) = tokenize_records([{"messages": messages}], GENERIC, tokenizer, 4096).examples
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    whole = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert list(example.tokens) == whole[: len(example.tokens)]


def test_a_blank_before_the_answer_is_not_learned_where_decoding_keeps_it(tmp_path: Path) -> None:
    tokenizer = t.with_template(t.MISTRAL, bos_token="<|endoftext|>")
    assert checked(tokenizer, {"messages": [USER, ASSISTANT]}, tmp_path=tmp_path) == []
    (example,) = tokenize_records([{"messages": [USER, ASSISTANT]}], GENERIC, tokenizer, 4096).examples
    assert tokenizer.decode(example.tokens[example.n_prompt : -1]) == "In Madrid."


def test_a_token_across_the_border(tmp_path: Path) -> None:
    """Where the tokenizer would merge the prompt's end with the answer's beginning, the prompt stays as it is asked."""
    smollm2 = open_base("sample:smollm2").tokenizer()
    for answer in ("\n\nYes", "\nYes", " Yes"):
        messages = [USER, {"role": "assistant", "content": answer}]
        (example,) = tokenize_records([{"messages": messages}], GENERIC, smollm2, 4096).examples
        assert list(example.tokens[: example.n_prompt]) == prompt_ids([USER], smollm2)
        assert smollm2.decode(example.tokens[example.n_prompt : -1]) == answer


THOUGHT = {"role": "assistant", "content": "<think>\nA museum.\n</think>\n\nIn Madrid."}
REFUSED = {
    "qwen3, an answer that thinks": (t.QWEN3, [USER, THOUGHT], "brings its own thinking part", "--thinking drop"),
    "a prompt that opens": (t.REASONING, [USER, THOUGHT], "brings its own thinking part", "--thinking drop"),
    "no add_generation_prompt": (t.NO_HEADER, [USER, ASSISTANT], "'<|im_start|>assistant' in front", "add_generation"),
    "earlier turns left out": (
        t.LAST_ONLY,
        [USER, ASSISTANT, *AGAIN],
        "leaves out or changes message 1",
        "writes each",
    ),
    "changed": (t.UPPER, [USER, ASSISTANT], "leaves out or changes message 1", "writes each"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_taught_otherwise_is_refused_by_line(tmp_path: Path, name: str) -> None:
    template, messages, what, fix = REFUSED[name]
    good = {"messages": [USER, ASSISTANT]}
    lines = [{"messages": messages}] * 2 if template in (t.NO_HEADER, t.UPPER) else [good, {"messages": messages}]
    path = write(tmp_path / "d.jsonl", *lines)
    with pytest.raises(RescoldoError) as caught:
        read_dataset(path, GENERIC, t.with_template(template), 4096, None)
    assert what in caught.value.what
    assert fix in caught.value.fix
    assert caught.value.where == f"{path}:{1 if len({str(line) for line in lines}) == 1 else 2}"


WARNED = {
    "unclosed": (t.UNCLOSED, [USER, ASSISTANT], "writes nothing after an answer"),
    "opened, never closed": (t.REASONING, [USER, ASSISTANT], "opens a thinking part"),
    "earlier thoughts": (t.QWEN3, [USER, THOUGHT, *AGAIN], "leaves the thinking parts of earlier answers out"),
    "indentation": (t.GEMMA, [{"role": "user", "content": "    if x:\n        y"}, ASSISTANT], "in front of message 1"),
}


@pytest.mark.parametrize("name", WARNED)
def test_habits_that_are_worth_knowing(tmp_path: Path, name: str) -> None:
    template, messages, what = WARNED[name]
    path = write(tmp_path / "d.jsonl", {"messages": messages}, {"messages": messages})
    (note,) = read_dataset(path, GENERIC, t.with_template(template), 4096, None, None, LAST).notes
    assert what in note
    assert note.endswith("(d.jsonl, lines 1, 2)")


def test_thinking_where_the_template_leaves_it_to_the_answer(tmp_path: Path) -> None:
    tokenizer = t.with_template(CHATML)
    assert checked(tokenizer, {"messages": [USER, THOUGHT]}, tmp_path=tmp_path) == []
    (example,) = tokenize_records([{"messages": [USER, THOUGHT]}], GENERIC, tokenizer, 4096).examples
    assert tokenizer.decode(example.tokens[example.n_prompt : -1]) == THOUGHT["content"]


def test_a_system_message_that_the_template_leaves_out_becomes_part_of_the_question(tmp_path: Path) -> None:
    tokenizer = t.with_template(t.NO_SYSTEM)
    assert checked(tokenizer, {"messages": [SYSTEM, USER, ASSISTANT]}, tmp_path=tmp_path) == []
    text = prompt_text([SYSTEM, USER], tokenizer)
    assert text == "<|im_start|>user\nBe brief.\n\nWhere is the Prado?<|im_end|>\n<|im_start|>assistant\n"


def test_one_rendering_for_each_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rescoldo.data import template_check

    asked: list[int] = []
    monkeypatch.setattr(template_check, "habits", lambda messages, *_: asked.append(len(messages)) or [])
    lines = [{"messages": [USER, ASSISTANT]}, {"messages": [SYSTEM, USER, ASSISTANT]}] * 50
    checked(t.with_template(CHATML), *lines, {"messages": [USER, THOUGHT]}, tmp_path=tmp_path)
    assert asked == [1, 2, 1]


def test_the_date_is_fixed() -> None:
    one, other, later = (t.with_template(t.LLAMA3) for _ in range(3))
    assert fix_date(one, date(2026, 3, 7))
    assert fix_date(other, date(2026, 3, 7))
    assert fix_date(later, date(2026, 3, 8))
    assert "Today Date: 07 Mar 2026\n" in (prompt_text([USER], one) or "")
    assert prompt_ids([USER], one) == prompt_ids([USER], other) != prompt_ids([USER], later)
    assert not fix_date(t.with_template(CHATML), date(2026, 3, 7))

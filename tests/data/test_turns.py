"""Conversations of several turns, thinking and tools: what is learned is what the model is asked with."""

from __future__ import annotations

import importlib.util
import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from rescoldo.data.chat_template import answer_text, thinks
from rescoldo.data.dataset import read_dataset
from rescoldo.data.teaching import Teaching
from rescoldo.data.tokenize import Ending, conversation_examples, fix_date, let_think, prompt_ids, tokenize_records
from rescoldo.engine.types import Example
from rescoldo.errors import RescoldoError
from rescoldo.role import get_role
from rescoldo.role.conversation import Turns
from tests.base.make_models import CHATML
from tests.data import templates as t
from tests.data.examples import write

GENERIC = get_role("generic")


def user(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": text, **more}


def assistant(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


SYSTEM = {"role": "system", "content": "Be brief."}
TWO = [user("Where is the Prado?"), assistant("In Madrid."), user("And the Louvre?"), assistant("In Paris.\nNot far.")]
THREE = [*TWO, user("And the Tate?"), assistant("In London.")]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a place.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"place": "Ávila"}'}}
CALLED = [
    user("Is it warm in Ávila?"),
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": '{"celsius": 3}'},
    assistant("No: 3 degrees."),
]


def learned(example: Example, tokenizer: Any) -> list[str]:
    """The runs of tokens with a weight, as texts."""
    weights = example.weights or (1.0,) * (len(example.tokens) - example.n_prompt)
    runs: list[list[int]] = [[]]
    for token, weight in zip(example.tokens[example.n_prompt :], weights, strict=True):
        if weight:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [tokenizer.decode(run) for run in runs if run]


def examples(record: dict[str, Any], tokenizer: Any, teaching: Teaching | None = None) -> list[Example]:
    teaching = teaching or Teaching()
    let_think(tokenizer, [record], GENERIC, teaching)
    return tokenize_records([record], GENERIC, tokenizer, 4096, teaching).examples


# --- which tokens are learned: marked by hand in what the template writes -------------------------------------------

MARKED = {  # « » around what is learned, the end of the turn included; one text for each example
    "chatml": (
        CHATML,
        {},
        [SYSTEM, *TWO],
        [
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhere is the Prado?<|im_end|>\n"
            "<|im_start|>assistant\n«In Madrid.<|im_end|>»\n<|im_start|>user\nAnd the Louvre?<|im_end|>\n"
            "<|im_start|>assistant\n«In Paris.\nNot far.<|im_end|>»"
        ],
    ),
    "llama3": (
        t.LLAMA3,
        {"bos_token": "<|endoftext|>", "eos_token": "<|eot_id|>"},
        TWO,
        [
            "<|endoftext|><|start_header_id|>system<|end_header_id|>\n\nToday Date: 01 May 2026\n\n<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nWhere is the Prado?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n«In Madrid.<|eot_id|>»"
            "<|start_header_id|>user<|end_header_id|>\n\nAnd the Louvre?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n«In Paris.\nNot far.<|eot_id|>»"
        ],
    ),
    "gemma": (
        t.GEMMA,
        {"bos_token": "<|endoftext|>", "eos_token": "<end_of_turn>"},
        TWO,
        [
            "<|endoftext|><start_of_turn>user\nWhere is the Prado?<end_of_turn>\n<start_of_turn>model\n"
            "«In Madrid.<end_of_turn>»\n<start_of_turn>user\nAnd the Louvre?<end_of_turn>\n<start_of_turn>model\n"
            "«In Paris.\nNot far.<end_of_turn>»"
        ],
    ),
    "white space that the template removes": (
        t.GEMMA,
        {"bos_token": "<|endoftext|>", "eos_token": "<end_of_turn>"},
        [user("Where?"), assistant(" \n In Madrid.\n"), user("And?"), assistant("In Paris.\n")],
        [
            "<|endoftext|><start_of_turn>user\nWhere?<end_of_turn>\n<start_of_turn>model\n"
            "«In Madrid.<end_of_turn>»\n<start_of_turn>user\nAnd?<end_of_turn>\n<start_of_turn>model\n"
            "«In Paris.<end_of_turn>»"
        ],
    ),
    "white space that the template keeps": (
        CHATML,
        {},
        [user("Where?"), assistant("  In Madrid.\n")],
        ["<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\n«  In Madrid.\n<|im_end|>»"],
    ),
    "phi": (
        t.PHI3,
        {"eos_token": "<|endoftext|>"},
        TWO,
        [
            "<|user|>\nWhere is the Prado?<|end|>\n<|assistant|>\n«In Madrid.<|end|>»\n<|user|>\nAnd the Louvre?<|end|>"
            "\n<|assistant|>\n«In Paris.\nNot far.<|end|>»"
        ],
    ),
    "qwen3": (  # an earlier answer loses its empty thinking part: two examples
        t.QWEN3,
        {"eos_token": "<|im_end|>"},
        TWO,
        [
            "<|im_start|>user\nWhere is the Prado?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
            "«In Madrid.<|im_end|>»",
            "<|im_start|>user\nWhere is the Prado?<|im_end|>\n<|im_start|>assistant\nIn Madrid.<|im_end|>\n"
            "<|im_start|>user\nAnd the Louvre?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
            "«In Paris.\nNot far.<|im_end|>»",
        ],
    ),
}


def marked(text: str, tokenizer: Any) -> tuple[list[int], list[bool]]:
    """Token ids of a text in which « » mark what is learned, and which these are."""
    ids: list[int] = []
    mask: list[bool] = []
    for number, part in enumerate(text.replace("»", "«").split("«")):
        own = tokenizer(part, add_special_tokens=False)["input_ids"]
        ids += own
        mask += [number % 2 == 1] * len(own)
    return ids, mask


def mask_of(example: Example) -> list[bool]:
    weights = example.weights or (1.0,) * (len(example.tokens) - example.n_prompt)
    return [False] * example.n_prompt + [bool(weight) for weight in weights]


@pytest.mark.parametrize("name", MARKED)
def test_tokens_and_mask_are_those_that_a_person_marks(name: str) -> None:
    template, tokens, messages, texts = MARKED[name]
    tokenizer = t.with_template(template, **tokens)
    fix_date(tokenizer, date(2026, 5, 1))
    made = examples({"messages": messages}, tokenizer)
    assert [(list(one.tokens), mask_of(one)) for one in made] == [marked(text, tokenizer) for text in texts]


@pytest.mark.parametrize("name", MARKED)
def test_each_answer_follows_the_prompt_that_inference_makes(name: str) -> None:
    template, tokens, messages, _ = MARKED[name]
    tokenizer = t.with_template(template, **tokens)
    fix_date(tokenizer, date(2026, 5, 1))
    made = examples({"messages": messages}, tokenizer)
    for place, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = prompt_ids(messages[:place], tokenizer)
        follows = [one for one in made if list(one.tokens[: len(prompt)]) == prompt and mask_of(one)[len(prompt)]]
        assert len(follows) == 1
        assert not mask_of(follows[0])[len(prompt) - 1]


# --- against transformers' own mask, where the template has generation tags -----------------------------------------

GENERATION = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ m.content + '<|im_end|>' }}{% endif %}"
    "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def transformers_mask(tokenizer: Any, messages: list[dict[str, Any]], **more: Any) -> tuple[list[int], list[bool]]:
    made = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True, **more)
    return list(made["input_ids"]), [bool(one) for one in made["assistant_masks"]]


@pytest.mark.parametrize("messages", [TWO, [SYSTEM, *THREE]], ids=["two", "system, three"])
def test_the_mask_is_transformers_own(messages: list[dict[str, Any]]) -> None:
    tokenizer = t.with_template(GENERATION)
    (example,) = examples({"messages": messages}, tokenizer)
    ids, mask = transformers_mask(tokenizer, messages)
    n = len(example.tokens)
    assert (list(example.tokens), mask_of(example)) == (ids[:n], mask[:n])
    assert not any(mask[n:])


def trl_template(name: str) -> str:
    found = importlib.util.find_spec("trl")
    if found is None or not found.submodule_search_locations:
        pytest.skip("trl is not installed")
    path = Path(found.submodule_search_locations[0]) / "chat_templates" / f"{name}.jinja"
    if not path.is_file():
        pytest.skip(f"this trl has no template {name}")
    return path.read_text("utf-8")


TRL = {  # real templates with generation tags, as TRL trains with them
    "llama3_training": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "gemma_training": ("<start_of_turn>", "<end_of_turn>"),
    "phi3_training": ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    "qwen2_5_training": (),
    "qwen3_instruct_2507_training": (),
}


@pytest.mark.parametrize("name", TRL)
def test_the_mask_is_that_of_trls_training_templates(name: str) -> None:
    """Some mark what stands behind the end of a turn too (a line end, EOS): no model generates it."""
    tokenizer = t.with_template(CHATML, bos_token="<|endoftext|>")
    tokenizer.chat_template = trl_template(name)
    tokenizer.add_special_tokens({"additional_special_tokens": [*tokenizer.all_special_tokens, *TRL[name]]})
    (example,) = examples({"messages": THREE}, tokenizer)
    ids, mask = transformers_mask(tokenizer, THREE)
    ours = [*mask_of(example), *[False] * (len(ids) - len(example.tokens))]
    assert list(example.tokens) == ids[: len(example.tokens)]
    more = [place for place, (own, theirs) in enumerate(zip(ours, mask, strict=True)) if own != theirs]
    assert all(mask[place] for place in more)
    assert "".join(tokenizer.decode([ids[place]]).strip() for place in more if place < len(example.tokens)) == ""


# --- weights, --loss last ------------------------------------------------------------------------------------------


def test_weights_say_which_answers_are_learned() -> None:
    tokenizer = t.with_template(CHATML)
    messages = [dict(message) for message in THREE]
    messages[3]["weight"] = 0
    (example,) = examples({"messages": messages}, tokenizer)
    assert learned(example, tokenizer) == ["In Madrid.<|im_end|>", "In London.<|im_end|>"]
    messages[5]["weight"] = 0
    (example,) = examples({"messages": messages}, tokenizer)
    assert learned(example, tokenizer) == ["In Madrid.<|im_end|>"]
    assert example.weights is None


def test_the_last_answer_alone() -> None:
    tokenizer = t.with_template(CHATML)
    (example,) = examples({"messages": THREE}, tokenizer, Teaching("last"))
    assert learned(example, tokenizer) == ["In London.<|im_end|>"]
    assert list(example.tokens[: example.n_prompt]) == prompt_ids(THREE[:-1], tokenizer)
    assert example.weights is None


def test_of_a_prompt_that_is_messages_none_is_learned() -> None:
    tokenizer = t.with_template(CHATML)
    record = {"prompt": [*TWO, user("And the Tate?")], "completion": [assistant("In London.")]}
    assert [learned(one, tokenizer) for one in examples(record, tokenizer)] == [["In London.<|im_end|>"]]


def test_a_history_is_learned() -> None:
    tokenizer = t.with_template(CHATML)
    record = {"instruction": "And then?", "history": [["Count.", "One."]], "output": "Two."}
    (example,) = examples(record, tokenizer)
    assert learned(example, tokenizer) == ["One.<|im_end|>", "Two.<|im_end|>"]


def test_one_answer_is_tokenized_as_before() -> None:
    ba = get_role("ba")
    record = ba.samples[0] if hasattr(ba, "samples") else None
    if record is None:
        path = Path(__file__).parents[2] / "src/rescoldo/role/builtin/ba/samples.jsonl"
        record = json.loads(path.read_text("utf-8").splitlines()[0])
    tokenizer = t.with_template(CHATML)
    every, last = (tokenize_records([record], ba, tokenizer, 4096, Teaching(loss)).examples for loss in ("all", "last"))
    assert every == last
    assert every[0].weights is None


def test_the_prompts_weight() -> None:
    tokenizer = t.with_template(CHATML)
    (example,) = examples({"messages": TWO}, tokenizer, Teaching(prompt_weight=0.25))
    (plain,) = examples({"messages": TWO}, tokenizer)
    assert example.n_prompt == 1
    assert example.weights is not None
    wanted = [1.0 if one else 0.25 for one in mask_of(plain)][1:]
    assert list(example.weights) == wanted


# --- thinking ------------------------------------------------------------------------------------------------------

THOUGHT = assistant("In Madrid.", reasoning_content="A museum.")
INLINE = assistant("<think>\nA museum.\n</think>\n\nIn Madrid.")
ASKED = user("Where is the Prado?")


@pytest.mark.parametrize("answer", [THOUGHT, INLINE], ids=["beside", "in the content"])
@pytest.mark.parametrize("template", ["qwen3", "reasoning"])
def test_thinking_is_learned_as_the_template_writes_it(template: str, answer: dict[str, Any]) -> None:
    tokenizer = t.with_template(t.QWEN3 if template == "qwen3" else t.REASONING)
    if template == "qwen3":  # the short template of the tests reads the content alone
        answer = INLINE
    (example,) = examples({"messages": [ASKED, answer]}, tokenizer)
    assert thinks(tokenizer)
    text = tokenizer.decode(example.tokens)
    opened = "<|im_start|>assistant\n" + ("<think>\n" if template == "reasoning" else "")
    assert tokenizer.decode(example.tokens[: example.n_prompt]).endswith(opened)
    assert text.endswith("<think>\nA museum.\n</think>\n\nIn Madrid.<|im_end|>")
    assert list(example.tokens[: example.n_prompt]) == prompt_ids([ASKED], tokenizer)


THINKING = {  # real templates: their marks, and what is learned of the first answer
    "qwen3": ((), ["<think>\nA museum.\n</think>\n\nIn Madrid.<|im_end|>"]),
    "qwen3_5_think": ((), ["A museum.\n</think>\n\nIn Madrid.<|im_end|>"]),
    "deepseek_r1_distill": (("<｜end▁of▁sentence｜>",), ["A museum.\n</think>\n\nIn Madrid.<｜end▁of▁sentence｜>"]),
    "nemotron_3_nano": ((), ["A museum.\n</think>\nIn Madrid.<|im_end|>"]),
}


@pytest.mark.parametrize("name", THINKING)
def test_thinking_as_real_templates_write_it(name: str) -> None:
    """Earlier thinking parts are left out of later prompts, so that each answer is an example of its own."""
    marks, wanted = THINKING[name]
    eos = marks[0] if marks else "<|im_end|>"
    tokenizer = t.with_template(CHATML, bos_token="<|endoftext|>")
    tokenizer.chat_template = trl_template(name)
    tokenizer.add_special_tokens({"additional_special_tokens": [*tokenizer.all_special_tokens, *marks]})
    tokenizer.eos_token = eos
    again = [user("And the Louvre?"), assistant("In Paris.", reasoning_content="One more.")]
    made = examples({"messages": [ASKED, THOUGHT, *again]}, tokenizer)
    assert learned(made[0], tokenizer) == wanted
    assert len(made) == 2
    assert list(made[1].tokens[: made[1].n_prompt]) == prompt_ids([ASKED, THOUGHT, again[0]], tokenizer)
    assert "A museum." not in tokenizer.decode(made[1].tokens)


@pytest.mark.parametrize("template", [t.QWEN3, t.REASONING], ids=["qwen3", "reasoning"])
def test_thinking_is_seen_and_not_learned(template: str) -> None:
    tokenizer = t.with_template(template)
    record = {"messages": [ASKED, INLINE]}
    (masked,), (kept,) = (examples(record, tokenizer, Teaching(thinking=how)) for how in ("mask", "keep"))
    assert masked.tokens == kept.tokens
    assert learned(masked, tokenizer) == ["In Madrid.<|im_end|>"]


@pytest.mark.parametrize("template", [CHATML, t.QWEN3], ids=["chatml", "qwen3"])
@pytest.mark.parametrize("answer", [THOUGHT, INLINE], ids=["beside", "in the content"])
def test_thinking_is_dropped(template: str, answer: dict[str, Any]) -> None:
    tokenizer = t.with_template(template)
    made = examples({"messages": [ASKED, answer]}, tokenizer, Teaching(thinking="drop"))
    assert made == examples({"messages": [ASKED, assistant("In Madrid.")]}, tokenizer)


def test_an_answer_without_thinking_among_others_that_think() -> None:
    tokenizer = t.with_template(t.QWEN3)
    let_think(tokenizer, [{"messages": [ASKED, INLINE]}], GENERIC, Teaching())
    (example,) = tokenize_records([{"messages": [ASKED, assistant("In Madrid.")]}], GENERIC, tokenizer, 4096).examples
    assert learned(example, tokenizer) == ["<think>\n\n</think>\n\nIn Madrid.<|im_end|>"]


def test_no_place_for_thinking_is_refused_by_line(tmp_path: Path) -> None:
    tokenizer = t.with_template(CHATML)
    path = write(tmp_path / "d.jsonl", {"messages": TWO}, {"messages": [ASKED, THOUGHT]})
    let_think(tokenizer, [{"messages": [ASKED, THOUGHT]}], GENERIC, Teaching())
    with pytest.raises(RescoldoError, match="no place for the answer's thinking") as caught:
        read_dataset(path, GENERIC, tokenizer, 4096, None)
    assert caught.value.where == f"{path}:2"
    assert "--thinking drop" in caught.value.fix


def test_a_models_thinking_is_not_scored() -> None:
    record = {"messages": [ASKED, INLINE]}
    assert GENERIC.target(record) == "In Madrid."
    for text in ("In Madrid.", INLINE["content"], "A museum.\n</think>\n\nIn Madrid."):
        assert GENERIC.score(text, record).components["exact_match"] == 1


# --- tools ---------------------------------------------------------------------------------------------------------

REAL = {  # real templates that know tools: (their marks, what is learned)
    "qwen2_5": (
        (),
        [
            '<tool_call>\n{"name": "get_weather", "arguments": {"place": "Ávila"}}\n</tool_call><|im_end|>',
            "No: 3 degrees.<|im_end|>",
        ],
    ),
    "qwen3_instruct_2507": (
        (),
        [
            '<tool_call>\n{"name": "get_weather", "arguments": {"place": "Ávila"}}\n</tool_call><|im_end|>',
            "No: 3 degrees.<|im_end|>",
        ],
    ),
    "llama3_1": (
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        ['{"name": "get_weather", "parameters": {"place": "Ávila"}}<|eot_id|>', "No: 3 degrees.<|eot_id|>"],
    ),
}


@pytest.mark.parametrize("name", REAL)
def test_calls_of_tools_as_real_templates_write_them(tmp_path: Path, name: str) -> None:
    marks, wanted = REAL[name]
    tokenizer = t.with_template(CHATML, bos_token="<|endoftext|>")
    tokenizer.chat_template = trl_template(name)
    tokenizer.add_special_tokens({"additional_special_tokens": [*tokenizer.all_special_tokens, *marks]})
    line = {"messages": CALLED, "tools": [WEATHER]}
    made = read_dataset(write(tmp_path / "d.jsonl", line), GENERIC, tokenizer, 4096, None).examples
    assert [text for one in made for text in learned(one, tokenizer)] == wanted
    whole = tokenizer.apply_chat_template(
        [CALLED[0], {**CALLED[1], "content": "", "tool_calls": [_with_object(CALL)]}, *CALLED[2:]],
        tools=[WEATHER],
        return_dict=False,
    )
    assert list(made[-1].tokens) == whole[: len(made[-1].tokens)]


def _with_object(call: dict[str, Any]) -> dict[str, Any]:
    return {**call, "function": {**call["function"], "arguments": json.loads(call["function"]["arguments"])}}


def test_tools_in_the_last_question_make_an_example_of_each_turn() -> None:
    """Mistral's template moves the definitions to the last question, so that an earlier prompt is not its beginning."""
    tokenizer = t.with_template(t.MISTRAL_TOOLS, bos_token="<|endoftext|>", eos_token="<|im_end|>")
    messages = [*CALLED, user("And in León?"), assistant("I do not know.")]
    made = examples({"messages": messages, "tools": [WEATHER]}, tokenizer)
    runs = [learned(one, tokenizer) for one in made]
    assert [len(run) for run in runs] == [2, 1]
    call = json.loads(runs[0][0].removeprefix("[TOOL_CALLS]").removesuffix("<|im_end|>"))
    assert call == [{"name": "get_weather", "arguments": {"place": "Ávila"}, "id": call[0]["id"]}]
    assert len(call[0]["id"]) == 9  # the template takes no other
    assert runs[0][1] == "No: 3 degrees.<|im_end|>"
    assert runs[1] == ["I do not know.<|im_end|>"]


SHAREGPT = {
    "conversations": [
        {"from": "human", "value": "Is it warm in Ávila?"},
        {"from": "function_call", "value": '{"name": "get_weather", "arguments": {"place": "Ávila"}}'},
        {"from": "observation", "value": '{"celsius": 3}'},
        {"from": "gpt", "value": "No: 3 degrees."},
    ],
    "tools": json.dumps([WEATHER["function"]]),
}


def test_sharegpts_tools_are_openais() -> None:
    tokenizer = t.with_template(t.TOOLS)
    assert examples(SHAREGPT, tokenizer) == examples({"messages": CALLED, "tools": [WEATHER]}, tokenizer)


LEGACY = [
    user("Is it warm in Ávila?"),
    {"role": "assistant", "content": None, "function_call": CALL["function"]},
    {"role": "function", "name": "get_weather", "content": '{"celsius": 3}'},
    assistant("No: 3 degrees."),
]


def test_openais_functions_are_tools() -> None:
    tokenizer = t.with_template(t.TOOLS)
    legacy = {"messages": LEGACY, "functions": [WEATHER["function"]]}
    assert examples(legacy, tokenizer) == examples({"messages": CALLED, "tools": [WEATHER]}, tokenizer)


PARTS = {  # LLaMA-Factory's reasoning with tools: parts of a message
    "messages": [
        {"role": "user", "content": [{"type": "text", "value": "Is it warm in Ávila?"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "reasoning", "value": "I must look."},
                {"type": "tool_call", "value": '{"name": "get_weather", "arguments": {"place": "Ávila"}}'},
            ],
        },
        {"role": "tool", "content": [{"type": "text", "value": '{"celsius": 3}'}]},
        {
            "role": "assistant",
            "content": [{"type": "reasoning", "value": "Cold."}, {"type": "text", "value": "No: 3 degrees."}],
        },
    ],
    "tools": json.dumps([WEATHER]),
}


def test_parts_of_thinking_and_calls() -> None:
    tokenizer = t.with_template(t.TOOLS)
    dropped = examples(PARTS, tokenizer, Teaching(thinking="drop"))
    assert dropped == examples({"messages": CALLED, "tools": [WEATHER]}, tokenizer)
    tokenizer.chat_template = trl_template("qwen3")
    texts = [text for one in examples(PARTS, tokenizer) for text in learned(one, tokenizer)]
    call = '<tool_call>\n{"name": "get_weather", "arguments": {"place": "Ávila"}}\n</tool_call><|im_end|>'
    assert texts == [
        "<think>\nI must look.\n</think>\n\n" + call,
        "<think>\nCold.\n</think>\n\nNo: 3 degrees.<|im_end|>",
    ]


ALTERNATING = t.TOOLS.replace(
    "{% for m in messages %}",
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('roles must alternate') }}{% endif %}",
)
REFUSED = {
    "thinking beside a call": (
        t.TOOLS,
        {"messages": [CALLED[0], {**CALLED[1], "reasoning_content": "I must look."}], "tools": [WEATHER]},
        "no place for the answer's thinking",
        "--thinking drop",
    ),
    "words beside a call": (
        t.TOOLS.replace("+ m.content", "+ ('' if m.tool_calls else m.content)"),
        {"messages": [CALLED[0], {**CALLED[1], "content": "Let me look."}], "tools": [WEATHER]},
        "next to a tool call",
        "another model",
    ),
    "roles that do not alternate": (ALTERNATING, {"messages": CALLED}, "roles must alternate", "instruct model"),
    "no place for tools": (CHATML, {"messages": CALLED, "tools": [WEATHER]}, "no place for tools", "knows tools"),
    "no place for calls": (CHATML, {"messages": CALLED}, "a call of get_weather", "calls of tools"),
    "no place for names": (CHATML, {"messages": [user("Hi", name="Ana"), assistant("Hello")]}, "names of", "into the"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_template_cannot_write_is_refused_by_line(tmp_path: Path, name: str) -> None:
    template, line, what, fix = REFUSED[name]
    path = write(tmp_path / "d.jsonl", {"messages": TWO}, line)
    with pytest.raises(RescoldoError, match=what) as caught:
        read_dataset(path, GENERIC, t.with_template(template), 4096, None)
    assert caught.value.where == f"{path}:2"
    assert fix in caught.value.fix


def test_a_name_that_the_template_writes() -> None:
    tokenizer = t.with_template(CHATML.replace("message['role']", "message['role'] + (message.name or '')"))
    (example,) = examples({"messages": [user("Hi", name="Ana"), assistant("Hello")]}, tokenizer)
    assert "userAna" in tokenizer.decode(example.tokens)


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>\n{"name": "get_weather", "arguments": {"place": "Ávila"}}\n</tool_call>',
        '[TOOL_CALLS][{"name": "get_weather", "arguments": {"place": "Ávila"}, "id": "abcdefghi"}]',
        '{"name": "get_weather", "parameters": {"place": "Ávila"}}',
        '<think>\nCold?\n</think>\n\n<tool_call>{"arguments": {"place": "Ávila"}, "name": "get_weather"}</tool_call>',
    ],
)
def test_a_models_calls_are_compared_whatever_its_template(text: str) -> None:
    record = {"messages": CALLED[:2], "tools": [WEATHER]}
    assert GENERIC.score(text, record).components["exact_match"] == 1
    assert GENERIC.score(text.replace("Ávila", "León"), record).components["exact_match"] == 0


def test_the_answers_text_needs_no_tokens() -> None:
    tokenizer = t.with_template(t.TOOLS)
    call = {"role": "assistant", "content": "", "tool_calls": [_with_object(CALL)]}
    found = answer_text(Turns([CALLED[0]], [WEATHER]), call, tokenizer, list(Ending.of(tokenizer).others))
    assert (found.missing, found.end, found.thinking) == ("", "<|im_end|>", 0)


def test_a_long_conversation_is_left_out_whole() -> None:
    tokenizer = t.with_template(CHATML)
    made = tokenize_records([{"messages": THREE}, {"messages": TWO[:2]}], GENERIC, tokenizer, 60, Teaching())
    assert (made.kept, [line for line, _ in made.overruns]) == ([1], [1])


def test_beginnings_are_shared_with_conversations_of_several_turns() -> None:
    from rescoldo.engine.prefix import group_by_prefix

    tokenizer = t.with_template(t.QWEN3)
    made = examples({"messages": [{**SYSTEM, "content": "Be brief. " * 9}, *THREE]}, tokenizer)
    assert len(made) == 3
    assert max(group.length for group in group_by_prefix(made)) >= 16


def test_conversation_of_any_role() -> None:
    qa = get_role("qa")
    path = Path(__file__).parents[2] / "src/rescoldo/role/builtin/qa/samples.jsonl"
    record = json.loads(path.read_text("utf-8").splitlines()[0])
    whole = qa.conversation(record)
    assert whole.learned == (len(whole.messages) - 1,)
    tokenizer = t.with_template(CHATML)
    (example,) = conversation_examples(whole, tokenizer, Teaching(), Ending.of(tokenizer))
    assert tokenizer.decode(example.tokens[example.n_prompt : -1]) == qa.target(record)

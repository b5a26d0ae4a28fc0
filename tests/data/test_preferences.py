"""Files of preferences: the formats people have, and what is wrong with a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rescoldo.data.audit import audit
from rescoldo.data.preferences import Judgement, form_of, read_preferences
from rescoldo.data.split import split_files
from rescoldo.errors import RescoldoError
from rescoldo.role import get_role
from tests.data.examples import record, write

ASKED = {"role": "user", "content": "Why?"}
SYSTEM = {"role": "system", "content": "Be brief."}


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def gpt(text: str) -> dict[str, str]:
    return {"from": "gpt", "value": text}


FORMATS: dict[str, dict[str, Any]] = {
    "trl text": {"prompt": "Why?", "chosen": "So.", "rejected": "No."},
    "trl messages": {"prompt": [ASKED], "chosen": [said("So.")], "rejected": [said("No.")]},
    "trl message": {"prompt": [ASKED], "chosen": said("So."), "rejected": said("No.")},
    "trl implicit": {"chosen": [ASKED, said("So.")], "rejected": [ASKED, said("No.")]},
    "ultrafeedback": {
        "prompt": "Why?", "prompt_id": "a", "chosen": [ASKED, said("So.")], "rejected": [ASKED, said("No.")],
        "messages": [ASKED, said("So.")], "score_chosen": 8.0, "score_rejected": 3.0,
    },
    "llama-factory sharegpt": {
        "conversations": [{"from": "human", "value": "Why?"}], "chosen": gpt("So."), "rejected": gpt("No."),
    },
    "llama-factory alpaca": {"instruction": "Why?", "input": "", "chosen": "So.", "rejected": "No."},
    "openai": {
        "input": {"messages": [ASKED], "tools": [], "parallel_tool_calls": True},
        "preferred_output": [said("So.")], "non_preferred_output": [said("No.")],
    },
    "messages": {"messages": [ASKED], "chosen": "So.", "rejected": "No."},
    "llama-factory v1": {
        f"{side}_messages": [
            {"role": "user", "content": [{"type": "text", "value": "Why?"}], "loss_weight": 0.0},
            {"role": "assistant", "content": [{"type": "text", "value": said_so}], "loss_weight": 1.0},
        ]
        for side, said_so in (("chosen", "So."), ("rejected", "No."))
    },
}  # fmt: skip


def read(path: Path, *lines: Any, form: str = "pairs", role: str = "generic") -> list[Judgement]:
    return read_preferences(write(path / "p.jsonl", *lines), get_role(role), form)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", FORMATS)
def test_formats_mean_the_same(tmp_path: Path, name: str) -> None:
    [judgement] = read(tmp_path, FORMATS[name])
    chosen, rejected = judgement.answers
    assert [turn["content"] for turn in chosen["turns"]] == ["Why?"]
    assert chosen["turns"] == rejected["turns"]
    assert (chosen["answer"], rejected["answer"]) == ("So.", "No.")
    good, bad = read(tmp_path, FORMATS[name], form="judged")
    assert (good.answers[0]["answer"], good.good, bad.answers[0]["answer"], bad.good) == ("So.", True, "No.", False)


def test_system_messages_and_several_turns(tmp_path: Path) -> None:
    turns = [SYSTEM, ASKED, said("Because."), {"role": "user", "content": "Really?"}]
    [judgement] = read(tmp_path, {"prompt": turns, "chosen": [said("Yes.")], "rejected": [said("No.")]})
    assert judgement.answers[0]["turns"] == turns


@pytest.mark.parametrize(
    "line",
    [
        {"prompt": "Why?", "completion": "So.", "label": False},
        {"prompt": [ASKED], "completion": [said("So.")], "label": False},
        {"messages": [ASKED, said("So.")], "kto_tag": False},
        {"conversations": [{"from": "human", "value": "Why?"}, gpt("So.")], "label": False},
        {"instruction": "Why?", "input": "", "output": "So.", "kto_tag": False},
    ],
    ids=str,
)
def test_labels(tmp_path: Path, line: dict[str, Any]) -> None:
    [judgement] = read(tmp_path, line, form="judged")
    assert not judgement.good
    assert judgement.answers[0]["answer"] == "So."


def test_a_roles_own_inputs(tmp_path: Path) -> None:
    line = {
        "concept": "A shop for lamps in a village, with a workshop",
        "chosen": "title: A",
        "rejected": "-",
    }
    [judgement] = read(tmp_path, line, role="ba")
    assert judgement.answers[0]["turns"] == get_role("ba").messages(line)
    assert judgement.answers[1]["answer"] == "-"
    [judgement] = read(tmp_path, {**record(1), "label": True}, form="judged", role="ba")
    assert judgement.answers[0]["answer"] == get_role("ba").target(record(1))


FAULTS: list[tuple[dict[str, Any], str, str]] = [
    ({"prompt": "Why?", "chosen": "So."}, "rejected", "is missing: expected together with chosen"),
    ({"prompt": "Why?", "completion": "So."}, "chosen", "is missing"),
    ({"prompt": "Why?", "chosen": "So.", "rejected": "So."}, "rejected", "is the same answer as chosen"),
    ({"prompt": "Why?", "chosen": "So.", "rejected": ""}, "rejected", "is empty"),
    ({"prompt": "Why?", "chosen": "So.", "rejected": 3}, "rejected", "is a number"),
    ({"prompt": [ASKED], "chosen": [said("So.")], "rejected": [ASKED]}, "rejected", "assistant"),
    ({"chosen": "So.", "rejected": "No."}, "prompt", "is missing"),
    (
        {"chosen": [ASKED, said("So.")], "rejected": [{"role": "user", "content": "How?"}, said("No.")]},
        "rejected",
        "another prompt",
    ),
    ({"prompt": "Why?", "chosen": "So.", "rejected": "No.", "margin": 2}, "margin", "is unknown"),
    ({"prompt": "Why?", "chosen": "So.", "rejected": "No.", "images": ["a.png"]}, "images", "only text"),
    ({"prompt": "Why?", "chosen": "So.", "rejected": "No.", "label": True}, "label", "is given together with"),
    ({"input": {"messages": "Why?"}, "preferred_output": [], "non_preferred_output": []}, "input.messages", "missing"),
    ({"messages": "Why?", "chosen": "So.", "rejected": "No."}, "messages", "a list of messages"),
]


@pytest.mark.parametrize(("line", "field", "what"), FAULTS, ids=lambda value: str(value)[:50])
def test_faults_name_line_and_field(tmp_path: Path, line: dict[str, Any], field: str, what: str) -> None:
    with pytest.raises(RescoldoError) as caught:
        read(tmp_path, FORMATS["trl text"], line)
    assert ":2" in caught.value.where
    assert field in caught.value.where
    assert what in caught.value.what


@pytest.mark.parametrize(
    ("line", "field", "what"),
    [
        ({"prompt": "Why?", "completion": "So."}, "label", "is missing"),
        ({"prompt": "Why?", "completion": "So.", "label": 1}, "label", "true or false"),
        ({"prompt": "Why?", "completion": "So.", "label": True, "kto_tag": False}, "kto_tag", "contrary"),
    ],
    ids=str,
)
def test_faults_of_labels(tmp_path: Path, line: dict[str, Any], field: str, what: str) -> None:
    with pytest.raises(RescoldoError) as caught:
        read(tmp_path, line, form="judged")
    assert field in caught.value.where
    assert what in caught.value.what


def test_files_are_divided_by_their_prompts(tmp_path: Path) -> None:
    names = ("lamps", "boats", "bread", "clocks", "maps", "trains")
    pairs = [
        {"prompt": f"Tell me of {name} {name}.", "chosen": f"All of {name}.", "rejected": f"No {word}."}
        for name in names
        for word in ("way", "idea")
    ]
    source = write(tmp_path / "all.jsonl", *pairs)
    outputs = [tmp_path / "train.jsonl", tmp_path / "val.jsonl"]
    split = split_files([source], 0.3, 1, *outputs, get_role("generic"))
    assert len(split.train) + len(split.val) == 12
    prompts = [{json.loads(line)["prompt"] for line in path.read_text().splitlines()} for path in outputs]
    assert all(prompts)
    assert not prompts[0] & prompts[1]
    found = audit([source, *outputs], get_role("generic"))
    assert [file.records for file in found.files] == [12, len(split.train), len(split.val)]
    assert {fault.code for fault in found.across} == {"leak"}
    assert audit(outputs, get_role("generic")).ok


def test_audit_names_the_line(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", FORMATS["trl text"], {"prompt": "Why?", "chosen": "So.", "rejected": "So."})
    [fault] = audit([path], get_role("generic")).faults
    assert (fault.line, fault.field, fault.code) == (2, "rejected", "same")


def test_what_a_file_holds(tmp_path: Path) -> None:
    for name, lines, form in (
        ("pairs", [FORMATS["openai"]], "pairs"),
        ("judged", [{"prompt": "Why?", "completion": "So.", "label": True}], "judged"),
        ("answers", [{"prompt": "Why?", "completion": "So."}], None),
        ("labels", [{"prompt": "Why?", "completion": "So.", "label": "why"}], None),
    ):
        assert form_of(write(tmp_path / f"{name}.jsonl", *lines)) == form

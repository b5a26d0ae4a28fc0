"""Plain text: read by document, packed into full windows, learned by no other document's light."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rescoldo.data import read_records
from rescoldo.data.audit import audit
from rescoldo.data.dataset import balanced, check_dataset, read_dataset
from rescoldo.data.split import split_files
from rescoldo.data.teaching import ExtraText, Teaching, extra_text
from rescoldo.data.text import is_text, pack, read_documents
from rescoldo.engine.types import Example
from rescoldo.errors import RescoldoError
from rescoldo.role import get_role
from tests.base.make_models import tiny_tokenizer
from tests.data.examples import write

GENERIC = get_role("generic")


@given(st.lists(st.lists(st.integers(0, 9), max_size=40), max_size=8), st.integers(16, 24))
def test_every_token_is_predicted_once_and_from_its_own_document(documents: list[list[int]], length: int) -> None:
    windows = list(pack(documents, length))
    assert all(len(window.tokens) <= length for window in windows)
    assert all(len(window.tokens) >= length - 1 for window in windows[:-1])
    predicted = []
    for window in windows:
        edges = [0, *window.documents, len(window.tokens)]
        weights = [0.0, *(window.weights or (1.0,) * (len(window.tokens) - 1))]
        for first, end in itertools.pairwise(edges):
            assert weights[first] == 0
            assert set(weights[first + 1 : end]) == {1.0}
            predicted += window.tokens[first + 1 : end]
    assert predicted == [token for document in documents for token in document[1:]]


def test_a_document_that_goes_on_has_its_last_token_again() -> None:
    first, second = pack([list(range(20))], 16)
    assert (first.tokens, second.tokens) == (tuple(range(16)), tuple(range(15, 20)))
    assert first.weights is second.weights is None


def test_files_and_rows(tmp_path: Path) -> None:
    file = tmp_path / "a.md"
    file.write_text("\ufeffOne text.\n\nIts end.\n", "utf-8")
    rows = write(tmp_path / "b.jsonl", {"text": "First.", "url": "x"}, {"text": "Second.", "meta": {}})
    assert [record["text"] for record in read_documents(file)] == ["One text.\n\nIts end.\n"]
    assert [(record.line, record["text"]) for record in check_dataset(rows, GENERIC)] == [(1, "First."), (2, "Second.")]
    tokenizer = tiny_tokenizer()
    data = read_dataset(rows, GENERIC, tokenizer, 4096, None)
    (window,) = data.examples
    text = tokenizer.decode(window.tokens)
    assert text == f"First.{tokenizer.eos_token}Second.{tokenizer.eos_token}"
    assert (data.is_text, data.texts, len(window.documents)) == (True, 1, 1)


def test_json_lines_in_a_txt_file_are_records(tmp_path: Path) -> None:
    path = write(tmp_path / "d.txt", {"prompt": "x", "completion": "y"})
    assert not is_text(path, GENERIC)
    assert len(read_records(path, GENERIC)) == 1


BAD: dict[str, tuple[str, Any, str]] = {
    "not UTF-8": ("a.txt", b"caf\xe9 au lait", "is not UTF-8 text .byte 4"),
    "UTF-16": ("a.txt", "text".encode("utf-16"), "is not UTF-8 text"),
    "null characters": ("a.txt", b"a\0b", "null characters"),
    "empty": ("a.md", b" \n", "is empty"),
    "a mark": ("a.txt", b"one\ntwo <|im_end|> three", "control token"),
    "too little": ("a.txt", b"", "is empty"),
    "a number": ("b.jsonl", [{"text": "x"}, {"text": 5}], "is a number"),
    "a row of another kind": ("b.jsonl", [{"text": "x"}, {"prompt": "y", "completion": "z"}], "has no `text`"),
    "a key that may mean something": ("b.jsonl", [{"text": "x"}, {"text": "y", "parts": [1]}], "is unknown and may"),
    "a label": ("b.jsonl", [{"text": "x", "label": True}], "is a label of the text"),
    "a mask": ("b.jsonl", [{"text": "x", "mask": [1]}], "changes what the line means"),
    "images beside": ("b.jsonl", [{"text": "x", "images": ["a.jpg"]}], "only text"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_text(tmp_path: Path, name: str) -> None:
    file, content, message = BAD[name]
    path = tmp_path / file
    path.write_bytes(content if isinstance(content, bytes) else "\n".join(map(json.dumps, content)).encode())
    with pytest.raises(RescoldoError, match=message) as caught:
        read_dataset(path, GENERIC, tiny_tokenizer(), 4096, None)
    assert caught.value.where is not None
    assert str(path) in caught.value.where
    assert caught.value.fix


def test_a_role_may_have_a_field_of_that_name(tmp_path: Path) -> None:
    (tmp_path / "sort.yaml").write_text(
        "name: sort\ninput: text\nanswer: label\nprompt: 'Sort: {{ text }}'\nserialization: text\nmetric: exact_match\n"
    )
    role = get_role(str(tmp_path / "sort.yaml"))
    path = write(tmp_path / "d.jsonl", {"text": "x", "label": "a"}, {"text": "y", "label": "b"})
    assert not is_text(path, role)
    assert len(read_dataset(path, role, tiny_tokenizer(), 4096, None, check_dataset(path, role)).examples) == 2
    assert audit([path], role).ok
    assert is_text(write(tmp_path / "t.jsonl", {"text": "x"}), get_role("ba"))


def test_the_audit_knows_text(tmp_path: Path) -> None:
    path = write(tmp_path / "b.jsonl", {"text": "x"}, {"text": "y"}, {"text": "x"}, {"text": 5})
    found = audit([path], GENERIC)
    assert [(fault.line, fault.code, fault.level) for fault in found.faults] == [
        (3, "duplicate", "warning"),
        (4, "type", "error"),
    ]
    assert found.files[0].records == 4


def test_text_is_divided(tmp_path: Path) -> None:
    path = write(tmp_path / "b.jsonl", *({"text": f"Document {word}"} for word in ("a", "b", "c", "a", "d", "e")))
    done = split_files([path], 0.4, 1, tmp_path / "t.jsonl", tmp_path / "v.jsonl", GENERIC)
    assert (0 in done.train) == (3 in done.train)
    assert sorted(done.train + done.val) == list(range(6))
    assert len(read_documents(tmp_path / "v.jsonl")) == len(done.val)
    (tmp_path / "a.md").write_text("One.")
    with pytest.raises(RescoldoError, match="a single document"):
        split_files([tmp_path / "a.md"], 0.4, 1, tmp_path / "t2.jsonl", tmp_path / "v2.jsonl", GENERIC)


def test_text_has_no_score(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("Only text.")
    with pytest.raises(RescoldoError, match="expected records with questions and answers") as caught:
        read_records(path, GENERIC)
    assert "perplexity" in (caught.value.fix or "")


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("a.txt", ExtraText((Path("a.txt"),))),
        ("a.txt:0.2", ExtraText((Path("a.txt"),), 0.2)),
        ("a.txt, b:c.md:0.5", ExtraText((Path("a.txt"), Path("b:c.md")), 0.5)),
    ],
)
def test_what_the_flag_says(said: str, meant: ExtraText) -> None:
    assert extra_text(said) == meant


@pytest.mark.parametrize("said", ["", "a.txt:0", "a.txt:1", "a.txt:20", ":0.2"])
def test_what_the_flag_may_not_say(said: str) -> None:
    with pytest.raises(ValueError, match=r"is not between 0 and 1|no file"):
        extra_text(said)


def test_text_beside_examples_has_its_share(tmp_path: Path) -> None:
    chats = write(tmp_path / "d.jsonl", *({"prompt": f"Question {i}", "completion": "Yes. " * 8} for i in range(30)))
    text = tmp_path / "a.txt"
    text.write_text("word " * 3000)
    tokenizer = tiny_tokenizer()
    alone = read_dataset(chats, GENERIC, tokenizer, 64, None)
    mixed = read_dataset(chats, GENERIC, tokenizer, 64, None, None, Teaching(), ExtraText((text,), 0.25))
    assert mixed.examples[: len(alone.examples)] == alone.examples
    tokens = sum(len(example.tokens) for example in mixed.examples[-mixed.texts :])
    assert tokens / mixed.tokens == pytest.approx(0.25, abs=0.02)
    assert mixed.digest != alone.digest
    assert len(mixed.names) == len(mixed.examples)
    (note,) = read_dataset(chats, GENERIC, tokenizer, 64, None, None, Teaching(), ExtraText((text,), 0.99)).notes
    assert "too short for its share" in note


def test_classes_are_balanced() -> None:
    order = balanced(Path("d.jsonl"), ["a", "a", "b", "a", "a", "c", "b"])
    assert order == [0, 1, 2, 2, 3, 4, 5, 5, 5, 5, 6, 6]
    with pytest.raises(RescoldoError, match="not classes"):
        balanced(Path("d.jsonl"), ["a", "b", "c"])


def test_documents_must_be_told_apart() -> None:
    with pytest.raises(ValueError, match="weight must be 0"):
        Example((1, 2, 3, 4), 1, None, (2,))
    with pytest.raises(ValueError, match="ascending"):
        Example((1, 2, 3, 4), 1, (1.0, 0.0, 1.0), (4,))
    assert Example((1, 2, 3, 4, 5), 1, (1.0, 0.0, 1.0, 1.0), (2,)).spans() == [(0, 2), (2, 4)]

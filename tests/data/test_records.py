"""Reading: every bad line has a name, a place and a way out."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from rescoldo.data import read_records
from rescoldo.data.audit import audit
from rescoldo.data.fix import fix_file
from rescoldo.errors import RescoldoError
from rescoldo.role import get_role
from tests.data.examples import PREFIXES, items, record, write


def without(key: str) -> dict[str, Any]:
    one = record()
    del one["requirements"][key]
    return one


def test_reads_what_is_good(tmp_path: Path) -> None:
    as_yaml = record(1)
    for name in PREFIXES:
        as_yaml["requirements"][name] = yaml.safe_dump(as_yaml["requirements"][name])
    path = write(
        tmp_path / "d.jsonl", b"\xef\xbb\xbf" + json.dumps({**record(), "score": 0.9}).encode(), b"", as_yaml, b"\r"
    )
    first, second = read_records(path)
    assert (first.line, second.line) == (1, 3)
    assert first["score"] == 0.9
    assert first == {**record(), "score": 0.9}
    assert second == record(1)


def test_last_line_without_end(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps(record()) + "\r\n" + json.dumps(record(1)))
    assert len(read_records(path)) == 2


BAD_FILES = {
    "missing": (lambda p: None, "there is no such file"),
    "directory": (lambda p: p.mkdir(), "is a directory"),
    "empty": (lambda p: p.write_bytes(b""), "holds no records"),
    "blank": (lambda p: p.write_bytes(b"\n \n\n"), "holds no records"),
    "bom alone": (lambda p: p.write_bytes(b"\xef\xbb\xbf"), "holds no records"),
    "binary": (lambda p: p.write_bytes(b"\x7fELF\0\0\0" * 99), "is not a text file"),
    "gzip": (lambda p: p.write_bytes(b"\x1f\x8b\x08" + b"x" * 50), "compressed .gzip"),
    "utf-16": (lambda p: p.write_text("{}", encoding="utf-16"), "UTF-16, not in UTF-8"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(tmp_path: Path, name: str) -> None:
    make, message = BAD_FILES[name]
    path = tmp_path / "d.jsonl"
    make(path)
    with pytest.raises(RescoldoError, match=message) as caught:
        read_records(path)
    assert str(path) in caught.value.where


# name: (line, field, part of the message, fixable)
BAD_LINES: dict[str, tuple[Any, str, str, bool]] = {
    "not json": ("{'concept': 1}", "", "not JSON: .*column 2", False),
    "cut off": (json.dumps(record())[:-5], "", "not JSON", False),
    "two objects": ("{} {}", "", "not JSON: Extra data", False),
    "list": ("[1, 2]", "", "is list: expected a JSON object", False),
    "null line": ("null", "", "is null: expected a JSON object", False),
    "latin-1": ('{"concept": "espa\xf1ol"}'.encode("latin-1"), "", "not UTF-8 at byte 18", False),
    "nan": ('{"concept": "c", "score": NaN}', "", "NaN is not a JSON value", False),
    "infinity": ('{"concept": "c", "score": -Infinity}', "", "-Infinity is not", False),
    "huge float": ('{"score": 1e999}', "", "out of range", False),
    "huge integer": ('{"score": ' + "9" * 5000 + "}", "", "a number of 5000 digits", False),
    "surrogate": (r'{"concept": "\ud800"}', "", "surrogate", False),
    "deep": ("[" * 100_000, "", "nested too deeply", False),
    "repeated key": (json.dumps(record())[:-1] + ', "concept": "other"}', "concept", "is repeated", False),
    "no concept": ({"requirements": record()["requirements"]}, "concept", "is missing", False),
    "null concept": ({**record(), "concept": None}, "concept", "is null: expected text", False),
    "empty concept": ({**record(), "concept": " "}, "concept", "is empty", False),
    "number as concept": ({**record(), "concept": 7}, "concept", "is a number", False),
    "no requirements": ({"concept": "c"}, "requirements", "is missing", False),
    "requirements text": ({"concept": "c", "requirements": "r"}, "requirements", "is text: expected an object", False),
    "no title": (without("title"), "requirements.title", "is missing", False),
    "empty title": (record(title=""), "requirements.title", "is empty", False),
    "null description": (record(description=None), "requirements.description", "is null", False),
    "no constraints": (without("constraints"), "requirements.constraints", "is missing", False),
    "empty list": (record(constraints=[]), "requirements.constraints", "is empty", False),
    "list is an object": (record(constraints={}), "requirements.constraints", "is an object: expected a list", False),
    "list is null": (record(constraints=None), "requirements.constraints", "is null: expected a list", False),
    "bad yaml string": (record(constraints="- [a"), "requirements.constraints", "or YAML that holds one", False),
    "yaml bomb": (record(constraints="[" * 9999), "requirements.constraints", "or YAML", False),
    "item is text": (record(constraints=["a", "b"]), r"requirements.constraints[0]", "an object with id", False),
    "no description": (
        record(constraints=[{"id": "C001", "priority": "Low"}]),
        "requirements.constraints[0].description",
        "is missing",
        False,
    ),
    "no id": (record(constraints=items("C", None, "C002")), "requirements.constraints[0].id", "is missing", True),
    "two digits": (
        record(constraints=items("C", "C01")),
        "requirements.constraints[0].id",
        "'C01': expected C and three",
        True,
    ),
    "number as id": (
        record(constraints=items("C", 1)),
        "requirements.constraints[0].id",
        "is 1: expected C and three",
        True,
    ),
    "wrong prefix": (record(constraints=items("C", "FR001")), "requirements.constraints[0].id", "'FR001'", True),
    "same id twice": (
        record(constraints=items("C", "C001", "C001")),
        "requirements.constraints[1].id",
        r"C001 is already used in constraints\[0\]",
        True,
    ),
    "priority case": (
        record(constraints=[{"id": "C001", "description": "d", "priority": "HIGH"}]),
        "requirements.constraints[0].priority",
        "'HIGH': expected one of High, Medium, Low",
        True,
    ),
    "priority unknown": (
        record(constraints=[{"id": "C001", "description": "d", "priority": "Soon"}]),
        "requirements.constraints[0].priority",
        "'Soon'",
        False,
    ),
    "priority missing": (
        record(constraints=[{"id": "C001", "description": "d"}]),
        "requirements.constraints[0].priority",
        "is missing",
        False,
    ),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_bad_lines(tmp_path: Path, name: str) -> None:
    line, field, message, fixable = BAD_LINES[name]
    path = write(tmp_path / "d.jsonl", record(5), line)
    with pytest.raises(RescoldoError, match=message) as caught:
        read_records(path)
    assert caught.value.where == f"{path}:2" + (f", {field}" if field else "")
    assert f"rescoldo data {'fix' if fixable else 'audit'}" in caught.value.fix
    found = audit([path])
    assert not found.ok
    errors = [fault for fault in found.faults if fault.level == "error"]
    assert (errors[0].line, errors[0].field, errors[0].fixable) == (2, field, fixable)
    json.dumps(found.as_json(), allow_nan=False)


@pytest.mark.parametrize(("indent", "lines"), [(None, [1, 2, 3]), (1, [2, 6, 10])], ids=["one line", "pretty"])
def test_an_array_is_read_as_its_elements(tmp_path: Path, indent: int | None, lines: list[int]) -> None:
    """By the line that each begins on; if they share one, by number. What is mended is written as lines."""
    path, role = tmp_path / "d.json", get_role("generic")
    first, second = ({"prompt": f"é\u2028 {name}?", "completion": "y"} for name in "ab")
    path.write_text("\ufeff" + json.dumps([first, second, first], indent=indent, ensure_ascii=False) + "\n", "utf-8")
    assert [record.line for record in read_records(path, role)] == lines
    (fault,) = (fault for fault in audit([path], role).faults if fault.level == "error")
    assert (fault.line, fault.what) == (lines[2], f"the same example as line {lines[0]}")
    assert [json.loads(line) for line in fix_file(path, role).content.splitlines()] == [first, second]


BAD_ARRAYS: dict[str, tuple[str, int, str]] = {
    "cut off": ('[{"a": 1},\n{"a": ', 2, r"array is damaged: Expecting value \(column 7\)"),
    "no comma": ('[{"a": 1}\n{"a": 2}]', 2, "Expecting ',' or ']'"),
    "no end": ('\n[{"a": 1}\n', 3, "Expecting ',' or ']'"),
    "comma at the end": ('[{"a": 1},\n]', 2, "Expecting value"),
    "lines behind it": ('[{"a": 1}]\n{"a": 2}', 2, "Extra data after the array"),
    "deep": ("[" * 100_000, 1, "nested too deeply"),
    "object over several lines": ('{\n"concept": "c"\n}\n' * 999, 1, "an object spans several lines"),
    "no object": ('[{"concept": "c"},\n 7]', 2, "is int: expected a JSON object"),
    "nan": ('[\n{"concept": NaN}]', 2, "NaN is not a JSON value"),
    "huge integer": ('[{"concept": ' + "9" * 5000 + "}]", 1, "a number of 5000 digits"),
    "element too long": ('[{"concept": "' + "x" * (5 << 20) + '"}]', 1, "is longer than 4 MiB"),
    "nothing in it": ("[ \n ]", 0, "holds no records"),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_bad_arrays(tmp_path: Path, name: str) -> None:
    text, line, message = BAD_ARRAYS[name]
    path = tmp_path / "d ä.json"
    path.write_text(text)
    with pytest.raises(RescoldoError, match=message) as caught:
        read_records(path, answers=False)
    assert caught.value.where == (f"{path}:{line}" if line else str(path))
    assert caught.value.fix
    assert len(str(caught.value)) < 600


def test_an_array_that_is_no_utf8(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    path.write_bytes(b'[{"concept": "a"},\n{"concept": "espa\xf1ol"}]')
    with pytest.raises(RescoldoError, match="not UTF-8 at byte 18") as caught:
        read_records(path, answers=False)
    assert caught.value.where == f"{path}:2"


def test_one_error_names_the_first_faults(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", *[record(i, title="") for i in range(20)])
    with pytest.raises(RescoldoError) as caught:
        read_records(path)
    text = str(caught.value)
    assert "20 faults in 20 lines" in text
    assert f"{path}:5, requirements.title" in text
    assert "and 15 more" in text
    assert len(text.splitlines()) < 10


def test_concepts_are_enough_to_be_answered(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", {"concept": "A booking system"})
    assert [one["concept"] for one in read_records(path, answers=False)] == ["A booking system"]
    with pytest.raises(RescoldoError, match="is missing"):
        read_records(write(tmp_path / "e.jsonl", {"id": 1}), answers=False)


def test_a_line_without_end_does_not_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(json.dumps(record()).encode() + b"\n" + b"x" * (9 << 20) + b"\n" + json.dumps(record(1)).encode())
    started = time.monotonic()
    with pytest.raises(RescoldoError, match="longer than 4 MiB") as caught:
        read_records(path)
    assert ":2" in caught.value.where
    assert "1 faults" not in str(caught.value)
    assert time.monotonic() - started < 5

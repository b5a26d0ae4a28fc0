"""Audit, fix and split, as functions and as commands."""

from __future__ import annotations

import copy
import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rescoldo.cli.main import app, run_app
from rescoldo.data import fix, read_records
from rescoldo.data.audit import audit
from rescoldo.data.fix import fix_file, write_fixed
from rescoldo.data.similar import near_pairs
from rescoldo.data.split import split_files, split_indices
from rescoldo.errors import RescoldoError
from rescoldo.files import write_atomic
from rescoldo.role import get_role
from rescoldo.role.ba_records import mend
from rescoldo.words import same
from tests.data.examples import items, record, write


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: Any) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["rescoldo", *map(str, args)])
    code = run_app(app)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def codes(*paths: Path) -> list[tuple[int, str]]:
    return [(fault.line, fault.code) for fault in audit(list(paths)).faults]


def test_duplicates(tmp_path: Path) -> None:
    again = record(1)
    again["concept"] = "  " + again["concept"].upper() + "!"
    other = {**record(2), "concept": record(1)["concept"]}
    path = write(tmp_path / "d.jsonl", record(1), again, other, record(3))
    found = audit([path])
    assert codes(path) == [(2, "duplicate"), (3, "duplicate-concept")]
    assert found.faults[0].what == "the same example as line 1"
    assert [fault.fixable for fault in found.faults] == [True, False]


def turns(*texts: str, system: str = "") -> dict[str, Any]:
    """A conversation: user and assistant in turns."""
    first = [{"role": "system", "content": system}] if system else []
    said = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return {"messages": first + said}


def test_a_conversation_is_the_same_only_with_all_its_turns(tmp_path: Path) -> None:
    path = write(
        tmp_path / "d.jsonl",
        turns("Is Madrid in Spain?", "Yes.", "Are you sure?", "Yes."),
        turns("Is Porto on the coast?", "It is.", "Are you sure?", "Yes."),
        turns("Lower case: HELLO", "hello", system="Obey."),
        turns("Lower case: Hello", "hello", system="Obey."),
        turns("Say hello", "hello", system="In English."),
        turns("Say hello", "hello", system="In lower case."),
        turns("What is 3+2?", "It is odd."),
        turns("What is 3-2?", "It is odd."),
        turns("What is 3-2?", "One."),
        turns("What is 3-2?", "One."),
    )
    fixed = fix_file(path, get_role("generic"))
    assert [change.what for change in fixed.changes] == ["left out: the same example as line 9"]
    faults = audit([path], get_role("generic")).faults
    assert [(f.line, f.what) for f in faults if f.level == "error"] == [(10, "the same example as line 9")]
    assert [(f.line, f.what) for f in faults if f.code == "duplicate-concept"] == [
        (9, "the same prompt as line 8, with another answer")
    ]


def test_a_record_is_the_same_only_with_all_its_fields(tmp_path: Path) -> None:
    """What the prompt does not use (id) is no difference; an answer without prose is an answer."""
    role_file = tmp_path / "queue.yaml"
    role_file.write_text(
        "name: queue\ninput: ticket\nanswer: out\nmetric: exact_match\nserialization: json\n"
        "prompt: 'Queue of this ticket{% if product is defined %} about {{ product }}{% endif %}: {{ ticket }}'\n"
        "schema: {type: object, required: [queue], properties: {queue: {enum: [billing, bug]}}}\n"
    )
    role = get_role(str(role_file))
    asked = {"ticket": "It does not work", "out": {"queue": "bug"}}
    lines = [
        asked,
        {**asked, "product": "A"},
        {**asked, "product": "B", "out": {"queue": "billing"}},
        {**asked, "id": 7},
    ]
    path = write(tmp_path / "d.jsonl", *lines)
    fixed = fix_file(path, role)
    assert [(change.line, change.what) for change in fixed.changes] == [(4, "left out: the same example as line 1")]
    assert [(f.line, f.fixable) for f in audit([path], role).faults if f.code == "duplicate"] == [(4, True)]
    split_files([path], 0.5, 1, tmp_path / "t.jsonl", tmp_path / "v.jsonl", role)  # there are several inputs


def test_near_duplicates_and_shared_sentences_are_warnings(tmp_path: Path) -> None:
    one, two = record(1), record(2)
    one["concept"] = (
        "A clinic with three doctors wants an online calendar in which patients book and cancel appointments"
    )
    two["concept"] = "A clinic with three doctors wants an online calendar in which patients reserve a slot"
    two["requirements"]["constraints"][0]["description"] = one["requirements"]["constraints"][2]["description"]
    found = audit([write(tmp_path / "d.jsonl", one, two)])
    assert [(fault.code, fault.level) for fault in found.faults] == [
        ("near-duplicate", "warning"),
        ("shared-sentence", "warning"),
    ]
    assert found.ok


def test_warnings(tmp_path: Path) -> None:
    path = write(
        tmp_path / "d.jsonl",
        record(0, title="Short", description="too short"),
        record(1, constraints=items("C", "C001")[:1]),
        record(2, constraints=record(2)["requirements"]["constraints"][::-1]),
        record(3, constraints=yaml.safe_dump(record(3)["requirements"]["constraints"])),
    )
    assert codes(path) == [(1, "length"), (1, "length"), (2, "count"), (3, "id-order"), (4, "yaml-string")]
    assert audit([path]).ok
    assert len(read_records(path)) == 4


def test_leaks_between_files(tmp_path: Path) -> None:
    long = "A clinic with three doctors wants an online calendar in which patients book and cancel appointments"
    train = write(tmp_path / "t.jsonl", record(1), record(2), {**record(3), "concept": long})
    val = write(
        tmp_path / "v.jsonl",
        record(4),
        {**record(5), "concept": record(1)["concept"] + "."},
        {**record(6), "concept": long + " soon"},
    )
    found = audit([train, val])
    assert [(f.file, f.line, f.code, f.level) for f in found.across] == [
        (str(val), 2, "leak", "error"),
        (str(val), 3, "near-leak", "warning"),
    ]
    assert f"{train}:1" in found.across[0].what
    assert not found.ok


def test_near_pairs_by_hand() -> None:
    texts = ["a b c d e f", "x a b c d e", "q r s t u v w", "b a", "b, A!"]
    # of 2 five-grams each, "a b c d e" is shared: 0.5
    assert near_pairs(texts) == [(1, 0, 0.5), (4, 3, 1.0)]
    assert same("Él  reserva, CITAS.") == "el reserva citas"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (["C01", "C02"], ["C001", "C002"]),
        (["C02", "C01"], ["C001", "C002"]),
        (["c-1", "C_2"], ["C001", "C002"]),
        (["C002", "C001"], ["C001", "C002"]),
        (["C1", "C0002"], ["C001", "C002"]),
        ([None, "C002"], ["C001", "C002"]),
        (["C001", "C001"], ["C001", "C002"]),
        (["C005", "C007"], ["C001", "C002"]),
        (["FR001", "x"], ["C001", "C002"]),
        ([1, 2], ["C001", "C002"]),
        ([["C001"], {"a": 1}], ["C001", "C002"]),
        (["C001", "C002"], ["C001", "C002"]),
    ],
)
def test_fix_ids(before: list[Any], after: list[str]) -> None:
    one = record(constraints=items("C", *before))
    fixed, changes = mend(one)
    assert [item["id"] for item in fixed["requirements"]["constraints"]] == after
    assert len(changes) == sum(a != b for a, b in zip(before, after, strict=True))
    assert one == record(constraints=items("C", *before)), "the original is not changed"
    assert not [fault for fault in get_role("ba").check(fixed, "f", 1) if fault.fixable]


def test_fix_renames_ids_where_they_are_mentioned() -> None:
    one = record(constraints=items("C", "C01", "C02"))
    one["requirements"]["functional_requirements"][0]["description"] = "Obeys C01, C02 and C015; see C01."
    fixed, changes = mend(one)
    assert fixed["requirements"]["functional_requirements"][0]["description"] == "Obeys C001, C002 and C015; see C001."
    assert "renamed" in changes[-1][1]


@pytest.mark.parametrize("identifier", ["C01", "C001", "C002"])
def test_fix_does_not_rename_an_id_that_stood_twice(identifier: str) -> None:
    one = record(constraints=items("C", identifier, identifier))
    one["requirements"]["description"] += f" {identifier}"
    fixed, _ = mend(one)
    assert fixed["requirements"]["description"].endswith(f" {identifier}")


def test_fix_swaps_ids() -> None:
    one = record(constraints=items("C", "C002", "C001"))
    one["requirements"]["description"] += " C001 and C002"
    assert mend(one)[0]["requirements"]["description"].endswith(" C002 and C001")


def test_fix_priorities_and_yaml_strings() -> None:
    wrong = [{"id": "C001", "description": "d", "priority": p} for p in (" high ", "MEDIUM", "baja", "Soon")]
    fixed, changes = mend(record(constraints=yaml.safe_dump(wrong)))
    assert [item["priority"] for item in fixed["requirements"]["constraints"]] == ["High", "Medium", "Low", "Soon"]
    assert len(changes) == 4 + 3  # the list, three priorities, three IDs


def test_fix_file(tmp_path: Path) -> None:
    good = json.dumps(record(7), indent=None, separators=(",", ":"))
    path = write(
        tmp_path / "d.jsonl",
        b"\xef\xbb\xbf" + good.encode(),
        record(1, constraints=items("C", "C01", "C02")),
        b"",
        record(1, constraints=items("C", "C001", "C002")),
        "{not json",
        record(2, title=""),
    )
    fixed = fix_file(path)
    lines = fixed.content.decode().splitlines()
    assert lines[0] == good
    assert json.loads(lines[1]) == record(1, constraints=items("C", "C001", "C002"))
    assert lines[2] == "{not json"
    assert len(lines) == 4
    assert [change.line for change in fixed.changes] == [2, 2, 4]
    assert fixed.changes[-1].what == "left out: the same example as line 2"
    assert [(fault.line, fault.field) for fault in fixed.left] == [(5, ""), (6, "requirements.title")]


IDS = (
    st.none() | st.sampled_from(["C001", "C01", "C1", "c002", "C003", "FR001", "", "junk", "C1000"]) | st.integers(0, 9)
)
ENTRIES = st.lists(
    st.fixed_dictionaries(
        {"description": st.sampled_from(["x", "see C01"])},
        optional={"id": IDS, "priority": st.sampled_from(["low", "High", "?"])},
    )
    | st.just("no item"),
    max_size=5,
)


@settings(max_examples=150)
@given(ENTRIES | ENTRIES.map(yaml.safe_dump) | st.none() | st.text(max_size=9))
def test_fixing_twice_is_fixing_once(constraints: Any) -> None:
    one = record(constraints=constraints)
    before = copy.deepcopy(one)
    fixed, _ = mend(one)
    assert one == before
    again, changes = mend(fixed)
    assert (again, changes) == (fixed, [])
    assert not [fault for fault in get_role("ba").check(fixed, "f", 1) if fault.fixable]


def test_in_place_keeps_the_old_file(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", record(constraints=items("C", "C01", "C02")))
    before = path.read_bytes()
    write_fixed(fix_file(path), path, None, in_place=True)
    assert (tmp_path / "d.jsonl.bak").read_bytes() == before
    assert audit([path]).ok
    with pytest.raises(RescoldoError, match="exists already"):
        write_fixed(fix_file(path), path, None, in_place=True)


def test_in_place_on_a_full_disk_changes_nothing_and_shows_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "d.jsonl", record(constraints=items("C", "C01", "C02")))
    path.chmod(0o600)
    before = path.read_bytes()

    def full(target: Path, write: Any) -> None:
        if target == path:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_atomic(target, write)

    monkeypatch.setattr(fix, "write_atomic", full)
    with pytest.raises(RescoldoError, match="No space left on device\n  → df -h"):
        write_fixed(fix_file(path), path, None, in_place=True)
    assert (path.read_bytes(), os.listdir(tmp_path)) == (before, ["d.jsonl"])
    monkeypatch.undo()
    write_fixed(fix_file(path), path, None, in_place=True)
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o600}


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "d.jsonl", *[record(i, constraints=items("C", f"C0{i % 3}", "C04")) for i in range(10)])
    code, out, _ = run(monkeypatch, capsys, "data", "audit", path)
    assert code == 1
    assert f"{path}:1, requirements.constraints[0].id" in out
    assert f"rescoldo data fix {path}" in out
    code, out, _ = run(monkeypatch, capsys, "data", "audit", path, "--json")
    assert code == 1
    assert json.loads(out)["files"][0]["fixable"] == 20

    target = tmp_path / "out" / "fixed.jsonl"
    code, out, _ = run(monkeypatch, capsys, "data", "fix", path, "-o", target)
    assert code == 0
    assert f"{path}:1, requirements.constraints[0].id: C00 → C001" in out
    code, _, err = run(monkeypatch, capsys, "data", "fix", path, "-o", target)
    assert code == 2
    assert "exists already and is not overwritten" in err
    code, _, err = run(monkeypatch, capsys, "data", "fix", path)
    assert code == 2
    assert "--in-place" in err

    train, val = tmp_path / "t.jsonl", tmp_path / "v.jsonl"
    arguments = ("data", "split", target, "--train-out", train, "--val-out", val)
    code, out, _ = run(monkeypatch, capsys, *arguments, "--json")
    assert code == 0
    assert json.loads(out)["val"]["records"] == 2
    assert sorted(train.read_text().splitlines() + val.read_text().splitlines()) == sorted(
        target.read_text().splitlines()
    )
    assert run(monkeypatch, capsys, "data", "audit", train, val)[0] == 0
    assert run(monkeypatch, capsys, *arguments)[0] == 2
    for command in ("audit", "fix", "split"):
        code, out, _ = run(monkeypatch, capsys, "data", command, "--help")
        assert code == 0
        assert f"rescoldo data {command}" in " ".join(out.split())


@pytest.mark.parametrize(
    ("share", "count", "message"),
    [
        (0.0, 9, "not between 0 and 1"),
        (1.0, 9, "not between"),
        (-1, 9, "not between"),
        (float("nan"), 9, "not between"),
        (0.5, 1, "nothing to split"),
    ],
)
def test_what_cannot_be_split(share: float, count: int, message: str) -> None:
    with pytest.raises(RescoldoError, match=message):
        split_indices([record(i)["concept"] for i in range(count)], share, 1)


def test_split_refuses_its_own_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "d.jsonl", record(1), record(2))
    before = path.read_bytes()
    code, _, err = run(monkeypatch, capsys, "data", "split", path, "--train-out", path, "--val-out", tmp_path / "v")
    assert code == 2
    assert "three different files" in err
    assert path.read_bytes() == before
    code, _, err = run(
        monkeypatch, capsys, "data", "split", path, path, "--train-out", tmp_path / "t", "--val-out", tmp_path / "v"
    )
    assert (code, "the same file is named twice" in err) == (2, True)


CONCEPTS = st.lists(st.integers(0, 12).map(lambda i: record(i)["concept"]), min_size=2, max_size=30)


@settings(max_examples=100)
@given(CONCEPTS, st.floats(0.05, 0.95), st.integers(0, 99), st.randoms())
def test_split_properties(concepts: list[str], share: float, seed: int, order: Any) -> None:
    if len(set(concepts)) < 2:
        return
    split = split_indices(concepts, share, seed)
    assert sorted(split.train + split.val) == list(range(len(concepts)))
    assert split.train
    assert split.val
    assert not {concepts[i] for i in split.train} & {concepts[i] for i in split.val}
    assert split == split_indices(concepts, share, seed)
    shuffled = concepts[:]
    order.shuffle(shuffled)
    again = split_indices(shuffled, share, seed)
    if len(set(concepts)) == len(concepts):
        assert {concepts[i] for i in split.val} == {shuffled[i] for i in again.val}
        assert len(split.val) == min(max(1, round(share * len(concepts))), len(concepts) - 1)


def test_what_cannot_be_mended_is_dropped_by_name(tmp_path: Path) -> None:
    generic = get_role("generic")
    user, assistant = {"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}
    path = write(
        tmp_path / "d.jsonl",
        {"messages": [user, assistant]},
        {"messages": [user, user, assistant]},
        {"messages": [user, assistant, user]},
        "{broken",
        {"messages": [assistant, user, assistant]},
    )
    kept = fix.fix_file(path, generic)
    assert [fault.line for fault in kept.left] == [4, 2, 3] or [fault.line for fault in kept.left] == [2, 3, 4]
    assert len(kept.content.splitlines()) == 4, "the last line is the first again, once mended"
    dropped = fix.fix_file(path, generic, drop=True)
    assert [fault.line for fault in dropped.dropped] == [2, 3, 4]
    assert dropped.left == []
    assert [json.loads(line) for line in dropped.content.splitlines()] == [{"messages": [user, assistant]}]
    assert audit([write(tmp_path / "e.jsonl", dropped.content.rstrip())], generic).ok
    nothing = write(tmp_path / "n.jsonl", {"messages": [user]}, "[")
    with pytest.raises(RescoldoError, match="no line is left: all 2") as caught:
        fix.fix_file(nothing, generic, drop=True)
    assert f"data audit {nothing} --role generic names them" in caught.value.fix


def test_split_goes_by_what_the_role_calls_the_same(tmp_path: Path) -> None:
    generic = get_role("generic")
    question = {"role": "user", "content": "Where is the Prado?"}
    systems = [
        {
            "messages": [
                {"role": "system", "content": f"Answer in {language}."},
                question,
                {"role": "assistant", "content": "x"},
            ]
        }
        for language in ("French", "German", "Spanish", "Italian")
    ]
    sums = [{"prompt": f"3{sign}2", "completion": "x"} for sign in "+-*/"]
    long = [{"prompt": f"What is the sum of the numbers {i} and {i + 1}?", "completion": "x"} for i in range(8)]
    for name, lines in (("systems", systems), ("sums", sums), ("long", long)):
        path = write(tmp_path / f"{name}.jsonl", *lines)
        done = split_files([path], 0.25, 1, tmp_path / f"{name}_t.jsonl", tmp_path / f"{name}_v.jsonl", generic)
        assert len(done.val) == len(lines) // 4
        assert done.grouped == 0
    assert audit([tmp_path / "sums.jsonl"], generic).faults == [], "3+2 and 3-2 are not near each other"
    twice = write(tmp_path / "same.jsonl", *systems[:1] * 3)
    with pytest.raises(RescoldoError, match="1 different"):
        split_files([twice], 0.25, 1, tmp_path / "st.jsonl", tmp_path / "sv.jsonl", generic)

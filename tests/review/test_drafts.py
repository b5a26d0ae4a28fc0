"""`rescoldo data review`: what is accepted, edited and rejected, on the disk at once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rescoldo.cli.main import app, run_app
from rescoldo.data import read_records
from rescoldo.draft.decisions import ACCEPT, REJECT, NotSoundError, Reviewing, decisions_path
from rescoldo.errors import RescoldoError
from rescoldo.review.draft_page import DraftSite
from rescoldo.review.draft_terminal import review_in_terminal
from rescoldo.review.draft_words import ENGLISH, SPANISH
from tests.data.examples import record, write
from tests.draft.fake import BA, GENERIC, asked, drafted
from tests.review.test_server import EVIL, Client, client_of


@pytest.fixture
def generic(tmp_path: Path) -> Reviewing:
    made = drafted(asked(tmp_path, "one?", "two?", EVIL, "four?"), answer=lambda text: f"about {text}\nyes")
    path = write(tmp_path / "drafts.jsonl", *made.records)
    return Reviewing(path, GENERIC, tmp_path / "out.jsonl", "ana")


def out(reviewing: Reviewing) -> list[Any]:
    return [json.loads(line) for line in reviewing.output.read_text(encoding="utf-8").splitlines()]


def test_decisions_make_the_dataset(generic: Reviewing) -> None:
    generic.decide(0, ACCEPT, "one?", "about one?\r\nyes")
    generic.decide(1, REJECT)
    generic.decide(2, ACCEPT, "a better question?", "a better answer")
    assert (generic.done, generic.next_open(), generic.next_open(1)) == (3, 3, 3)
    first, third = out(generic)
    assert (first["completion"], first["provenance"]["edited"]) == ("about one?\nyes", False)
    assert (third["prompt"], third["completion"], third["provenance"]["edited"]) == (
        "a better question?", "a better answer", True)  # fmt: skip
    origin = first["provenance"]
    assert (origin["reviewer"], origin["source"], origin["place"]) == ("ana", "inputs.txt", "line 1")
    assert len(origin["prompt_sha256"]) == 64
    assert not {"checks", "doubts", "extract"} & set(origin)
    assert first["status"] == "accepted"
    assert len(read_records(generic.output, GENERIC)) == 2, "train reads it"
    again = Reviewing(generic.path, GENERIC, generic.output, "ana")
    assert (again.done, again.count(ACCEPT), again.shown(2)) == (3, 2, ("a better question?", "a better answer"))
    assert again.undo() == 2
    assert len(out(again)) == 1
    assert again.undo() == 1
    again.decide(1, ACCEPT, *again.shown(1))
    assert [one["prompt"] for one in out(again)] == ["one?", "two?"]


def test_a_line_cut_off_by_a_crash(generic: Reviewing) -> None:
    generic.decide(0, REJECT)
    with open(decisions_path(generic.path), "ab") as file:
        file.write(b'{"draft": "half')
    again = Reviewing(generic.path, GENERIC, generic.output, "ana")
    again.decide(1, REJECT)
    assert Reviewing(generic.path, GENERIC, generic.output, "ana").done == 2


def test_only_sound_records_are_accepted(tmp_path: Path) -> None:
    say = {record(1)["concept"]: "no: [yaml", record(2)["concept"]: BA.target(record(2))}
    made = drafted(asked(tmp_path, *say, role=BA), BA, lambda text: next(say[one] for one in say if one in text))
    path = write(tmp_path / "drafts.jsonl", *made.records)
    reviewing = Reviewing(path, BA, tmp_path / "out.jsonl", "ana")
    with pytest.raises(NotSoundError, match="YAML"):
        reviewing.decide(0, ACCEPT, *reviewing.shown(0))
    with pytest.raises(NotSoundError, match="title"):
        reviewing.decide(0, ACCEPT, record(1)["concept"], "description: x")
    with pytest.raises(NotSoundError, match="concept"):
        reviewing.decide(1, ACCEPT, " ", reviewing.shown(1)[1])
    assert (reviewing.done, reviewing.output.exists()) == (0, False)
    reviewing.decide(0, ACCEPT, record(1)["concept"], BA.target(record(1)))
    reviewing.decide(1, ACCEPT, *reviewing.shown(1))
    rows = out(reviewing)
    assert [{k: row[k] for k in ("concept", "requirements")} for row in rows] == [record(1), record(2)]
    assert [row["provenance"]["edited"] for row in rows] == [True, False]


def test_a_role_that_has_become_stricter(generic: Reviewing, tmp_path: Path) -> None:
    generic.decide(0, ACCEPT, *generic.shown(0))
    strict = Reviewing(generic.path, GENERIC, generic.output, "ana")
    changed = {**generic.drafts[0].record, "unheard_of": 1}
    strict.drafts = [replace(strict.drafts[0], record=changed), *strict.drafts[1:]]
    with pytest.raises(RescoldoError, match="the role now refuses it"):
        strict.decide(1, REJECT)


def test_what_is_refused(generic: Reviewing, tmp_path: Path) -> None:
    other = write(tmp_path / "other.jsonl", {"prompt": "p", "completion": "c"})
    for path, output, reviewer, what in (
        (generic.path, other, "ana", "does not come from drafts.jsonl"),
        (generic.path, tmp_path / "n", "a\nb", "invalid reviewer name"),
        (write(tmp_path / "e.jsonl", {"x": 1}), tmp_path / "n", "ana", "is in no known format"),
        (write(tmp_path / "f.jsonl"), tmp_path / "n", "ana", "holds no drafts"),
    ):
        with pytest.raises(RescoldoError) as caught:
            Reviewing(path, GENERIC, output, reviewer)
        assert what in caught.value.what


@pytest.fixture
def client(generic: Reviewing) -> Iterator[Client]:
    with client_of(DraftSite(generic)) as client:
        yield client


def test_the_server(client: Client, generic: Reviewing) -> None:
    html = client.page("?n=2")
    assert "<img" not in html
    assert html.count("<script") == 1
    assert " style=" not in html
    good = {"number": 0, "decision": "accept", "input": "one?", "answer": "x"}
    assert client.post("decide", good, Origin="http://evil.example")[0] == 403
    for change in ({"number": 99}, {"number": "0"}, {"decision": "maybe"}, {"input": None}, {"answer": 3}):
        assert client.post("decide", {**good, **change})[0] == 400, change
    status, said = client.post("decide", {**good, "answer": " "})
    assert (status, "empty" in said["error"]) == (422, True)
    assert generic.done == 0
    assert client.post("decide", good) == (200, {"go": {"n": 1}})
    assert out(generic)[0]["completion"] == "x"
    assert client.post("undo", {}) == (200, {"go": {"n": 0, "notice": "undone"}})
    assert client.post("undo", {}) == (200, {"go": {"notice": "nothing"}})
    for number in range(4):
        status, found = client.post("decide", {**good, "number": number, "decision": "reject"})
    assert found == {"go": {"n": "done"}}
    assert "0 accepted, 4 rejected" in client.page()
    assert client.post("finish", {})[0] == 200
    assert 'id="finished"' in client.page("?finished=1")


def test_the_terminal(generic: Reviewing, capsys: pytest.CaptureFixture[str]) -> None:
    lines = iter("a\nx\ne\ne\nr\nu\nq\n".splitlines())
    edits = iter([None, "changed\n----- 8< -----\nanswer"])
    review_in_terminal(DraftSite(generic), ask=lambda prompt: next(lines), edit=lambda text: next(edits))
    said = capsys.readouterr().out
    assert "Nothing was changed" in said
    assert "Please type a" in said
    assert [(one["prompt"], one["completion"]) for one in out(generic)] == [
        ("one?", "about one?\nyes"),
        ("changed", "answer"),
    ]
    assert set(ENGLISH) == set(SPANISH)


def test_the_command(generic: Reviewing, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = iter(["a", "r", "q"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))

    def run(*words: Any) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["rescoldo", "data", "review", *map(str, words)])
        return run_app(app), *capsys.readouterr()

    code, said, _ = run(generic.path, "--terminal", "--reviewer", "ana", "--lang", "es")
    assert code == 0
    assert "1 accepted, 1 rejected, 2 open" in said
    written = generic.path.with_name("drafts_accepted.jsonl")
    assert len(written.read_text().splitlines()) == 1
    assert f"Written: {written}" in said
    code, _, err = run(generic.path, "--output", generic.path)
    assert (code, "would be overwritten" in err) == (2, True)

"""Votes on the disk and what becomes of them."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from rescoldo.errors import RescoldoError
from rescoldo.preference.ballots import ballots, default_pairs
from rescoldo.preference.export import preference_pairs, write_pairs
from rescoldo.preference.people import people, take_votes_in
from rescoldo.preference.votes import VoteFile, own_votes, read_vote, votes_path
from rescoldo.review.session import Session
from rescoldo.role import get_role
from tests.preference.documents import comparison

PAIR = ("finetuned", "baseline")


def session(document: dict[str, Any], path: Path, reviewer: str = "ana", seed: int = 1) -> Session:
    return Session(ballots(document, [PAIR]).items, VoteFile(path), reviewer, seed)


def prefer(one: Session, name: str, numbers: range | None = None, **more: Any) -> None:
    """Vote for a model, wherever it is shown."""
    for number in numbers or range(len(one)):
        left, _ = one.ballots[number].order(one.seed, one.reviewer)
        one.cast(number, 1 if left == name else 2, **more)


def test_people(tmp_path: Path) -> None:
    document, path = comparison(6), tmp_path / "v.jsonl"
    prefer(session(document, path, "ana"), "finetuned")
    prefer(session(document, path, "bea", seed=9), "finetuned", range(3))
    other = session(document, path, "eva")
    other.cast(0, 0, "the same to me")
    found = people(document, VoteFile(path).votes.values())
    assert found is not None
    assert (found["reviewers"], found["votes"], found["not_counted"]) == (3, 10, 0)
    (pair,) = found["pairs"]
    assert (pair["a"], pair["b"], pair["wins"], pair["losses"], pair["ties"]) == ("finetuned", "baseline", 6, 0, 0)
    assert pair["settled"]
    assert found["agreement"]["items"] >= 3


def test_sides_and_order_are_drawn_by_seed_and_reviewer() -> None:
    items = ballots(comparison(60), [PAIR]).items
    left = [ballot.order(1, "ana")[0] for ballot in items]
    assert 15 < left.count("finetuned") < 45
    assert left == [ballot.order(1, "ana")[0] for ballot in items]
    assert left != [ballot.order(2, "ana")[0] for ballot in items]
    assert left != [ballot.order(1, "bea")[0] for ballot in items]
    turned = ballots(comparison(60), [PAIR[::-1]]).items
    assert left == [ballot.order(1, "ana")[0] for ballot in turned], "which one is named first decides nothing"


def test_votes_on_answers_that_changed_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl"
    prefer(session(comparison(4), path), "finetuned")
    changed = comparison(4, finetuned=lambda example: "new" if example == 2 else f"f says {example}")
    found = people(changed, VoteFile(path).votes.values())
    assert found is not None
    assert (found["votes"], found["not_counted"]) == (3, 1)
    assert session(changed, path).done == 3, "and the reviewer is asked again"
    renamed = comparison(4)
    renamed["models"] = {"x": renamed["models"]["baseline"], "y": renamed["models"]["finetuned"]}
    assert people(renamed, VoteFile(path).votes.values()) is None


def test_a_pair_is_one_whichever_way_it_is_named(tmp_path: Path) -> None:
    document, path = comparison(3), tmp_path / "v.jsonl"
    prefer(session(document, path), "finetuned")
    turned = Session(ballots(document, [PAIR[::-1]]).items, VoteFile(path), "ana", 1)
    assert turned.done == 3
    prefer(turned, "baseline", range(1))
    found = people(document, VoteFile(path).votes.values())
    assert found is not None
    assert [(pair["a"], pair["wins"], pair["losses"]) for pair in found["pairs"]] == [("finetuned", 2, 1)]


def test_last_wins_undo_and_idempotence(tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl"
    one = session(comparison(3), path)
    assert one.cast(1, 1) is None
    assert one.cast(1, 1) == 1
    assert len(path.read_text().splitlines()) == 1, "the same again writes nothing"
    assert one.cast(1, 1, "because") == 1
    assert one.cast(1, 2) == 1
    assert one.cast(0, 0) is None
    assert one.undo() == 0
    assert one.undo() == 1
    assert one.undo() is None
    assert (one.done, one.next_open()) == (0, 0)
    for number, vote, note in ((3, 1, ""), (-1, 1, ""), (0, 3, ""), (0, 1, "n" * 5000)):
        with pytest.raises((IndexError, ValueError)):
            one.cast(number, vote, note)


def test_a_file_that_a_crash_has_cut_off(tmp_path: Path) -> None:
    document, path = comparison(3), tmp_path / "v.jsonl"
    prefer(session(document, path), "finetuned", range(2))
    whole = path.read_bytes()
    for cut in range(1, len(whole)):
        path.write_bytes(whole[:cut])
        again = session(document, path)
        assert again.done == whole[:cut].count(b"\n"), "a vote counts once its line is whole"
    path.write_bytes(whole[:-20])
    again = session(document, path)
    prefer(again, "finetuned")
    fresh = VoteFile(path)
    assert (session(document, path).done, fresh.damaged) == (3, 1)


def test_what_is_no_vote_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl"
    prefer(session(comparison(1), path), "finetuned")
    good = json.loads(path.read_text())
    assert read_vote(json.dumps(good).encode()) is not None
    bad: list[Any] = [
        *({**good, name: value} for name, value in (("vote", 3), ("vote", True), ("vote", "1"), ("order", ["a", "b"]),
          ("pair", ["finetuned", "finetuned"]), ("answers", []), ("answers", {}), ("example", "1"), ("reviewer", None),
          ("time", 3), ("note", {}))),
        *({key: value for key, value in good.items() if key != name} for name in ("pair", "vote", "time", "answers")),
        [], 7, None,
    ]  # fmt: skip
    for value in bad:
        assert read_vote(json.dumps(value).encode()) is None, value
    assert read_vote(b"[" * 100_000) is None


@pytest.mark.parametrize("change", [
    {"reviewer": ""}, {"reviewer": "x" * 81}, {"reviewer": "\x1b[31mred"}, {"reviewer": "a\u202eb"},
    {"reviewer": "\ud800"},
    {"note": "n" * 4001}, {"time": "9999"}, {"time": "2026-01-01T00:00:00"}, {"time": "tomorrow"},
])  # fmt: skip
def test_votes_that_nobody_can_have_given_here_do_not_count(change: dict[str, str], tmp_path: Path) -> None:
    """A name that commands a terminal, a time that is later than all others."""
    path = tmp_path / "v.jsonl"
    prefer(session(comparison(), path), "finetuned", range(1))
    (line,) = path.read_text().splitlines()
    assert read_vote(line.encode()) is not None
    assert read_vote(json.dumps({**json.loads(line), **change}).encode()) is None


def test_a_link_in_the_place_of_votes_is_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious.txt"
    precious.write_text("mine\n")
    votes_path(tmp_path / "c.json").symlink_to(precious)
    with pytest.raises(RescoldoError, match="symbolic link"):
        own_votes(tmp_path / "c.json")
    with pytest.raises(RescoldoError, match="symbolic link"):
        session(comparison(), votes_path(tmp_path / "c.json")).cast(0, 1)
    assert precious.read_text() == "mine\n"


def test_several_write_at_once(tmp_path: Path) -> None:
    """Threads with files of their own, as processes would have: no line is torn, none is lost."""
    document, path = comparison(30), tmp_path / "v.jsonl"
    sessions = [session(document, path, f"r{i}") for i in range(6)]
    threads = [threading.Thread(target=prefer, args=(one, "finetuned")) for one in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = VoteFile(path)
    assert (len(found.votes), found.damaged) == (180, 0)
    assert all(one.next_open() is None for one in sessions)


def test_merge(tmp_path: Path) -> None:
    document, mine, theirs = comparison(4), tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    prefer(session(document, mine, "ana"), "finetuned")
    prefer(session(document, theirs, "bea"), "baseline")
    prefer(session(document, theirs, "ana"), "baseline", range(1))
    file = VoteFile(mine)
    assert file.merge(VoteFile(theirs).votes.values()) == 5, "a later vote of the same reviewer takes the place of one"
    assert file.merge(VoteFile(theirs).votes.values()) == 0
    found = people(document, VoteFile(mine).votes.values())
    assert found is not None
    assert (found["reviewers"], found["votes"]) == (2, 8)
    assert found["agreement"]["alpha"] < 0.1


def test_a_vote_that_cannot_be_written_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = session(comparison(2), tmp_path / "v.jsonl")
    one.cast(0, 1)
    before = (tmp_path / "v.jsonl").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(RescoldoError, match="cannot be written: No space left"):
            one.cast(1, 1)
    assert ((tmp_path / "v.jsonl").read_bytes(), one.done) == (before, 1)
    one.cast(1, 1)
    assert one.done == 2


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "v.jsonl").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "w.jsonl")
    for name in ("v.jsonl", "w.jsonl"):
        with pytest.raises(RescoldoError, match="not a regular file"):
            VoteFile(tmp_path / name)


def test_identical_and_failed_answers_are_not_put_to_the_vote() -> None:
    document = comparison(4, finetuned=lambda e: f"b says {e}" if e == 1 else f"f {e}")
    document["models"]["baseline"]["predictions"][2]["error"] = "HTTP 500"
    found = ballots(document, [PAIR])
    assert ([b.example for b in found.items], found.identical[PAIR], found.failed[PAIR]) == ([0, 3], 1, 1)


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d["models"].pop("baseline"),
        lambda d: d["models"]["baseline"]["predictions"].append(7),
        lambda d: d["models"]["baseline"]["predictions"][0].pop("text"),
        lambda d: d["models"]["baseline"]["predictions"][0].update(concept=["x"]),
        lambda d: d["models"]["baseline"]["predictions"][0].update(concept="another"),
        lambda d: d.pop("models"),
    ],
)
def test_documents_that_are_none_are_refused(damage: Any) -> None:
    document = comparison(2)
    damage(document)
    with pytest.raises(RescoldoError):
        ballots(document, [PAIR], "c.json")


def test_which_pair() -> None:
    document = comparison()
    assert default_pairs(document) == [PAIR]
    document["comparison"]["decision"] = {"winner": "baseline"}
    assert default_pairs(document) == [PAIR], "what would be adopted is looked at, also where it has lost"
    document["comparison"]["decision"] = None
    assert default_pairs(document) == [PAIR]
    document["comparison"]["decision"] = {
        "finetuned": "finetuned",
        "winner": "baseline",
        "content": {"rivals": ["x", "y"]},
    }
    assert default_pairs(document) == [("finetuned", "x"), ("finetuned", "y")], "those that the verdict needs"
    for broken in ({}, {"models": {}}, {"comparison": {"ranking": [{"model": "x"}]}}, {"comparison": []}):
        with pytest.raises(RescoldoError, match="no comparison"):
            default_pairs(broken)


def test_votes_come_into_the_document(tmp_path: Path) -> None:
    document, path = comparison(3), tmp_path / "c.json"
    take_votes_in(document, path)
    assert "people" not in document
    prefer(session(document, votes_path(path)), "finetuned")
    take_votes_in(document, path)
    assert document["people"]["votes"] == 3
    votes_path(path).unlink()
    take_votes_in(document, path)
    assert "people" not in document, "what is said of people is what lies on the disk"


def test_preference_pairs(tmp_path: Path) -> None:
    document, path, role = comparison(4), tmp_path / "v.jsonl", get_role("ba")
    one = session(document, path)
    prefer(one, "finetuned", range(2))
    one.cast(2, 0)
    prefer(one, "baseline", range(3, 4))
    pairs = preference_pairs(document, VoteFile(path).votes.values(), role)
    assert len(pairs) == 3
    chosen = {pair["chosen"][0]["content"][0] for pair in pairs}
    assert chosen == {"f", "b"}
    for pair in pairs:
        example = int(pair["chosen"][0]["content"].split()[-1])
        assert pair["rejected"][0]["content"].split()[-1] == str(example)
        concept = document["models"]["baseline"]["predictions"][example]["concept"]
        assert pair["prompt"] == role.messages({"concept": concept})
    write_pairs(pairs, tmp_path / "out.jsonl")
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == pairs


def test_what_judges_prefer_is_data_where_nobody_has_voted(tmp_path: Path) -> None:
    document, path, role = comparison(4), tmp_path / "v.jsonl", get_role("ba")
    prefer(session(document, path), "finetuned")
    votes = list(VoteFile(path).votes.values())
    judged = {vote.example: vote for vote in votes if vote.example < 2}
    pair = {"a": "baseline", "b": "finetuned", "outcomes": [[e, 0, 1.0] for e in range(3)] + [[3, 0, 0.5], [9, 0, 1.0]]}
    document["judges"] = [
        {"exam": {"passed": True}, "pairs": [pair]},
        {"exam": {"passed": False}, "pairs": [{**pair, "outcomes": [[2, 0, 0.0], [3, 0, 0.0]]}]},
    ]
    assert len(preference_pairs(document, judged.values(), role)) == 2
    found = preference_pairs(document, judged.values(), role, judged=True)
    assert sorted(one["chosen"][0]["content"] for one in found) == ["b says 2", "f says 0", "f says 1"]
    document["judges"][0]["pairs"][0]["outcomes"] = 7
    with pytest.raises(RescoldoError, match="judges"):
        preference_pairs(document, [], role, judged=True)

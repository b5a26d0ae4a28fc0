"""`rescoldo review` without a page: in the terminal, summaries, merging, preference pairs, and what it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rescoldo.cli.main import app, run_app
from rescoldo.files import write_json
from rescoldo.preference.votes import VoteFile, votes_path
from rescoldo.review.session import Session
from rescoldo.review.terminal import vote_in_terminal
from rescoldo.review.wording import SPANISH
from tests.preference.documents import comparison, whole_comparison


@pytest.fixture
def file(tmp_path: Path) -> Path:
    texts = {"baseline": lambda i: f"\x1b[2Jb {i}", "finetuned": lambda i: f"title: f {i}"}
    write_json(tmp_path / "c.json", whole_comparison(3, **texts))
    return tmp_path / "c.json"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*words: Any, typed: str = "") -> tuple[int, str, str]:
        lines = iter(typed.splitlines())

        def ask(prompt: str) -> str:
            print(prompt)
            try:
                return next(lines)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr("builtins.input", ask)
        monkeypatch.setattr("sys.argv", ["rescoldo", "review", *map(str, words)])
        code = run_app(app)
        out, err = capsys.readouterr()
        return code, out, err

    return run


def votes(file: Path) -> list[Any]:
    return [vote.vote for vote in VoteFile(votes_path(file)).votes.values()]


def test_in_the_terminal(file: Path, command: Any) -> None:
    code, out, _ = command(file, "--terminal", "--reviewer", "ana", typed="1\nx\nn\nfine\n2\nu\nb\n")
    assert code == 0
    assert votes(file) == [1, None]
    assert "Please type 1, 2, 0" in out
    assert "\x1b[2J" not in out, "an answer does not command the terminal"
    assert "1 vote by 1 reviewer" in out
    blind = out.partition("vote by")[0]
    assert "finetuned" not in blind
    assert "baseline" not in blind
    code, out, _ = command(file, "--terminal", "--reviewer", "ana", "--lang", "es", typed="0\n0\n")
    assert code == 0
    assert votes(file) == [1, 0, 0]
    assert SPANISH["all_done"].format(total=3) in out
    assert "3 votos de 1 persona\nfinetuned frente a baseline: preferido en " in out
    assert "sin aclarar" in out
    assert not {"votes", "preferred", "settled", "against"} & set(out.partition("votos de")[2].split())
    document = json.loads(file.read_text())
    assert document["people"]["votes"] == 3


def test_a_vote_in_another_window_is_told(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rescoldo.preference.ballots import ballots

    items = ballots(json.loads(file.read_text()), [("finetuned", "baseline")]).items
    here, there = (Session(items, VoteFile(votes_path(file)), "ana", 42) for _ in range(2))

    def typed() -> Iterator[str]:
        there.cast(0, 1)
        yield "2"
        yield "q"

    lines = typed()
    vote_in_terminal(here, ask=lambda prompt: next(lines))
    assert "another window" in capsys.readouterr().out
    assert votes(file) == [2]


def test_merge_summary_and_pairs(file: Path, command: Any, tmp_path: Path) -> None:
    assert command(file, "--terminal", "--reviewer", "ana", typed="1\n1\n1\n")[0] == 0
    mine = votes_path(file).read_bytes()
    other = tmp_path / "bea.jsonl"
    votes_path(file).unlink()
    assert command(file, "--terminal", "--reviewer", "bea", typed="1\n2\n0\n")[0] == 0
    votes_path(file).rename(other)
    votes_path(file).write_bytes(mine)
    code, out, _ = command(file, "--merge", other)
    assert code == 0
    assert "3 votes, 3 of them new here" in out
    assert "6 votes by 2 reviewers" in out
    assert "Krippendorff's alpha" in out
    code, out, _ = command(file, "--summary", "--json")
    assert json.loads(out)["votes"] == 6
    code, out, _ = command(file, "--export-pairs", tmp_path / "pairs.jsonl", "--json")
    assert json.loads(out)["pairs"] == len((tmp_path / "pairs.jsonl").read_text().splitlines()) > 0


def test_what_is_refused(file: Path, command: Any, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    write_json(other, {"models": {"a": {}}})
    same = tmp_path / "same.json"
    write_json(same, comparison(2, finetuned=lambda e: "x", baseline=lambda e: "x"))
    for words, message in (
        ([tmp_path / "none.json"], "cannot be read"),
        ([other], "not a comparison of two models"),
        ([same, "--terminal"], "nothing to choose"),
        ([file, "--pair", "finetuned"], "is not A:B"),
        ([file, "--pair", "finetuned:finetuned"], "is not A:B"),
        ([file, "--pair", "finetuned:x"], "there is no model 'x'"),
        ([file, "--lang", "xx"], "no language"),
        ([file, "--port", "70000"], "--port 70000 is not allowed"),
        ([file, "--reviewer", "a\nb", "--terminal"], "invalid reviewer name"),
        ([file, "--merge", tmp_path / "none.jsonl"], "there is no such file"),
        ([file, "--merge", file], "holds no votes"),
        ([file, "--export-pairs", file], "would be overwritten"),
        ([file, "--terminal", "--json"], "leave one of them out"),
    ):
        code, _, err = command(*words)
        assert code == 2, words
        assert message in err
        assert "Traceback" not in err
    assert not votes_path(file).exists()


def test_reports_that_cannot_be_made_lose_no_vote(command: Any, tmp_path: Path) -> None:
    poor = tmp_path / "c.json"
    write_json(poor, comparison(2))
    code, _, err = command(poor, "--terminal", "--reviewer", "ana", typed="1\n")
    assert code == 2
    assert "the votes are kept" in err
    assert votes(poor) == [1]


def test_the_result_has_the_same_texts_in_each_language() -> None:
    from rescoldo.review.wording import LANGUAGES, SUMMARY

    assert SUMMARY.keys() == LANGUAGES.keys()
    for texts in SUMMARY.values():
        assert texts.keys() == SUMMARY["en"].keys()
        for name, text in texts.items():
            assert sorted(re.findall(r"{\w+}", text)) == sorted(re.findall(r"{\w+}", SUMMARY["en"][name])), name
            assert text.count("|") == SUMMARY["en"][name].count("|")

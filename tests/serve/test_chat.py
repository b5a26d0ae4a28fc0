"""`rescoldo chat`: what is typed, what is answered."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from rescoldo.cli.main import app, run_app
from rescoldo.data.tokenize import prompt_ids, stop_ids
from rescoldo.engine.generate import generate
from rescoldo.engine.types import Sampling
from rescoldo.models.loaded import Loaded, load_for_inference
from rescoldo.role import get_role
from rescoldo.serve.talk import reply
from rescoldo.words import printable
from tests.serve.common import tiny_run

ROLE = get_role("ba")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="module")
def loaded(run: Path) -> Loaded:
    return load_for_inference(str(run))


def expected(loaded: Loaded, messages: list[dict[str, str]], n: int = 6) -> str:
    prompt = prompt_ids(messages, loaded.tokenizer)
    (row,) = generate(loaded.model, [prompt], Sampling(max_new_tokens=n), stop_ids(loaded.tokenizer))
    return str(loaded.tokenizer.decode(row.tokens, skip_special_tokens=True))


def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: Any, typed: str = ""
) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["rescoldo", "chat", *map(str, args)])
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    code = run_app(app)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_one_concept_of_both_models(
    run: Path, loaded: Loaded, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (run, "--concept", "A tool library", "--max-new-tokens", 6)
    messages = ROLE.messages({"concept": "A tool library"})
    tuned = expected(loaded, messages)
    with loaded.model.without_adapter():
        base = expected(loaded, messages)
    assert tuned != base
    shown = [printable(text) for text in (base, tuned)]
    code, out, _ = command(monkeypatch, capsys, *arguments)
    assert code == 0
    assert shown[1] in out
    code, out, _ = command(monkeypatch, capsys, *arguments, "--compare")
    assert code == 0
    assert out.index("--- base ---") < out.index(shown[0]) < out.index("--- finetuned ---") < out.index(shown[1])
    code, out, _ = command(monkeypatch, capsys, *arguments, "--compare", "--json")
    document = json.loads(out)
    assert {name: one["text"] for name, one in document["answers"].items()} == {"base": base, "finetuned": tuned}
    assert document["answers"]["base"]["tokens"] == 6
    code, out, _ = command(monkeypatch, capsys, *arguments, "--base", "--json")
    assert list(json.loads(out)["answers"]) == ["base"]


def test_a_conversation_remembers_until_it_is_reset(
    run: Path, loaded: Loaded, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = "hi\n\nand then?\n/reset\nhi\n/concept A tool library\n/nonsense\n/exit\nnot read\n"
    code, out, _ = command(monkeypatch, capsys, run, "--max-new-tokens", 6, "--system", "Be terse.", typed=typed)
    assert code == 0
    begin = [{"role": "system", "content": "Be terse."}, {"role": "user", "content": "hi"}]
    first = expected(loaded, begin)
    second = expected(
        loaded, [*begin, {"role": "assistant", "content": first}, {"role": "user", "content": "and then?"}]
    )
    third = expected(loaded, [begin[0], *ROLE.messages({"concept": "A tool library"})])
    first, second, third = map(printable, (first, second, third))
    places = [out.find(first), out.find(second), out.rfind(first), out.find(third), out.find("/reset starts")]
    assert all(place >= 0 for place in places)
    assert places == sorted(places)
    assert out.count(" tokens/s") == 4


def test_a_terminal_obeys_nothing_that_a_model_says() -> None:
    assert printable("a\r\nb\u202ec\u2066d\u200fe") == "a\nb\ufffdc\ufffdd\u200fe", "no text runs backwards"
    assert printable("a\x1b[2Jb\r\x9b1m\tñ 漢\u3000👩‍👧\n\x07") == "a\ufffd[2Jb\ufffd\ufffd1m\tñ 漢\u3000👩‍👧\n\ufffd"


def test_an_error_does_not_end_the_conversation(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = "long " * 2000 + "\nhi\n"
    code, out, _ = command(monkeypatch, capsys, run, "--max-new-tokens", 3, typed=typed)
    assert code == 0
    assert "error: the conversation has" in out
    assert "3 tokens" in out


def test_a_plain_encoding_is_no_reason_to_fail(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr("sys.argv", ["rescoldo", "chat", str(run), "--max-new-tokens", "40"])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe caf\xe9\nhi\n"), "utf-8"))
    monkeypatch.setattr(sys, "stdout", screen)
    assert run_app(app) == 0
    screen.flush()
    said = screen.buffer.getvalue()  # type: ignore[attr-defined]
    assert said.count(b" tokens/s") == 2
    assert b"?" in said


def test_a_concept_that_is_no_text(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = command(monkeypatch, capsys, run, "--concept", "a\udcff")
    assert (code, "error: the question contains bytes that are not characters" in err) == (2, True)


def test_a_model_that_cannot_be_looked_at(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = command(monkeypatch, capsys, "x" * 5000, "--concept", "x")
    assert (code, "cannot open the base model: File name too long" in err) == (2, True)


def test_ctrl_c_ends_an_answer_and_gives_the_model_back(loaded: Loaded) -> None:
    def stop(piece: str) -> None:
        raise KeyboardInterrupt

    messages = [{"role": "user", "content": "hi"}]
    cut = reply(loaded, messages, Sampling(max_new_tokens=50), adapter=False, on_piece=stop)
    assert not cut.ended
    assert 0 < cut.tokens < 50
    assert reply(loaded, messages, Sampling(max_new_tokens=6)).text == expected(loaded, messages), "the adapter is back"


def test_side_by_side_on_a_terminal(loaded: Loaded) -> None:
    from rich.console import Console

    from rescoldo.cli.chat import _answer

    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    models = {"base": False, "finetuned": True}
    replies = _answer(console, loaded, None, models, [{"role": "user", "content": "hi"}], Sampling(max_new_tokens=5))
    assert list(replies) == ["base", "finetuned"]
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "finetuned" in shown
    assert shown.count("5 tokens") >= 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--json"], "--json: needs a single question"),
        (["--concept", " "], "--concept: is empty"),
        (["--top-p", "0"], "--top-p 0 is not allowed: use a number above 0"),
        (["--compare", "--base"], "shows the base model already"),
    ],
)
def test_bad_flags(
    run: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = command(monkeypatch, capsys, run, *arguments)
    assert code == 2
    assert message in json.loads(out)["error"] if "--json" in arguments else out == ""
    assert message in err
    code, _, err = command(monkeypatch, capsys, run.parent / "base", "--compare")
    assert code == 2
    assert "is a base model already" in err

"""Many threads at one desk: batches, cache, failures, and closing time."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rescoldo.engine.types import Sampling
from rescoldo.errors import RescoldoError
from rescoldo.models.cache import PredictionCache
from rescoldo.programs.lm import Desk, StoppedError
from tests.optimize.fake_chat import FakeChat

GREEDY = Sampling(max_new_tokens=5)


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def shout(messages: list[dict[str, str]]) -> str:
    return messages[-1]["content"].upper()


def ask_all(desk: Desk, texts: list[str], sampling: Sampling = GREEDY) -> list[str]:
    with ThreadPoolExecutor(len(texts)) as pool:
        return [found.text for found in pool.map(lambda text: desk.ask(user(text), sampling), texts)]


def test_what_is_asked_together_is_answered_in_one_batch() -> None:
    chat = FakeChat(shout)
    texts = [f"question {i}" for i in range(12)]
    with Desk(chat) as desk:
        assert ask_all(desk, texts) == [text.upper() for text in texts]
    assert [len(call) for call in chat.calls] == [12]
    assert (desk.asked, desk.known) == (12, 0)


def test_who_comes_later_is_in_the_next_batch() -> None:
    chat = FakeChat(shout, seconds=0.3)
    with Desk(chat) as desk:
        early = threading.Thread(target=desk.ask, args=(user("early"), GREEDY))
        early.start()
        time.sleep(0.15)
        assert ask_all(desk, ["late", "later"]) == ["LATE", "LATER"]
        early.join()
    assert [len(call) for call in chat.calls] == [1, 2]


def test_one_call_for_each_way_of_sampling() -> None:
    chat = FakeChat(shout)
    warm = Sampling(temperature=1.0, max_new_tokens=5)
    with Desk(chat) as desk, ThreadPoolExecutor(4) as pool:
        list(pool.map(desk.ask, map(user, "abcd"), [GREEDY, warm, GREEDY, warm]))
    assert sorted(len(call) for call in chat.calls) == [2, 2]
    assert set(chat.samplings) == {GREEDY, warm}


@pytest.mark.alone
def test_a_model_that_does_not_batch_gets_several_calls_at_a_time() -> None:
    chat = FakeChat(shout, batches=False, seconds=0.3)
    started = time.monotonic()
    with Desk(chat, workers=4) as desk:
        ask_all(desk, list("abcdefgh"))
    assert [len(call) for call in chat.calls] == [1] * 8
    assert time.monotonic() - started < 8 * 0.3


def test_nothing_is_asked_twice(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    chat = FakeChat(shout)
    for _ in range(2):
        with Desk(chat, cache=PredictionCache(path)) as desk:
            ask_all(desk, ["a", "b"])
    assert chat.asked == 2
    assert (desk.asked, desk.known) == (0, 2)


def test_the_same_question_at_the_same_time_is_one() -> None:
    chat = FakeChat(shout, seconds=0.2)
    with Desk(chat) as desk:
        assert ask_all(desk, ["a"] * 5 + ["b"]) == ["A"] * 5 + ["B"]
    assert chat.asked == 2


def test_a_failure_reaches_everyone_and_later_ones_at_once() -> None:
    gone = RescoldoError("the server is gone")
    chat = FakeChat(lambda messages: gone)
    with Desk(chat) as desk:
        for _ in range(2):
            with pytest.raises(RescoldoError, match="is gone"):
                ask_all(desk, ["a", "b", "c"])
    assert desk.failure is gone
    assert len(chat.calls) == 1


def test_a_bug_is_not_swallowed() -> None:
    chat = FakeChat(lambda messages: ZeroDivisionError("oh"))
    with Desk(chat) as desk, pytest.raises(ZeroDivisionError):
        desk.ask(user("a"), GREEDY)


def test_closing_time_sends_everyone_away() -> None:
    """Ctrl-C: whoever waits for a long answer is let go, and nothing holds up the program's end."""
    chat = FakeChat(shout, seconds=30)
    outcome: list[Any] = []

    def wait(desk: Desk) -> None:
        try:
            outcome.append(desk.ask(user("a"), GREEDY))
        except StoppedError as error:
            outcome.append(error)

    with Desk(chat) as desk:
        thread = threading.Thread(target=wait, args=(desk,))
        thread.start()
        time.sleep(0.2)
    thread.join(5)
    assert not thread.is_alive()
    assert isinstance(outcome[0], StoppedError)
    with pytest.raises(StoppedError):
        desk.ask(user("b"), GREEDY)

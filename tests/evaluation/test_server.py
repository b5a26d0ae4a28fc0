"""Models behind servers: what is asked, and everything that can go wrong."""

from __future__ import annotations

from typing import Any

import pytest

from rescoldo.engine.types import Sampling
from rescoldo.errors import RescoldoError
from rescoldo.models.address import ollama_host
from rescoldo.models.server import ServerChat, ServerOptions, open_server
from tests.evaluation.fake_server import fake_server, good
from tests.evaluation.llama_server import free_port

SAMPLING = Sampling(temperature=0.7, top_p=0.9, max_new_tokens=33, seed=5)
QUICK = ServerOptions(concurrency=2, timeout=5, retries=2)


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OLLAMA_HOST"):
        monkeypatch.delenv(name, raising=False)
    # whatever proxy is set, the loopback is reached without it
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")


def say(*texts: str) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": text}] for text in texts]


def answers(chat: ServerChat, *texts: str) -> list[Any]:
    return [prediction for _, prediction in sorted(chat.complete(say(*texts), SAMPLING))]


def test_what_is_asked_and_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    told: list[int] = []
    with fake_server(lambda body, n: (200, good(body["messages"][0]["content"].upper())), seconds=0.05) as server:
        chat = open_server(f"openai:m@{server.address}/v1/", QUICK)
        found = dict(chat.complete(say("a", "b", "c", "d", "e"), SAMPLING, told.append))
    assert [found[i].text for i in range(5)] == ["A", "B", "C", "D", "E"]
    assert all(p.ended and p.tokens == 7 and not p.error and p.seconds > 0 for p in found.values())
    assert (max(told), server.most) == (35, 2)
    sent = dict(server.requests[0])
    assert sent.pop("messages")[0]["role"] == "user"
    assert sent == {"model": "m", "temperature": 0.7, "top_p": 0.9, "max_tokens": 33, "seed": 5}
    assert set(server.keys) == {"Bearer secret"}
    assert "secret" not in str(chat.describe()) + chat.fingerprint()


def test_llama_cpp_is_told_to_leave_the_choice_as_it_is() -> None:
    models = {"/v1/models": (200, {"data": [{"id": "other", "owned_by": "llamacpp", "created": 1}]})}
    with fake_server(lambda body, n: (200, good("x")), models) as server:
        chat = open_server(f"openai:m@{server.address}/v1", QUICK)
        answers(chat, "a")
    assert (server.requests[0]["top_k"], server.requests[0]["min_p"]) == (0, 0.0)


def test_failures_of_one_request() -> None:
    def answer(body: dict[str, Any], times: int) -> tuple[int, Any]:
        text = body["messages"][0]["content"]
        if text == "busy":
            return (429, {"error": {"message": "slow down"}}) if times < 3 else (200, good("at last"))
        return {
            "broken": (500, {"error": {"message": "out of\norder"}}),
            "long": (400, {"error": {"message": "the context is full"}}),
            "odd": (200, {"choices": []}),
            "noise": (200, b"<html>"),
            "cut": (200, good("half", "length")),
        }.get(text, (200, good("fine")))

    with fake_server(answer) as server:
        chat = open_server(f"openai:m@{server.address}/v1", ServerOptions(8, 5, 2))
        busy, broken, long, odd, noise, cut, fine = answers(
            chat, "busy", "broken", "long", "odd", "noise", "cut", "fine"
        )
    assert (busy.text, busy.error) == ("at last", "")
    assert broken.error == "HTTP 500: out of order"
    assert server.times["broken"] == 3, "tried again twice"
    assert long.error == "HTTP 400: the context is full"
    assert server.times["long"] == 1, "asking again would not help"
    assert odd.error
    assert noise.error
    assert (cut.text, cut.ended, cut.error) == ("half", False, "")
    assert fine.text == "fine"


def test_no_answer_in_time() -> None:
    with fake_server(lambda body, n: (200, good("late")), seconds=1.0) as server:
        chat = open_server(f"openai:m@{server.address}/v1", ServerOptions(2, 0.2, 0))
        (found,) = answers(chat, "a")
    assert found.error == "no answer within 0.2 s"


def test_a_server_that_dribbles_is_late_too() -> None:
    with fake_server(lambda body, n: (200, good("x" * 200)), dribble=0.05) as server:
        chat = open_server(f"openai:m@{server.address}/v1", ServerOptions(2, 0.5, 3))
        (found,) = answers(chat, "a")
    assert found.error == "no answer within 0.5 s"
    assert server.times["a"] == 1, "the time is for all tries together"


@pytest.mark.parametrize("said", [None, "many", -5, 1.5])
def test_a_count_of_tokens_that_is_none(said: Any) -> None:
    with fake_server(lambda body, n: (200, {**good("fine"), "usage": {"completion_tokens": said}})) as server:
        (found,) = answers(open_server(f"openai:m@{server.address}/v1", QUICK), "a")
    assert (found.text, found.tokens, found.error) == ("fine", 0, "")


def test_an_answer_that_is_no_text_and_one_that_no_file_can_hold() -> None:
    said = {"parts": [{"type": "text", "text": "x"}], "half": "a \ud83d b"}
    with fake_server(lambda body, n: (200, good(said[body["messages"][0]["content"]]))) as server:  # type: ignore[arg-type]
        parts, half = answers(open_server(f"openai:m@{server.address}/v1", QUICK), "parts", "half")
    assert "the content is a list" in parts.error
    assert (half.text, half.error) == ("a ? b", "")


@pytest.mark.parametrize(("status", "message"), [(401, "set OPENAI_API_KEY"), (404, "no such model")])
def test_what_would_fail_for_every_request_ends_it(status: int, message: str) -> None:
    with fake_server(lambda body, n: (status, {"error": {"message": "no such model"}})) as server:
        chat = open_server(f"openai:m@{server.address}/v1", QUICK)
        with pytest.raises(RescoldoError, match=message):
            answers(chat, "a", "b", "c")


def test_a_server_that_went_away_ends_it() -> None:
    with fake_server(lambda body, n: (200, good("x"))) as server:
        chat = open_server(f"openai:m@{server.address}/v1", QUICK)
    with pytest.raises(RescoldoError, match=r"no longer answers(.|\n)*same command: finished answers are kept"):
        answers(chat, "a", "b")


def test_interrupted_between_two_answers() -> None:
    """A generator that is left closes its connections and leaves nothing running."""
    with fake_server(lambda body, n: (200, good("x")), seconds=0.05) as server:
        chat = open_server(f"openai:m@{server.address}/v1", ServerOptions(1, 5, 0))
        running = chat.complete(say(*"abcdef"), SAMPLING)
        next(running)
        running.close()
        assert len(server.requests) < 5


def test_nobody_listens() -> None:
    port = free_port()
    with pytest.raises(RescoldoError, match=r"no server answers(.|\n)*ends in /v1"):
        open_server(f"openai:m@http://127.0.0.1:{port}/v1")


@pytest.mark.parametrize(
    "spec",
    ["openai:", "openai:m", "openai:m@", "openai:@http://x/v1", "openai:m@ftp://x", "openai:m@http://", "openai:m@x:1",
     "openai:m@http://127.0.0.1:notaport/v1"],
)  # fmt: skip
def test_malformed(spec: str) -> None:
    with pytest.raises(RescoldoError, match="write openai:MODEL@URL"):
        open_server(spec)


def test_a_key_in_the_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(RescoldoError) as caught:
        open_server("openai:m@http://me:hunter2@127.0.0.1:1/v1")
    assert "OPENAI_API_KEY" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_the_key_is_refused_at_once() -> None:
    with fake_server(lambda body, n: (200, good("x")), {"/v1/models": (401, {})}) as server:
        with pytest.raises(RescoldoError, match="refuses the key"):
            open_server(f"openai:m@{server.address}/v1")


def tags(*names: str) -> dict[str, Any]:
    rows = [{"name": name, "digest": "d" + name} for name in names]
    return {"/api/tags": (200, {"models": rows})}


def test_ollama(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_server(lambda body, n: (200, good("hello")), tags("mistral:7b-instruct", "small:latest")) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.address.removeprefix("http://"))
        assert answers(open_server("ollama:mistral:7b-instruct", QUICK), "a")[0].text == "hello"
        assert server.requests[0]["model"] == "mistral:7b-instruct"
        assert open_server("ollama:small", QUICK).entry["digest"] == "dsmall:latest"
        with pytest.raises(RescoldoError, match=r"It holds: mistral:7b-instruct(.|\n)*ollama pull mistral:70b"):
            open_server("ollama:mistral:70b")


def test_a_model_pulled_anew_is_another_one() -> None:
    keys = {
        ServerChat("s", "m", "http://x", QUICK, {"id": "m", "digest": d, "created": d}).fingerprint() for d in "aab"
    }
    assert len(keys) == 2
    keys = {ServerChat("s", "m", "http://x", QUICK, {"id": "m", "created": d}).fingerprint() for d in "ab"}
    assert len(keys) == 1, "when a server was started says nothing about its model"


def test_ollama_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{free_port()}")
    with pytest.raises(RescoldoError, match=r"no server answers(.|\n)*ollama serve(.|\n)*engine:ollama:mistral"):
        open_server("ollama:mistral")


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("", "http://127.0.0.1:11434"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        (":1234", "http://127.0.0.1:1234"),
        ("box", "http://box:11434"),
        ("box:8080/", "http://box:8080"),
        ("https://box", "https://box:443"),
        ("http://box", "http://box:80"),
        ("http://[::1]:1234", "http://[::1]:1234"),
        ("http://box:1/sub", "http://box:1/sub"),
    ],
)
def test_ollama_host(given: str, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", given)
    assert ollama_host() == found


def test_ollama_host_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", "http://box:port")
    with pytest.raises(RescoldoError, match="OLLAMA_HOST"):
        ollama_host()

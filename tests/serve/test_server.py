"""OpenAI's own client drives the server."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import jsonschema
import openai
import pydantic
import pytest

from rescoldo.data.tokenize import prompt_ids, stop_ids
from rescoldo.engine.generate import generate
from rescoldo.engine.types import Sampling
from rescoldo.errors import RescoldoError
from rescoldo.role import get_role
from rescoldo.serve.access import Access, access
from rescoldo.serve.service import Limits
from tests.export.common import CONCEPTS
from tests.serve.common import SHORT, Live, live, tiny_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="module")
def server(run: Path) -> Iterator[Live]:
    with live(run, Limits(rows=4, waiting=16, max_tokens=1500)) as running:
        yield running


def expected(server: Live, messages: list[Any], n: int, *, base: bool = False) -> str:
    """What the engine answers by itself, greedily."""
    loaded = server.service.loaded
    prompt = prompt_ids(messages, loaded.tokenizer)

    def answer() -> str:
        (row,) = generate(loaded.model, [prompt], Sampling(max_new_tokens=n), stop_ids(loaded.tokenizer))
        return str(loaded.tokenizer.decode(row.tokens, skip_special_tokens=True))

    if not base:
        return answer()
    with loaded.model.without_adapter():
        return answer()


def ask(server: Live, messages: list[Any] = SHORT, model: str = "run", n: int = 12, **options: Any) -> Any:
    return server.client().chat.completions.create(model=model, messages=messages, max_tokens=n, **options)


def test_models(server: Live, run: Path) -> None:
    names = [model.id for model in server.client().models.list()]
    assert names == ["run", str(run.parent / "base")]
    assert server.client().models.retrieve(names[1]).owned_by == "rescoldo"
    with pytest.raises(openai.NotFoundError, match="there is no model 'other'"):
        server.client().models.retrieve("other")


def test_the_fine_tuned_model_and_its_base(server: Live, run: Path) -> None:
    messages = get_role("ba").messages({"concept": CONCEPTS[0]})
    tuned = ask(server, messages)
    assert tuned.choices[0].message.content == expected(server, messages, 12)
    assert tuned.choices[0].finish_reason == "length"
    assert (tuned.usage.completion_tokens, tuned.usage.total_tokens) == (12, tuned.usage.prompt_tokens + 12)
    assert tuned.usage.prompt_tokens == len(prompt_ids(messages, server.service.loaded.tokenizer))
    base = ask(server, messages, str(run.parent / "base"))
    assert base.choices[0].message.content == expected(server, messages, 12, base=True)
    assert base.choices[0].message.content != tuned.choices[0].message.content


def test_streaming(server: Live) -> None:
    chunks = list(ask(server, n=30, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == ask(server, n=30).choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] in ("stop", "length")
    assert chunks[-1].usage.completion_tokens <= 30
    assert len({chunk.id for chunk in chunks}) == 1


def test_concurrent_requests_to_both_models_are_each_answered_as_if_alone(server: Live, run: Path) -> None:
    """More than are decoded together, long and short, with the role's prompt and without, streamed and not."""
    base = str(run.parent / "base")
    role = get_role("ba")
    asked = [
        (role.messages({"concept": CONCEPTS[i % 4]}) if i % 3 else [{"role": "user", "content": f"thing {i}"}],
         base if i % 4 == 0 else "run", 5 + 7 * (i % 3), i % 2 == 0)
        for i in range(12)
    ]  # fmt: skip
    wanted = [expected(server, messages, n, base=model == base) for messages, model, n, _ in asked]

    def one(request: tuple[list[Any], str, int, bool]) -> str:
        messages, model, n, stream = request
        answer = ask(server, messages, model, n, stream=stream)
        if not stream:
            return str(answer.choices[0].message.content)
        return "".join(chunk.choices[0].delta.content or "" for chunk in answer)

    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(one, asked)) == wanted


def test_sampling_and_seed(server: Live) -> None:
    def text(**options: Any) -> str:
        return str(ask(server, n=20, **options).choices[0].message.content)

    assert text(temperature=1.5, seed=7) == text(temperature=1.5, seed=7)
    assert text(temperature=1.5, seed=7) != text(temperature=1.5, seed=8)
    assert len({text(temperature=1.5) for _ in range(4)}) > 1
    assert text(temperature=1.5, top_p=0.0) == text() == text(temperature=0)


CARD = {
    "type": "object", "required": ["kind", "tags"], "additionalProperties": False,
    "properties": {
        "kind": {"enum": ["red", "green"]},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 5}, "maxItems": 2},
    },
}  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
def test_answers_held_to_a_schema(server: Live, run: Path, stream: bool) -> None:
    """As OpenAI's client asks for it, with both models; strict or not, in a batch with free answers."""

    def one(seed: int) -> Any:
        wanted = {"name": "card", "schema": CARD, "strict": seed % 2 == 0}
        model = "run" if seed % 3 else str(run.parent / "base")
        shape: Any = {"type": "json_schema", "json_schema": wanted} if seed % 4 != 3 else {"type": "text"}
        answer = ask(server, model=model, n=1400, temperature=1.0, seed=seed, stream=stream, response_format=shape)
        if not stream:
            return answer.choices[0].finish_reason, answer.choices[0].message.content
        chunks = [chunk for chunk in answer if chunk.choices]
        return chunks[-1].choices[0].finish_reason, "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(one, range(8)))
    for seed, (reason, text) in enumerate(answers):
        if seed % 4 == 3:
            continue
        assert reason == "stop"
        jsonschema.validate(json.loads(text), CARD)


def test_pydantic_models_as_the_client_sends_them(server: Live) -> None:
    class Card(pydantic.BaseModel):
        kind: Literal["red", "green"]
        points: Literal[1, 2, 3]

    answer = server.client().chat.completions.parse(
        model="run", messages=SHORT, max_tokens=1400, temperature=1.0, seed=3, response_format=Card
    )
    assert isinstance(answer.choices[0].message.parsed, Card)


def test_any_object(server: Live) -> None:
    answer = ask(server, n=40, temperature=1.0, seed=1, response_format={"type": "json_object"}).choices[0]
    text = str(answer.message.content)
    assert text.lstrip().startswith("{")
    assert answer.finish_reason == "length" or isinstance(json.loads(text), dict)


@pytest.mark.parametrize(
    ("extra", "pattern"),
    [
        ({"structured_outputs": {"regex": "[A-F]{3}-[0-9]{2}"}}, "[A-F]{3}-[0-9]{2}"),
        ({"structured_outputs": {"choice": ["yes", "no", "not said"]}}, "yes|no|not said"),
        ({"structured_outputs": {"json": json.dumps({"enum": ["red"]})}}, '"red"'),
        ({"structured_outputs": {"json": {"enum": ["red"]}}}, '"red"'),
        ({"guided_regex": "(ab)+c"}, "(ab)+c"),
        ({"guided_choice": ["left", "right"]}, "left|right"),
        ({"guided_json": {"const": 7}}, "7"),
        ({"guided_json": {"const": 7}, "response_format": {"type": "text"}}, "7"),
    ],
)
def test_vllms_fields_hold_answers_to_a_form(server: Live, extra: dict[str, Any], pattern: str) -> None:
    for seed in range(2):
        answer = ask(server, n=400, temperature=1.0, seed=seed, extra_body=extra).choices[0]
        assert answer.finish_reason == "stop"
        assert re.fullmatch(pattern, str(answer.message.content).strip())


@pytest.mark.parametrize(
    ("extra", "message", "param"),
    [
        ({"structured_outputs": {"regex": "("}}, "this form cannot be used", "structured_outputs"),
        ({"structured_outputs": {"grammar": "root ::= x"}}, "is not supported", "structured_outputs.grammar"),
        ({"structured_outputs": {}}, "exactly one of json, regex, choice", "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "exactly one", "structured_outputs"),
        ({"structured_outputs": {"choice": []}}, "this form cannot be used", "structured_outputs"),
        ({"structured_outputs": {"json": "{"}}, "this form cannot be used", "structured_outputs"),
        ({"guided_json": {"type": "array", "uniqueItems": True}}, "uniqueItems", "guided_json"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "got guided_regex and guided_choice", ""),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "only one form", ""),
        ({"guided_grammar": "root ::= x"}, "is not supported", "guided_grammar"),
        ({"guided_decoding_backend": "x"}, "is not supported", "guided_decoding_backend"),
        ({"guided_regex": 7}, "expected a string, got a number", "guided_regex"),
    ],
)
def test_forms_that_are_not_known_are_refused_by_name(
    server: Live, extra: dict[str, Any], message: str, param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        ask(server, extra_body=extra)
    assert message in str(error.value)
    assert (error.value.param or "") == param


def test_a_constraint_that_fails_is_an_error_of_its_request_alone(
    server: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rescoldo.constrain.matcher import Constraint

    with monkeypatch.context() as patch:
        patch.setattr(Constraint, "mask_", lambda *_: "stuck")
        patch.setattr(Constraint, "allows", lambda *_: False)
        with ThreadPoolExecutor(2) as pool:
            free = pool.submit(ask, server, n=20)
            with pytest.raises(openai.BadRequestError, match="cannot continue in the form") as error:
                ask(server, response_format={"type": "json_object"})
        assert error.value.param == "response_format"
        assert free.result().choices[0].message.content == expected(server, SHORT, 20)
    server.wait_until((0, 0))


def test_stop_strings(server: Live) -> None:
    whole = str(ask(server, n=40).choices[0].message.content)
    stop = whole[5:7]
    answer = ask(server, n=40, stop=[stop, "never there"])
    assert answer.choices[0].message.content == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    streamed = ask(server, n=40, stop=stop, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == whole[: whole.index(stop)]
    server.wait_until((0, 0))


def post(server: Live, body: bytes | str, headers: dict[str, str] | None = None, path: str = "") -> tuple[int, Any]:
    """A bare request: (status, JSON)."""
    address = urlsplit(server.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=30)
    sent = {"Content-Type": "application/json", **(headers or {})}
    connection.request("POST", path or "/v1/chat/completions", body, sent)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, json.loads(content) if content.startswith(b"{") else content


def body(**fields: Any) -> str:
    return json.dumps({"model": "run", "messages": SHORT, "max_tokens": 2} | fields)


MALFORMED: list[tuple[bytes | str, int, str]] = [
    ("", 400, "not JSON"),
    ("{", 400, "not JSON"),
    (b"\xff\xfe", 400, "not JSON"),
    ("[" * 100_000, 400, "not JSON"),
    ("[1]", 400, "not an object"),
    ("{}", 400, "model: is missing"),
    (body(model=5), 400, "model: expected a string, got a number"),
    (body(model="other"), 404, "there is no model 'other'"),
    (body(messages=[]), 400, "messages: "),
    (body(messages="hi"), 400, "messages: expected a list, got a string"),
    (body(messages=[{"role": "tool", "content": "x"}]), 400, "messages.0.role: expected 'system', 'developer', 'user'"),
    (body(messages=["hi"]), 400, "messages.0: expected an object, got a string"),
    (
        body(messages=[{"role": "user", "content": 5}]),
        400,
        "messages.0.content: expected a string or a list of text parts, got a number",
    ),
    (
        body(messages=[{"role": "user", "content": {}}]),
        400,
        "messages.0.content: expected a string or a list of text parts, got an object",
    ),
    (
        body(messages=[{"role": "user", "content": ["x"]}]),
        400,
        "messages.0.content.0: expected an object, got a string",
    ),
    (body(messages=[{"role": "user", "content": [{"type": "text"}]}]), 400, "messages.0.content.0.text: is missing"),
    (
        body(messages=[{"role": "user", "content": [{"type": "text", "text": "x", "more": 1}]}]),
        400,
        "messages.0.content.0.more: is not supported",
    ),
    (
        body(messages=[{"role": "assistant", "content": "x", "reasoning_content": "so"}, *SHORT]),
        400,
        "messages.0.reasoning_content: is not supported",
    ),
    (body(messages=[{"role": "user"}]), 400, "messages.0.content: is missing"),
    (
        body(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]),
        400,
        "messages.0.content.0.type: expected 'text'",
    ),
    ('{"model": "run", "messages": [{"role": "user", "content": "\\ud800"}]}', 400, "lone surrogate"),
    (body(temperature=3), 400, "temperature"),
    (body(temperature="1"), 400, "temperature"),
    ('{"model": "run", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}', 400, "temperature"),
    (body(temperature=True), 400, "temperature"),
    (body(top_p=1.1), 400, "top_p"),
    (body(max_tokens=0), 400, "max_tokens"),
    (body(max_tokens=2.5), 400, "max_tokens: expected a whole number, got a number"),
    (body(stop=5), 400, "stop: expected a string or a list, got a number"),
    (body(stop=["a", 5]), 400, "stop.1: expected a string, got a number"),
    (body(stop=[""]), 400, "stop"),
    (body(stop=["x"] * 17), 400, "stop"),
    (body(seed=1 << 70), 400, "seed"),
    (body(n=2), 400, "n is not supported"),
    (body(n=True), 400, "n is not supported"),
    (body(logprobs=True), 400, "logprobs is not supported"),
    (body(tools=[{"type": "function"}]), 400, "tools is not supported"),
    (body(tool_choice="required", parallel_tool_calls=1, tools=[{"type": "function"}]), 400, "tools is not supported"),
    (body(tool_choice="required"), 400, "tool_choice is not supported"),
    (body(top_k=40), 400, "top_k is not supported"),
    (
        body(response_format={"type": "xml"}),
        400,
        "response_format.type: expected 'text', 'json_object' or 'json_schema'",
    ),
    (body(response_format="json_object"), 400, "response_format: expected an object, got a string"),
    (body(response_format={"type": "json_schema"}), 400, "response_format: json_schema goes with"),
    (
        body(response_format={"type": "json_schema", "json_schema": {"name": "a"}}),
        400,
        "response_format.json_schema.schema: is missing",
    ),
    (
        body(response_format={"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}),
        400,
        "response_format.json_schema.name",
    ),
    (
        body(response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "objekt"}}}),
        400,
        "this schema cannot be used: ",
    ),
    (
        body(
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "a", "strict": True, "schema": {"uniqueItems": True}},
            }
        ),
        400,
        "uniqueItems",
    ),
    (
        body(
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "a", "strict": True, "schema": {"maxLenght": 3}},
            }
        ),
        400,
        "'maxLenght' is not a keyword of JSON Schema, did you mean maxLength?",
    ),
    (body(frequency_penalty=0.5), 400, "frequency_penalty is not supported"),
    (body(surprise=1), 400, "surprise: is not supported"),
    (body(messages=[{"role": "user", "content": "long " * 3000}]), 400, "expected at most 2048 with the answer"),
]


@pytest.mark.parametrize(("content", "status", "message"), MALFORMED)
def test_malformed_requests(server: Live, content: bytes | str, status: int, message: str) -> None:
    code, answer = post(server, content)
    assert code == status
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert answer["error"]["type"] == "invalid_request_error"
    assert message in answer["error"]["message"]
    assert len(answer["error"]["message"]) < 1000


def test_what_changes_nothing_is_taken(server: Live) -> None:
    parts = [
        {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "terse."}]},
        *SHORT,
    ]
    neutral = {"n": 1, "tools": [], "logprobs": False, "presence_penalty": 0, "user": "me", "stop": None, "seed": None}
    code, answer = post(server, body(messages=parts, **neutral))
    assert code == 200
    same = [{"role": "system", "content": "Be terse."}, *SHORT]
    assert answer["choices"][0]["message"]["content"] == expected(server, same, 2)


def test_more_tokens_than_there_may_be_are_as_many_as_there_may_be(run: Path) -> None:
    """Clients send 32000 whatever the model; the context is a limit in the same way."""
    with live(run, Limits(rows=1, max_tokens=7), endless=True) as server:
        for name in ("max_tokens", "max_completion_tokens"):
            code, answer = post(server, body(**{"max_tokens": None, name: 32000}))
            assert (code, answer["usage"]["completion_tokens"]) == (200, 7)
            assert answer["choices"][0]["finish_reason"] == "length"


def test_fields_that_say_nothing_are_ignored(server: Live) -> None:
    """Empty ones, null, and clients' notes, on messages and on parts."""
    note = {"cache_control": {"type": "ephemeral"}, "id": "msg_1"}
    empty = {"reasoning_content": "", "reasoning": None, "tool_calls": [], "audio": {}, "prefix": False}
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "Be terse.", "citations": [], **note}], **note},
        {**SHORT[0], **note, **empty},
    ]
    code, answer = post(server, body(messages=messages, top_k=-1, min_p=0.0, repetition_penalty=1.0))
    assert code == 200, answer
    same = [{"role": "system", "content": "Be terse."}, *SHORT]
    assert answer["choices"][0]["message"]["content"] == expected(server, same, 2)


def test_an_answer_can_be_sent_back_as_it_came(server: Live) -> None:
    answer = ask(server).choices[0].message
    same = [*SHORT, {"role": "assistant", "content": answer.content}, *SHORT]
    for sent in (answer, answer.model_dump(), {**answer.model_dump(), "tool_calls": [], "annotations": []}):
        assert ask(server, [*SHORT, sent, *SHORT]).choices[0].message.content == expected(server, same, 12)
    with pytest.raises(openai.BadRequestError, match=r"messages\.0\.tool_calls: is not supported"):
        ask(server, [{**same[1], "tool_calls": [{"id": "1"}]}])


def test_oversized_and_slow_bodies(server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    code, answer = post(server, body(messages=[{"role": "user", "content": "x" * (1 << 20)}]))
    assert (code, answer["error"]["code"]) == (413, "body_too_large")
    monkeypatch.setattr("rescoldo.serve.app._BODY_SECONDS", 0.3)
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: 1000\r\n\r\n{{".encode())
        assert b" 408 " in connection.recv(200)


def test_routes_types_and_hosts(server: Live) -> None:
    code, answer = post(server, body(), path="/v1/completions")
    assert (code, answer["error"]["message"]) == (404, "there is no POST /v1/completions")
    assert post(server, body(), path="/v1/models")[0] == 405
    assert post(server, body(), {"Content-Type": "text/plain"})[0] == 415
    for host in ("evil.example", "localhost.evil.example", "127.0.0.2", "", "[::1", "a@localhost"):
        code, answer = post(server, body(), {"Host": host})
        assert (code, answer["error"]["type"]) == (400, "invalid_request_error")
        assert "--allowed-host" in answer["error"]["message"]
    for host in ("LOCALHOST", "[::1]:80", "localhost."):
        assert post(server, body(), {"Host": host})[0] == 200
    assert post(server, body(), {"Host": "localhost:99"})[0] == 200


def test_api_key(run: Path) -> None:
    with live(run, api_key="sësame") as server:
        address = {"Authorization": "Bearer sësame".encode().decode("latin-1")}
        assert post(server, body(), address)[0] == 200
        for scheme in ("bearer", "BEARER", "Bearer "):
            assert post(server, body(), {"Authorization": address["Authorization"].replace("Bearer", scheme)})[0] == 200
        for headers in ({}, {"Authorization": "Bearer no"}, {"Authorization": "sesame"}, {"Authorization": "bearer"}):
            code, answer = post(server, body(), headers)
            assert (code, answer["error"]["code"]) == (401, "invalid_api_key")
        with pytest.raises(openai.AuthenticationError):
            server.client(api_key="wrong").models.list()


def test_other_names_and_web_pages_if_asked_for(run: Path) -> None:
    origin, foreign = "http://localhost:3000", "https://evil.example"

    def preflight(server: Live, asked: str) -> http.client.HTTPResponse:
        address = urlsplit(server.url)
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=30)
        wanted = {
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type,x-stainless-os",
        }
        connection.request("OPTIONS", "/v1/chat/completions", headers={"Origin": asked, **wanted})
        return connection.getresponse()

    with live(run, allowed_hosts=["Models.example.org", "*.lan"], cors_origins=[origin]) as server:
        for host in ("models.example.org", "models.example.org:443", "box.lan", "localhost"):
            assert post(server, body(), {"Host": host})[0] == 200
        for host in ("example.org", "lan", "evil-lan"):
            assert post(server, body(), {"Host": host})[0] == 400
        assert preflight(server, origin).getheader("Access-Control-Allow-Origin") == origin
        assert preflight(server, origin).status == 200
        assert preflight(server, foreign).status == 400
        assert preflight(server, foreign).getheader("Access-Control-Allow-Origin") is None
    with live(run) as server:
        assert preflight(server, origin).getheader("Access-Control-Allow-Origin") is None


@pytest.mark.parametrize(
    ("host", "given", "message"),
    [
        ("0.0.0.0", {}, "without a key"),
        ("127.0.0.1", {"cors_origins": ["*"]}, "every web page"),
        ("127.0.0.1", {"allowed_hosts": ["*"]}, "every web page"),
        ("127.0.0.1", {"cors_origins": ["localhost:3000"]}, "is not a web origin"),
        ("127.0.0.1", {"cors_origins": ["http://localhost:3000/app"]}, "is not a web origin"),
        ("127.0.0.1", {"cors_origins": ["http://a@localhost"]}, "is not a web origin"),
        ("127.0.0.1", {"allowed_hosts": ["http://name"]}, "is not a host name"),
        ("127.0.0.1", {"allowed_hosts": ["name:80"]}, "is not a host name"),
        ("127.0.0.1", {"allowed_hosts": [""]}, "is not a host name"),
    ],
)
def test_access_that_is_refused(host: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(RescoldoError, match=message):
        access(host, **given)


def test_access_of_a_server_that_others_reach() -> None:
    assert access("0.0.0.0", api_key="k").hosts == ()
    assert access("0.0.0.0", api_key="k", allowed_hosts=["models.lan", "[fe80::1]"]).hosts[-2:] == (
        "models.lan",
        "fe80::1",
    )
    assert access("127.0.0.1", api_key="k", allowed_hosts=["*"], cors_origins=["*"]) == Access("k", (), ("*",))


LONG: dict[str, Any] = {"n": 1900, "stream": True}


@pytest.fixture(scope="module")
def endless(run: Path) -> Iterator[Live]:
    with live(run, Limits(rows=4, waiting=16), endless=True) as running:
        yield running


def test_a_client_that_goes_away_frees_its_place(endless: Live) -> None:
    """In the middle of a stream, before a whole answer, and while waiting."""
    server = endless
    stream = ask(server, **LONG)
    next(iter(stream))
    server.wait_until((1, 0))
    stream.close()
    server.wait_until((0, 0))
    with pytest.raises(openai.APITimeoutError):
        server.client(timeout=0.3).chat.completions.create(model="run", messages=SHORT, max_tokens=1900)
    server.wait_until((0, 0))
    streams = [ask(server, **LONG) for _ in range(6)]
    server.wait_until((4, 2))
    streams[5].close()
    server.wait_until((4, 1))
    for one in streams[:5]:
        one.close()
    server.wait_until((0, 0))


def test_full_queue_and_timeouts(run: Path) -> None:
    with live(run, Limits(rows=1, waiting=1, seconds=0.7), endless=True) as server:
        streams = [ask(server, **LONG)]
        server.wait_until((1, 0))
        streams.append(ask(server, **LONG))
        server.wait_until((1, 1))
        with pytest.raises(openai.RateLimitError, match="too many requests are waiting"):
            ask(server)
        with pytest.raises(openai.APIError, match=r"no answer within 0\.7 s"):
            list(streams[1])
        with pytest.raises(openai.InternalServerError, match=r"no answer within 0\.7 s") as error:
            ask(server, n=1900)
        assert error.value.status_code == 504
        server.wait_until((0, 0))
        assert ask(server, n=3).usage.completion_tokens == 3, "it continues"


@pytest.mark.parametrize("stream", [False, True])
def test_what_the_grace_was_too_short_for_is_told_so(run: Path, stream: bool, caplog: pytest.LogCaptureFixture) -> None:
    def wait() -> None:
        answer = ask(server, n=1900, stream=stream)
        list(answer) if stream else None

    with ThreadPoolExecutor() as pool:
        with live(run, endless=True) as server:
            server.service.scheduler._model.embed = slowly(server.service.scheduler._model.embed)  # type: ignore[method-assign]
            asked = pool.submit(wait)
            server.wait_until((1, 0))
        with pytest.raises(openai.APIError, match="the server is stopping"):
            asked.result()
    assert caplog.text == ""


def slowly(function: Any) -> Any:
    def slow(*arguments: Any) -> Any:
        time.sleep(0.02)
        return function(*arguments)

    return slow


def test_an_engine_that_fails_is_an_error_and_not_the_end(
    server: Live, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from rescoldo.engine.generate import Decoder

    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "admit", lambda *_: (_ for _ in ()).throw(MemoryError()))
        with pytest.raises(openai.InternalServerError, match="the engine could not answer"):
            ask(server)
    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "step", lambda *_: (_ for _ in ()).throw(RuntimeError("not enough memory")))
        with pytest.raises(openai.InternalServerError, match="the engine could not answer"):
            ask(server)
    for method in ("admit", "step"):
        with monkeypatch.context() as patch:
            patch.setattr(Decoder, method, lambda *_: (_ for _ in ()).throw(IndexError("a bug")))
            with pytest.raises(openai.InternalServerError, match="the engine could not answer"):
                ask(server)
    assert "IndexError('a bug')" in caplog.text
    assert ask(server).choices[0].message.content == expected(server, SHORT, 12)


def test_a_thousand_requests_none_lost_memory_flat(run: Path) -> None:
    """Of all kinds, 32 at a time: each is answered once and right, and the memory does not grow."""
    import psutil

    async def drive(server: Live, count: int) -> list[str]:
        client = openai.AsyncOpenAI(base_url=server.url, api_key="unused", max_retries=0, timeout=120)
        slots = asyncio.Semaphore(32)

        async def one(i: int) -> str:
            async with slots:
                messages: Any = [{"role": "user", "content": f"number {i % 10}"}]
                if i % 10 == 9:  # goes away at once
                    stream = await client.chat.completions.create(
                        model="run", messages=messages, max_tokens=50, stream=True
                    )
                    await stream.close()
                    return "left"
                if i % 2:
                    stream = await client.chat.completions.create(
                        model="run", messages=messages, max_tokens=4, stream=True
                    )
                    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
                whole = await client.chat.completions.create(model="run", messages=messages, max_tokens=4)
                return str(whole.choices[0].message.content)

        try:
            return await asyncio.gather(*(one(i) for i in range(count)))
        finally:
            await client.close()

    with live(run, Limits(rows=8, waiting=64)) as server:
        wanted = [expected(server, [{"role": "user", "content": f"number {i}"}], 4) for i in range(9)] + ["left"]
        process, threads = psutil.Process(), threading.active_count()
        assert asyncio.run(drive(server, 200)) == wanted * 20
        before = process.memory_info().rss
        assert asyncio.run(drive(server, 1000)) == wanted * 100
        server.wait_until((0, 0))
        assert process.memory_info().rss - before < 30 << 20
        assert threading.active_count() <= threads + 2
        assert not server.service.scheduler._cancelled

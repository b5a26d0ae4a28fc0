"""The page's server: who may ask, what it says, and that a vote is on the disk when it says so."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rescoldo.preference.ballots import ballots
from rescoldo.preference.votes import VoteFile
from rescoldo.review.page import BallotSite
from rescoldo.review.server import ReviewServer, Site
from rescoldo.review.session import Session
from tests.data.examples import record
from tests.evaluation.fake import ROLE
from tests.preference.documents import comparison

EVIL = '</div><script>document.title = "ran"</script><img src=x onerror="alert(1)">{{ 7*7 }}'


class Client:
    """Asks as a browser would; `headers` change that."""

    def __init__(self, url: str) -> None:
        _, _, self.host, self.token, _ = url.split("/")

    def ask(self, method: str, path: str, body: Any = None, **headers: str | None) -> tuple[int, Any, Any]:
        port = int(self.host.partition(":")[2])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        given = {"Host": self.host, "Origin": f"http://{self.host}", "Content-Type": "application/json"}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        connection.putrequest(method, path, skip_host=True)
        for name, value in given.items():
            if value is not None:
                connection.putheader(name, value)
        connection.putheader("Content-Length", headers.get("Content_Length") or str(len(raw)))
        connection.endheaders(raw)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, text, answer.headers

    def page(self, query: str = "") -> str:
        status, text, _ = self.ask("GET", f"/{self.token}/{query}")
        assert status == 200
        return str(text)

    def post(self, what: str, body: Any, **headers: str | None) -> tuple[int, Any]:
        status, text, _ = self.ask("POST", f"/{self.token}/{what}", body, **headers)
        return status, json.loads(text)


@pytest.fixture
def session(tmp_path: Path) -> Session:
    document = comparison(4, baseline=lambda e: EVIL, finetuned=lambda e: ROLE.target(record(e)))
    document["models"]["baseline"]["predictions"][0]["concept"] = EVIL
    document["models"]["finetuned"]["predictions"][0]["concept"] = EVIL
    items = ballots(document, [("finetuned", "baseline")]).items
    return Session(items, VoteFile(tmp_path / "v.jsonl"), "ana", 1)


@contextlib.contextmanager
def client_of(site: Site) -> Iterator[Client]:
    """A client of a server that serves the site, in this process."""
    server = ReviewServer(site)
    thread = threading.Thread(target=server.run)
    thread.start()
    yield Client(server.url)
    server.stop()
    thread.join()


@pytest.fixture
def client(session: Session) -> Iterator[Client]:
    with client_of(BallotSite(session)) as client:
        yield client


def test_pages_are_blind_and_text_stays_text(client: Client, session: Session) -> None:
    for number in range(4):
        html = client.page(f"?n={number}")
        for name in ("finetuned", "baseline", "score", "ana"):
            assert name not in re.sub(r"<style.*?</style>|<script.*?</script>", "", html, flags=re.S)
        assert "<img" not in html
        assert html.count("<script") == 1
        assert "<h3>Product for" in html, "an answer is rendered as the document that it is"
    assert all(session.ballots[n].concept == session.show(n).concept for n in range(4))


def test_headers(client: Client) -> None:
    _, html, headers = client.ask("GET", f"/{client.token}/")
    policy = headers["Content-Security-Policy"]
    (nonce,) = set(re.findall(r'nonce="([^"]+)"', html))
    assert "default-src 'none'" in policy
    assert f"script-src 'nonce-{nonce}'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert (headers["Referrer-Policy"], headers["Cache-Control"]) == ("no-referrer", "no-store")
    assert nonce not in client.page(), "each page has its own"
    assert not re.search(r"(src|href)=[\"'](?!data:)", html)
    assert " style=" not in html
    assert " onclick=" not in html


def test_who_may_ask(client: Client, session: Session) -> None:
    vote = {"number": 0, "vote": 1, "note": "", "seen": None}
    page = f"/{client.token}/"
    assert client.ask("GET", "/")[0] == 404
    assert client.ask("GET", f"/{client.token[:-1]}x/")[0] == 404
    assert client.ask("GET", f"/{client.token}/other")[0] == 404
    assert client.ask("GET", page, Host="evil.example:80")[0] == 421
    assert client.ask("GET", page, Host=None)[0] == 421
    port = client.host.partition(":")[2]
    assert client.ask("GET", page, Host=f"localhost:{port}")[0] == 200
    for headers in (
        {"Origin": None}, {"Origin": "null"}, {"Origin": "http://evil.example"}, {"Origin": "http://127.0.0.1:1"},
        {"Sec_Fetch_Site": "cross-site"}, {"Sec_Fetch_Site": "same-site"},
    ):  # fmt: skip
        assert client.post("vote", vote, **headers)[0] == 403, headers
    assert client.post("vote", vote, Content_Type="text/plain")[0] == 415
    assert client.post("vote", b"[" * 20_000)[0] == 400
    assert client.post("vote", b"[]")[0] == 400
    assert client.post("vote", vote, Content_Length=str(BallotSite.max_body + 1))[0] == 413
    assert client.post("vote", vote, Content_Length="-1")[0] == 413
    assert client.post("other", vote)[0] == 404
    for change in ({"number": 99}, {"number": "0"}, {"number": True}, {"vote": 3}, {"vote": None}, {"note": 1},
                   {"note": "n" * 5000}):  # fmt: skip
        assert client.post("vote", {**vote, **change})[0] == 400, change
    assert session.done == 0
    assert client.post("vote", vote, Sec_Fetch_Site="same-origin") == (200, {"go": {"n": 1}})
    assert session.done == 1


def test_a_vote_is_on_the_disk_and_two_windows_agree(client: Client, session: Session) -> None:
    vote = {"number": 2, "vote": 1, "note": "clear", "seen": None}
    assert client.post("vote", vote) == (200, {"go": {"n": 3}})
    kept = json.loads(session.votes.path.read_text())
    assert (kept["vote"], kept["note"], kept["reviewer"]) == (1, "clear", "ana")
    assert client.post("vote", vote) == (200, {"go": {"n": 3}}), "twice is once"
    assert len(session.votes.path.read_text().splitlines()) == 1
    second = client.post("vote", {**vote, "vote": 2})
    assert second == (200, {"go": {"n": 3, "notice": "replaced"}})
    assert "replaced another vote" in client.page("?n=3&notice=replaced")
    assert client.post("vote", {**vote, "vote": 0, "seen": 2}) == (200, {"go": {"n": 3}}), "it was seen"
    assert client.post("undo", {}) == (200, {"go": {"n": 2, "notice": "undone"}})
    assert client.post("undo", {}) == (200, {"go": {"notice": "nothing"}})
    assert 'data-number="0"' in client.page(), "without a number: the first that has no vote"
    assert 'data-number="0"' in client.page("?n=x")
    assert "<b>" not in client.page("?notice=<b>")


def test_the_end(client: Client, session: Session) -> None:
    for number in range(4):
        status, found = client.post("vote", {"number": number, "vote": 0, "note": "", "seen": None})
    assert (status, found["go"]) == (200, {"n": "done"})
    assert 'id="all-done"' in client.page("?n=done")
    assert 'id="all-done"' in client.page()
    client.page("?finished=1")
    assert client.page("?n=done"), "to look at the last page ends nothing"
    assert client.post("finish", {})[0] == 200
    assert 'id="finished"' in client.page("?finished=1")
    until = time.monotonic() + 10
    with contextlib.suppress(OSError):
        while time.monotonic() < until:
            client.page()
    with pytest.raises(OSError):
        client.page()


def test_spanish(session: Session) -> None:
    from rescoldo.review.page import ballot_page
    from rescoldo.review.wording import ENGLISH, SPANISH

    assert set(ENGLISH) == set(SPANISH)
    html = ballot_page(session, 0, lang="es", nonce="x")
    assert '<html lang="es">' in html
    assert "¿Qué respuesta es mejor?" in html

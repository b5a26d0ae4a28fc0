"""What a model drafts: from inputs and documents, checked, without repeats, resumable, and never learned as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rescoldo.cli.main import app, run_app
from rescoldo.data import read_records
from rescoldo.data.audit import audit
from rescoldo.data.preferences import read_preferences
from rescoldo.data.text import read_documents as read_plain
from rescoldo.draft.drafting import INPUT_TOKENS, Asker, _listed, draft
from rescoldo.draft.sources import read_documents, read_inputs
from rescoldo.engine.types import Sampling
from rescoldo.errors import RescoldoError
from rescoldo.models.cache import PredictionCache
from rescoldo.words import words
from tests.data.examples import record, write
from tests.draft.fake import BA, GENERIC, FakeChat, asked, drafted
from tests.intake.files import workbook

PARAGRAPHS = [f"Paragraph {n}: " + " ".join(f"word{n}x{i}" for i in range(40)) + "." for n in range(8)]


def test_answers_to_a_list_of_inputs(tmp_path: Path) -> None:
    made = drafted(asked(tmp_path, "Where is the Prado?", "", "What is ñ?"))
    assert [(one["prompt"], one["completion"]) for one in made.records] == [
        ("Where is the Prado?", "about Where is the Prado?"),
        ("What is ñ?", "about What is ñ?"),
    ]
    origin = made.records[1]["provenance"]
    assert (origin["source"], origin["place"], origin["checks"]) == ("inputs.txt", "line 3", [])
    assert origin["model"] == "openai:m@http://x/v1"
    assert len(origin["prompt_sha256"]) == 64
    assert origin["date"].startswith("20")


@pytest.mark.parametrize("role", [GENERIC, BA])
def test_train_refuses_drafts_by_line(tmp_path: Path, role: Any) -> None:
    answers = {"generic": "a", "ba": BA.target(record(2))}
    made = drafted(asked(tmp_path, record(2)["concept"], role=role), role, lambda text: answers[role.name])
    good = record(1) if role is BA else {"prompt": "p", "completion": "c"}
    path = write(tmp_path / "d.jsonl", good, *made.records)
    assert made.records[0]["provenance"]["checks"] == []
    with pytest.raises(RescoldoError, match="a draft that nobody has accepted") as caught:
        read_records(path, role)
    assert caught.value.where == f"{path}:2, status"
    accepted = {**made.records[0], "status": "accepted"}
    assert len(read_records(write(tmp_path / "e.jsonl", good, accepted), role)) == 2
    assert "rejected" in audit([write(tmp_path / "f.jsonl", {**accepted, "status": "Rejected"})], role).faults[0].what


def test_no_other_reader_learns_drafts(tmp_path: Path) -> None:
    text = write(tmp_path / "t.jsonl", {"text": "one"}, {"text": "two", "status": "draft"})
    with pytest.raises(RescoldoError, match="nobody has accepted") as caught:
        read_plain(text)
    assert caught.value.where == f"{text}:2, status"
    pair = {"concept": "c", "chosen": BA.target(record(1)), "rejected": BA.target(record(2))}
    for role, row in ((BA, pair), (GENERIC, {"prompt": "p", "chosen": "a", "rejected": "b"})):
        path = write(tmp_path / "p.jsonl", row, {**row, "status": "draft"})
        with pytest.raises(RescoldoError, match="nobody has accepted") as caught:
            read_preferences(path, role, "pairs")
        assert caught.value.where == f"{path}:2, status"


def test_inputs_in_tables_and_lines(tmp_path: Path) -> None:
    path = workbook(tmp_path / "b.xlsx", {"s": [["Nr", "Frage"], [1, "eins"], [2, None], [3, "drei"]]})
    found = read_inputs(path, GENERIC, "Frage")
    assert [(one.record, one.place) for one in found] == [({"prompt": "eins"}, "row 2"), ({"prompt": "drei"}, "row 4")]
    with pytest.raises(RescoldoError, match="has no column 'prompt'") as caught:
        read_inputs(path, GENERIC)
    assert "--column" in caught.value.fix
    lines = write(tmp_path / "c.jsonl", {"concept": "c", "concept_id": 7, "requirements": {"x": 1}})
    assert [one.record for one in read_inputs(lines, BA)] == [{"concept_id": 7, "concept": "c"}]
    chat = write(
        tmp_path / "m.jsonl", {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]}
    )
    (one,) = drafted(read_inputs(chat, GENERIC)).records
    assert [m["role"] for m in one["messages"]] == ["system", "user", "assistant"]


def test_what_is_asked_already_is_not_drafted_again(tmp_path: Path) -> None:
    long = "how does one bake a good loaf of bread in an old oven without steam"
    inputs = asked(tmp_path, "one?", "two?", "one?", long, long + " today", "three?")
    known = [{"prompt": "two?", "completion": "x"}]
    made = drafted(inputs, existing=known)
    assert [one["prompt"] for one in made.records] == ["one?", long, "three?"]
    assert made.repeated == 3
    ba = [record(1)["concept"], record(1)["concept"].upper() + "!", record(2)["concept"]]
    made = drafted(asked(tmp_path, *ba, role=BA), BA, lambda text: BA.target(record(1)), existing=[record(2)])
    assert [one["concept"] for one in made.records] == [record(1)["concept"]], "by the role's own `same`"


def test_answers_are_checked_and_held_against_the_existing(tmp_path: Path) -> None:
    known = [record(n) for n in range(20, 34)]
    say = {
        record(1)["concept"]: BA.target(record(1)),
        record(2)["concept"]: "title: only",
        record(3)["concept"]: "no: [yaml",
        record(4)["concept"]: BA.target(record(4)) + "…",
        record(5)["concept"]: BA.target({"concept": "x", "requirements": {
            **record(5)["requirements"], "functional_requirements": [
                {"id": f"FR{i:03d}", "description": "The very same thing again and again.", "priority": "High"}
                for i in range(1, 9)]}}),
    }  # fmt: skip
    inputs = asked(tmp_path, *say, role=BA)
    made = drafted(inputs, BA, lambda text: next(say[one] for one in say if one in text), existing=known)
    checks = [one["provenance"]["checks"] for one in made.records]
    assert checks[0] == []
    assert any("missing" in text for text in checks[1])
    assert any("YAML" in text for text in checks[2])
    assert made.records[2]["requirements"] == "no: [yaml"
    assert "was cut off" in checks[3][0]
    assert made.calibrated
    doubts = [one["provenance"].get("doubts", []) for one in made.records]
    assert not any("repeat" in text for text in doubts[0])
    assert any("repeat each other" in text for text in doubts[4])
    assert not drafted(inputs[:1], BA, lambda text: say[record(1)["concept"]], existing=known[:3]).calibrated


def find(text: str) -> str:
    """What the fake model answers about a document: two inputs from each piece, and an answer that quotes it."""
    if "Write 2 different inputs" in text:
        name = text.rpartition("Extract:\n")[2].split()[1]
        return json.dumps({"inputs": [f"What about {name}?", f"Who wrote {name}?"]})
    return "It says: " + text.rpartition("\n\n")[2][:20]


def test_documents_become_inputs_and_answers(tmp_path: Path) -> None:
    (tmp_path / "d.md").write_text("\n\n".join(PARAGRAPHS), encoding="utf-16")
    pieces = read_documents([tmp_path / "d.md"], 100)
    assert [one.place for one in pieces] == ["piece 1", "piece 2", "piece 3", "piece 4"]
    assert "\n\n".join(one.extract for one in pieces) == "\n\n".join(PARAGRAPHS)
    chat = FakeChat(find)
    made = drafted(pieces, chat=chat, per_piece=2)
    assert [one["prompt"] for one in made.records[:3]] == ["What about 0:?", "Who wrote 0:?", "What about 2:?"]
    assert made.records[0]["completion"] == "It says: Paragraph 1: word1x0"[: len("It says: ") + 20]
    assert made.records[2]["provenance"]["place"] == "piece 2"
    assert made.records[2]["provenance"]["extract"] == pieces[1].extract
    assert pieces[1].extract in chat.asked[6], "the model is shown what it has to rely on"
    assert "Rely on" not in made.records[2]["prompt"], "and the example is asked without it"


@pytest.mark.parametrize(
    "said",
    [
        '{"inputs": ["first one", "the \\"second\\" one"]}',
        'Sure! ["first one", "the \\"second\\" one"',
        '```json\n{"inputs": ["first one", "the \\"second\\" one", "cut o',
        '1. first one\n2) the "second" one\n',
        '- first one\n* the "second" one',
    ],
)
def test_inputs_are_read_however_they_are_listed(said: str) -> None:
    assert list(_listed(said)) == ["first one", 'the "second" one']


def test_the_form_that_is_shown_is_no_input() -> None:
    assert not list(_listed('{"inputs": ["…", "…"]}'))
    assert list(_listed('{"inputs": ["…”,", "What is E7?"]}')) == ["What is E7?"]


def test_inputs_are_not_cut_off_by_the_limit_of_answers(tmp_path: Path) -> None:
    (tmp_path / "d.md").write_text("\n\n".join(PARAGRAPHS))
    limits: list[int] = []

    class Chat(FakeChat):
        def constrained(self, grammar: Any) -> FakeChat:
            return self

        def complete(self, conversations: Any, sampling: Any, on_progress: Any = None) -> Any:
            limits.append(sampling.max_new_tokens)
            return super().complete(conversations, sampling, on_progress)

    chat, pieces = Chat(find), read_documents([tmp_path / "d.md"], 100)
    asker = Asker(chat, PredictionCache(None), lambda *told: None)
    draft(pieces, GENERIC, asker, chat, Sampling(max_new_tokens=8), spec="openai:m@http://x/v1", per_piece=2)
    assert limits == [INPUT_TOKENS, 8], "labels are of a word or two, and the questions are not"


def test_a_server_that_takes_no_schema_is_asked_without(tmp_path: Path) -> None:
    (tmp_path / "d.md").write_text("\n\n".join(PARAGRAPHS))
    chat = FakeChat(find)
    without = FakeChat(lambda text: "error: HTTP 400: response_format is not supported")
    chat.constrained = without.constrained  # type: ignore[method-assign]
    assert len(drafted(read_documents([tmp_path / "d.md"], 100), chat=chat, per_piece=2).records) == 8


def _docx(path: Path) -> None:
    import docx

    document = docx.Document()
    document.add_heading("Title here", 1)
    document.add_paragraph("First paragraph about ñandú.")
    table = document.add_table(rows=1, cols=2)
    table.rows[0].cells[0].text, table.rows[0].cells[1].text = "left", "right"
    document.add_paragraph("Last one.")
    document.save(str(path))


def pdf(*pages: str) -> bytes:
    """A PDF whose pages show one line each."""
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", b""]
    kids = []
    for text in pages:
        stream = f"BT /F1 12 Tf 50 700 Td ({text}) Tj ET".encode()
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream))
        font = b"<< /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >>"
        objects.append(b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents %d 0 R /Resources %s >>" % (
            len(objects), font))  # fmt: skip
        kids.append(b"%d 0 R" % len(objects))
    objects[1] = b"<< /Type /Pages /Kids [%s] /Count %d >>" % (b" ".join(kids), len(kids))
    out, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    head = b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    tail = b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, len(out))
    return out + head + table + tail


def test_word_and_pdf(tmp_path: Path) -> None:
    _docx(tmp_path / "d.docx")
    (word,) = read_documents([tmp_path / "d.docx"])
    assert words(word.extract) == words("Title here First paragraph about ñandú left right Last one")
    (tmp_path / "d.pdf").write_bytes(pdf("On page one there is text", "Another page"))
    (both,) = read_documents([tmp_path / "d.pdf"])
    assert both.place == "piece 1, page 1"
    assert words(both.extract) == words("On page one there is text Another page")
    (tmp_path / "empty.pdf").write_bytes(pdf(""))
    for name, content, what in (
        ("empty.pdf", None, "has no text (is it scanned?)"),
        ("x.pdf", b"%PDF-1.4\nrubbish", "cannot be read"),
        ("x.docx", b"PK\x03\x04rubbish", "cannot be read"),
        ("x.odt", b"x", "is not a supported document"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(RescoldoError) as caught:
            read_documents([tmp_path / name])
        assert what in caught.value.what
        assert caught.value.where == str(tmp_path / name)


def test_long_paragraphs_are_cut_between_sentences(tmp_path: Path) -> None:
    sentences = [f"Sentence {n} has exactly six words." for n in range(40)]
    (tmp_path / "d.txt").write_text(" ".join(sentences) + "\n\n" + "word " * 70)
    pieces = read_documents([tmp_path / "d.txt"], 30)
    assert all(len(words(one.extract)) <= 30 for one in pieces)
    assert pieces[0].extract == " ".join(sentences[:5])
    assert words(" ".join(one.extract for one in pieces)) == words(" ".join(sentences) + " word" * 70)


def test_interrupted_it_goes_on_where_it_was(tmp_path: Path) -> None:
    inputs = asked(tmp_path, *(f"question number {n}?" for n in range(6)))
    first = FakeChat(lambda text: "a " + text, stop_after=4)
    with pytest.raises(KeyboardInterrupt):
        drafted(inputs, cache=tmp_path / "kept", chat=first)
    with open(tmp_path / "kept", "ab") as file:
        file.write(b'{"key": "half a li')  # killed while it wrote
    second = FakeChat(lambda text: "a " + text)
    made = drafted(inputs, cache=tmp_path / "kept", chat=second)
    assert len(second.asked) == 2
    assert [one["completion"] for one in made.records] == [f"a question number {n}?" for n in range(6)]


def test_answers_that_fail(tmp_path: Path) -> None:
    inputs = asked(tmp_path, "one?", "two?")
    made = drafted(inputs, answer=lambda text: "error: too slow" if text == "two?" else "fine")
    assert (len(made.records), made.failed) == (1, ["inputs.txt, line 2: too slow"])
    with pytest.raises(RescoldoError, match="gave no answer"):
        drafted(inputs, answer=lambda text: "error: gone")


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "i.txt").write_text("one?\ntwo?\n")
    chat = FakeChat(lambda text: "a " + text, stop_after=1)
    monkeypatch.setattr("rescoldo.evaluation.open.Opener.chat", lambda self, spec: chat)

    def run(*more: str) -> tuple[int, str, str]:
        line = [
            "data",
            "draft",
            "--inputs",
            str(tmp_path / "i.txt"),
            "--model",
            "fake",
            "-o",
            str(tmp_path / "d.jsonl"),
        ]
        monkeypatch.setattr("sys.argv", ["rescoldo", *line, *more])
        code = run_app(app)
        return code, *capsys.readouterr()

    code, _, err = run()
    assert (code, "the same command resumes" in err) == (130, True)
    assert not (tmp_path / "d.jsonl").exists()
    chat.stop_after = 99
    code, out, _ = run("--json")
    assert (code, json.loads(out)["drafts"]) == (0, 2)
    assert chat.asked == ["one?", "two?"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.jsonl", "i.txt"]
    code, _, err = run()
    assert (code, "exists already" in err) == (2, True)

"""Files that are no JSON Lines: the kind is named, and the command that is offered makes a file that is read."""

from __future__ import annotations

import gzip
import json
import shlex
from pathlib import Path

import pytest

from rescoldo.cli.main import app, run_app
from rescoldo.data import read_records
from rescoldo.data.audit import audit
from rescoldo.data.foreign import COMPRESSIONS, lines_name
from rescoldo.errors import RescoldoError
from rescoldo.role import get_role

GENERIC = get_role("generic")
RECORDS = [
    {"prompt": "Where's the Prado?", "completion": "In Madrid; Spain"},
    {"prompt": 'ñ, "x"', "completion": "y\nz"},
]
LINES = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS).encode()


def table(separator: str) -> bytes:
    rows = [["prompt", "completion"], *([r["prompt"], r["completion"]] for r in RECORDS)]
    quoted = (separator.join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows)
    return ("\n".join(quoted) + "\n").encode()


COMMANDS = {
    "gzip": ("my data.jsonl.gz", gzip.compress(LINES), "compressed (gzip)"),
    "utf-16": ("d.jsonl", LINES.decode().encode("utf-16"), "UTF-16"),
    "csv": ("d.csv", table(","), "CSV table (columns prompt, completion)"),
    "csv with a mark": ("d.csv", b"\xef\xbb\xbf" + table(","), "CSV table (columns prompt, completion)"),
    "semicolons": ("d.txt", table(";"), "CSV table"),
    "tsv": ("d.tsv", table("\t"), "TSV table"),
    "data": ("d.json", json.dumps({"version": 1, "data": RECORDS}).encode(), "2 records under `data`"),
    "indented data": ("d.json", json.dumps({"data": RECORDS}, indent=2).encode(), "2 records under `data`"),
    "indented objects": ("d.json", "\n".join(json.dumps(r, indent=2) for r in RECORDS).encode(), "several lines"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_makes_lines(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file, content, what = COMMANDS[name]
    path = tmp_path / file
    path.write_bytes(content)
    with pytest.raises(RescoldoError) as caught:
        read_records(path, GENERIC)
    assert what in caught.value.what
    words = shlex.split(str(caught.value.fix))
    assert words[1:3] == ["data", "import"]
    before = set(tmp_path.iterdir())
    monkeypatch.setattr("sys.argv", ["rescoldo", *words[1:], "--yes"])
    assert run_app(app) == 0
    (made,) = set(tmp_path.iterdir()) - before
    assert [(r["prompt"], r["answer"]) for r in read_records(made, GENERIC)] == [
        (r["prompt"], r["completion"]) for r in RECORDS
    ]
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("head", "what", "fix"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS pointer", "git lfs pull"),
        (b"PAR1\x15\x04", "Parquet", "data import"),
        (b"BZh91AY", "bzip2", "data import"),
        (b"\x28\xb5\x2f\xfd\0", "Zstandard", "data import"),
        (b"PK\x03\x04", "ZIP", "data import"),
        (b"{\0\0", "not a text file", "UTF-8"),
    ],
)
def test_other_kinds(tmp_path: Path, head: bytes, what: str, fix: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(head)
    with pytest.raises(RescoldoError) as caught:
        audit([path], GENERIC)
    assert what in caught.value.what
    assert fix in str(caught.value.fix)


def test_chat_data_without_a_role_names_the_role(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(LINES)
    with pytest.raises(RescoldoError, match=r"it is a question and its answer .*: --role generic") as caught:
        read_records(path)
    assert "--role generic" in str(caught.value.fix)
    faults = audit([path]).faults
    assert [(fault.line, fault.code) for fault in faults] == [(1, "foreign"), (2, "foreign")]
    path.write_text('{"messages": [{"role": "user", "content": "x"}]}\n')
    assert "OpenAI's `messages`" in audit([path]).faults[0].what


@pytest.mark.parametrize("ending", sorted([*COMPRESSIONS, ".zip"]))
def test_the_lines_of_a_compressed_table_are_named_after_the_table(ending: str) -> None:
    assert lines_name(Path(f"orders.csv{ending}")) == Path("orders.jsonl")

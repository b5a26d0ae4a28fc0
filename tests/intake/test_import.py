"""Whatever kind of file holds them, the same records come out; and what is wrong is named, with nothing written."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rescoldo.cli.main import app, run_app
from rescoldo.data import read_records
from rescoldo.errors import RescoldoError
from rescoldo.intake import encoding, unpack
from rescoldo.intake.columns import parse_map
from rescoldo.intake.importer import import_rows, preview
from rescoldo.intake.open import open_source
from rescoldo.role import get_role
from tests.data.examples import record
from tests.intake.files import KINDS, RECORDS, ROWS, cells, lines, saved_dataset, table, workbook, zipped


def made_of(path: Path) -> Path:
    folder = path.parent / "made"
    folder.mkdir(exist_ok=True)
    return folder / "made.jsonl"


def records(path: Path, *, role: str | None = None, without: Any = (), drop: bool = False, **how: Any) -> list[Any]:
    mapped = parse_map([how.pop("map")]) if "map" in how else {}
    source = open_source(str(path), **how)
    plan = preview(source, role, mapped, without).plan
    output = made_of(path)
    output.unlink(missing_ok=True)
    done = import_rows(source, plan, output, drop=drop)
    made = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert done.records == len(made)
    return made


def refusal(path: Path, **how: Any) -> RescoldoError:
    made_of(path).unlink(missing_ok=True)
    with pytest.raises(RescoldoError) as caught:
        records(path, **how)
    assert list(made_of(path).parent.iterdir()) == [], "nothing is half-written"
    return caught.value


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_gives_the_same_records(tmp_path: Path, name: str) -> None:
    KINDS[name](tmp_path / name)
    assert records(tmp_path / name) == RECORDS
    assert len(read_records(made_of(tmp_path / name), get_role("generic"))) == len(ROWS), "train reads it"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("excel.csv", ["UTF-8 with a byte order mark", "separator ; (semicolon), as its first line says"]),
        ("tab.tsv", ["TSV", "separator tab"]),
        ("utf16.csv", ["UTF-16 LE with a byte order mark"]),
        ("utf16be.csv", ["UTF-16 BE with"]),
        ("utf16-plain.csv", ["UTF-16 LE without"]),
        ("windows.csv", ["Windows-1252 (recognized"]),
        ("one.zip", ["data/rows.csv in a ZIP archive"]),
        ("lines.jsonl.zst", ["compressed with Zstandard", "JSON Lines"]),
        ("book.xlsx", ["Excel workbook", "sheet 'Q3'"]),
        ("saved", ["Hugging Face dataset on disk"]),
    ],
)
def test_what_is_recognized_is_said(tmp_path: Path, name: str, said: list[str]) -> None:
    KINDS[name](tmp_path / name)
    source = open_source(str(tmp_path / name))
    words = f"{source.kind}; {'; '.join(source.notes)}"
    assert all(part in words for part in said), words


TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\t"), min_size=1).filter(str.strip)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=8),
    st.sampled_from(",;\t|"),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
    st.sampled_from(["\n", "\r\n"]),
)
def test_any_text_survives_a_table(pairs: Any, separator: str, code: str, end: str) -> None:
    import tempfile

    rows = [{"question": question, "answer": answer} for question, answer in pairs]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        path.write_text(table(separator, rows, end), encoding=code, newline="")
        made = records(path, separator=separator)
    assert [(one["prompt"], one["answer"]) for one in made] == pairs


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("Größe,naïve,garçon,señor,Ærø", "latin-1", "Windows-1252"),
        ("„Anführung“,10 €,d’accord — oui", "cp1252", "Windows-1252"),
        ("Привет мир, как дела сегодня,хорошо спасибо большое", "cp1251", "cp1251"),
    ],
)
def test_encodings_of_one_byte(tmp_path: Path, text: str, code: str, words: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"prompt;completion\n{text};{text}\n" * 1 + f"{text};{text}\n" * 5, encoding=code)
    source = open_source(str(path))
    assert any(words in note for note in source.notes), source.notes
    assert records(path)[0]["prompt"] == text


def test_one_bad_byte_in_utf8_is_no_other_encoding(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes("prompt,completion\nñ,á\né,í\n".encode() + b"\xf1,x\n" + "ó,ú\n".encode())
    error = refusal(path)
    assert (error.where, "UTF-8 except for 1" in error.what) == (f"{path}:4", True)
    assert records(path, encoding="cp1252")[2]["prompt"] == "ñ"


COLUMNS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "alpaca": ({"instruction": "i", "input": "x", "output": "o"}, {"instruction": "i", "input": "x", "output": "o"}),
    "dolly": (
        {"instruction": "i", "context": "c", "response": "r", "category": "qa"},
        {"instruction": "i", "context": "c", "response": "r", "category": "qa"},
    ),
    "question": ({"Question": "q", "Answer": "a"}, {"prompt": "q", "answer": "a"}),
    "spanish": ({"Instrucción": "i", "Respuesta": "r"}, {"instruction": "i", "output": "r"}),
    "in-out": ({"input": "i", "output": "o"}, {"prompt": "i", "output": "o"}),
    "label": ({"text": "t", "label": "good"}, {"prompt": "t", "completion": "good"}),
    "kto": ({"prompt": "p", "completion": "c", "label": True}, {"prompt": "p", "completion": "c", "label": True}),
    "text": ({"text": "all of it"}, {"text": "all of it"}),
    "system": ({"system_prompt": "s", "query": "q", "response": "r"}, {"system": "s", "prompt": "q", "response": "r"}),
    "dpo": ({"question": "q", "chosen": "a", "rejected": "b"}, {"prompt": "q", "chosen": "a", "rejected": "b"}),
    "index": ({"Unnamed: 0": "0", "prompt": "p", "completion": "c"}, {"prompt": "p", "completion": "c"}),
}


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("kind", ["csv", "jsonl", "xlsx"])
def test_columns_by_their_names(tmp_path: Path, name: str, kind: str) -> None:
    row, wanted = COLUMNS[name]
    path = tmp_path / f"t.{kind}"
    if kind == "csv":
        path.write_text(table(rows=[{k: str(v).lower() if v is True else v for k, v in row.items()}]), newline="")
    elif kind == "jsonl":
        path.write_bytes(lines([row]))
    else:
        workbook(path, {"s": cells([row])})
    (made,) = records(path)
    made.get("metadata", {}).pop("Unnamed: 0", None)
    assert {key: value for key, value in made.items() if value != {}} == wanted


CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
TOOLS = [
    {"role": "user", "content": "q"},
    {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]},
    {"role": "tool", "tool_call_id": "1", "content": "r"},
    {"role": "assistant", "content": "a", "weight": 1, "reasoning_content": "hm"},
]


@pytest.mark.parametrize("cell", [json.dumps(CHAT), repr(CHAT)])
def test_messages_in_a_cell(tmp_path: Path, cell: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(table(rows=[{"messages": cell, "id": "7"}]), newline="")
    assert records(path) == [{"messages": CHAT, "id": "7"}]
    path.write_text(table(rows=[{"messages": "[{", "id": "7"}]), newline="")
    assert refusal(path).where == f"{path}:2, messages"


def test_tools_and_weights_are_carried_as_they_are(tmp_path: Path) -> None:
    rows = [{"messages": TOOLS, "tools": [{"type": "function", "function": {"name": "f"}}]}]
    (tmp_path / "t.jsonl").write_bytes(lines(rows))
    assert records(tmp_path / "t.jsonl") == rows
    (tmp_path / "u.json").write_text(json.dumps({"data": rows * 2}, indent=1))
    assert records(tmp_path / "u.json") == rows * 2


def test_parquet_and_what_hugging_face_makes_of_messages(tmp_path: Path) -> None:
    import datetime

    import pyarrow
    import pyarrow.parquet

    padded = [{"role": "user", "content": "q", "name": None}, {"role": "assistant", "content": "a", "name": "b"}]
    rows = [{"messages": padded, "created_at": datetime.datetime(2026, 1, 2), "score": float("nan")}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    (made,) = records(tmp_path / "t.parquet")
    assert made == {"messages": [CHAT[0], {**CHAT[1], "name": "b"}], "created_at": "2026-01-02T00:00:00"}
    columns = [{"conversations": {"from": ["human", "gpt"], "value": ["q", "a"]}}]
    saved_dataset(tmp_path / "saved", columns)
    assert records(tmp_path / "saved") == [
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
    ]
    labels = {"label": {"names": ["bad", "good"], "_type": "ClassLabel"}}
    saved_dataset(tmp_path / "labels", [{"text": "t", "label": 1}, {"text": "u", "label": 0}], labels)
    assert [one["completion"] for one in records(tmp_path / "labels")] == ["good", "bad"]
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["p"], "completion": ["c"], "image": [b"x"]}), tmp_path / "b")
    error = refusal(tmp_path / "b")
    assert error.where == f"{tmp_path / 'b'}, row 1, image"
    assert "binary" in error.what


def test_splits_and_shards(tmp_path: Path) -> None:
    both = tmp_path / "dict"
    for name in ("train", "test"):
        saved_dataset(both / name, [{"prompt": name, "completion": "c"}])
    (both / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert "2 splits (train, test)" in refusal(both).what
    assert records(both, split="test")[0]["prompt"] == "test"
    assert "--split train or test" in refusal(both, split="x").fix
    import pyarrow
    import pyarrow.parquet

    hub = tmp_path / "hub" / "data"
    hub.mkdir(parents=True)
    for shard in range(2):
        made = pyarrow.table({"prompt": [f"p{shard}"], "completion": ["c"]})
        pyarrow.parquet.write_table(made, hub / f"train-0000{shard}-of-00002.parquet")
    assert [one["prompt"] for one in records(tmp_path / "hub")] == ["p0", "p1"]
    for config in ("en", "es"):
        (tmp_path / "parts" / config / "train").mkdir(parents=True)
        made = pyarrow.table({"prompt": [config], "completion": ["c"]})
        pyarrow.parquet.write_table(made, tmp_path / "parts" / config / "train" / "0000.parquet")
    assert "2 splits (en/train, es/train)" in refusal(tmp_path / "parts").what, "what is different is not mixed"
    assert records(tmp_path / "parts", split="es/train")[0]["prompt"] == "es"
    (tmp_path / "hub" / "state.json").write_text('{"_data_files": [{"filename": "../../etc/passwd"}]}')
    assert "names no Arrow files" in refusal(tmp_path / "hub").what


def test_a_role_of_records(tmp_path: Path) -> None:
    one = record(1)
    flat = {"Idea": one["concept"], "Titel": one["requirements"]["title"], "Rest": json.dumps(one["requirements"])}
    path = tmp_path / "t.csv"
    path.write_text(table(rows=[flat]), newline="")
    made = records(path, map="concept=Idea,requirements=Rest", without=["Titel"])
    assert made == [one]
    assert "reads no 'conzept'" in refusal(path, role="ba", map="conzept=Idea").what
    assert "no column is recognized as concept or as requirements" in refusal(path, role="ba").what
    assert "there is no column 'Idee'" in refusal(path, map="concept=Idee").what
    parts = {f"x {name}": value if isinstance(value, str) else json.dumps(value)
             for name, value in one["requirements"].items()}  # fmt: skip
    path.write_text(table(rows=[{"concept": one["concept"], **parts}]), newline="")
    assert records(path, map=",".join(f"requirements.{name[2:]}={name}" for name in parts)) == [one]


def test_a_header_that_is_not_the_first_row(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("Report 2026;;\n\nprompt;completion;id\na;b;1\n")
    assert "--header LINE" in refusal(tmp_path / "t.csv").what
    wanted = [{"prompt": "a", "completion": "b", "id": "1"}]
    for line in (2, 3):
        assert records(tmp_path / "t.csv", header=line) == wanted
    path = workbook(tmp_path / "b.xlsx", {"s": [["Report"], [None], ["prompt", "completion", "id"], ["a", "b", "1"]]})
    assert "--header N" in refusal(path).fix
    assert records(path, header=3) == wanted
    assert "no row with names" in refusal(path, header=9).what
    (tmp_path / "j.jsonl").write_bytes(lines())
    assert "--header does not apply" in refusal(tmp_path / "j.jsonl", header=2).what


def test_names_with_dots_and_objects_that_meet(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(lines([{"prompt": "p", "completion": "c", "a.b": 1, "metadata": {"x": 2}}]))
    assert records(tmp_path / "t.jsonl") == [{"prompt": "p", "completion": "c", "metadata": {"a.b": 1, "x": 2}}]
    (tmp_path / "u.jsonl").write_bytes(lines([{**record(1), "a.b": 1}]))
    assert records(tmp_path / "u.jsonl") == [{**record(1), "a.b": 1}]
    (tmp_path / "v.jsonl").write_bytes(lines([{"prompt": "p", "completion": "c", "a": 1, "metadata": "m"}]))
    assert refusal(tmp_path / "v.jsonl").where == f"{tmp_path / 'v.jsonl'}:1, metadata"
    (tmp_path / "w.jsonl").write_bytes(
        lines([{"prompt": "p", "completion": "c"}] * 300 + [{"prompt": "p", "completion": "c", "late": 1}])
    )
    assert records(tmp_path / "w.jsonl")[-1]["metadata"] == {"late": 1}


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text('a\\"ñ]}\n,', max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("ab]", min_size=1, max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(VALUES, max_size=6), st.integers(1, 7), st.sampled_from([None, 0, 2]), st.text(" \n\t", max_size=3))
def test_arrays_are_read_in_pieces_of_any_size(values: Any, piece: int, indent: Any, blank: str) -> None:
    import io

    from rescoldo.intake import objects

    text = blank + json.dumps([{"v": value} for value in values], indent=indent, ensure_ascii=False) + blank
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objects, "_PIECE", piece)
        rows = list(objects._elements(io.StringIO(text), Path("p")))
        assert [row.values for row in rows] == [{"v": value} for value in values]
        for row in rows if indent == 2 else ():
            line = int(row.where.rpartition("line ")[2].rstrip(")"))
            assert text.split("\n")[line - 1].strip() == "{"
        for bad in (text.rstrip()[:-1], text + "x", text.rstrip()[:-1] + ", }", text.replace("[", "[,", 1)):
            with pytest.raises(RescoldoError, match="the JSON array is damaged"):
                list(objects._elements(io.StringIO(bad), Path("p")))


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json", "parquet", "xlsx"])
def test_memory_does_not_grow_with_the_rows(tmp_path: Path, kind: str) -> None:
    import tracemalloc

    import pyarrow
    import pyarrow.parquet

    peaks = []
    for number in (500, 2500):  # 0.45 MB and 2.2 MB of text
        rows = [{"prompt": f"question {i}", "completion": f"{i} answer " * 80} for i in range(number)]
        path = tmp_path / f"{number}.{kind}"
        if kind == "csv":
            path.write_text(table(rows=rows), newline="")
        elif kind == "jsonl":
            path.write_bytes(lines(rows))
        elif kind == "json":
            path.write_text(json.dumps(rows))
        elif kind == "parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=500)
        else:
            workbook(path, {"s": [["prompt", "completion"], *([f"question {i}", i] for i in range(number))]})
        del rows
        tracemalloc.start()
        source = open_source(str(path))
        plan = preview(source).plan
        import_rows(source, plan, tmp_path / f"{number}.out")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 900_000, peaks


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refusal(tmp_path / "pipe").what


def test_a_workbook_s_cells(tmp_path: Path) -> None:
    import datetime

    path = workbook(
        tmp_path / "b.xlsx",
        {
            "s": [
                [None, None],
                ["prompt", "completion", "date"],
                [None],
                [5, True, datetime.date(2026, 3, 1)],
                ["a", 1.5],
            ]
        },
    )
    assert records(path) == [
        {"prompt": "5", "completion": "true", "date": "2026-03-01"},
        {"prompt": "a", "completion": "1.5"},
    ]
    workbook(path, {"s": [["prompt", "completion"], ["a", "b"], ["c", "=1+1"], ["d", "#N/A"]]})
    error = refusal(path)
    assert error.where == f"{path}, sheet 's', row 3, completion"
    assert "formula without a stored value" in error.what
    assert "row 4, completion: holds the error #N/A" in error.what
    workbook(path, {"s": [["prompt", "completion"], ["a", "b"]], "t": [["x"]]})
    assert "--sheet s" in refusal(path).fix
    assert records(path, sheet="s") == [{"prompt": "a", "completion": "b"}]
    assert "no sheet 'u'" in refusal(path, sheet="u").what


BAD: dict[str, tuple[str, bytes, str, str]] = {
    "ragged": ("t.csv", b"prompt,completion\na,b\nc\n", ":3", "has 1 cells, but the header names 2"),
    "too many": ("t.csv", b"prompt,completion\na,b,c\n", ":2", "has 3 cells"),
    "open quote": ("t.csv", b'prompt,completion\na,b\n"c,d\ne,f\n', ":3", "not closed"),
    "bad quote": ("t.csv", b'prompt,completion\n"a"b,c\n', ":2", "after its closing quote"),
    "missing": ("t.csv", b"prompt,completion\na,b\nc,\n", ":3, completion", "is missing"),
    "twice": ("t.csv", b"prompt,prompt\na,b\n", ":1", "two columns are called 'prompt'"),
    "no rows": ("t.csv", b"prompt,completion\n", "", "holds no rows"),
    "empty": ("t.csv", b"", "", "is empty"),
    "unknown": ("t.csv", b"a,b\n1,2\n", "", "no column is recognized as prompt or as completion"),
    "ambiguous": ("t.csv", b"question,query,answer\n1,2,3\n", "", "could each be prompt"),
    "json": ("t.jsonl", lines(ROWS[:1]) + b"{]\n", ":2", "not JSON"),
    "nan": ("t.jsonl", b'{"prompt": NaN, "completion": "x"}\n{"prompt": "a", "completion": "b"}\n', ":1", "NaN"),
    "array": ("t.json", b'[{"prompt": "a", "completion": "b"}, {', ":1", "damaged"),
    "binary": ("t.csv", b"\x00\x01\x02\x03" * 99, "", "not a text file"),
    "lfs": ("t.csv", b"version https://git-lfs.github.com/spec/v1\noid\n", "", "Git LFS pointer"),
    "xls": ("t.xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 99, "", "old Office"),
    "cut gzip": ("t.jsonl.gz", gzip.compress(lines() * 99)[:-40], "", "damaged or cut off"),
    "cut xz": ("t.jsonl.xz", lzma.compress(lines() * 99)[:-40], "", "damaged or cut off"),
    "cut bzip2": ("t.jsonl.bz2", bz2.compress(lines() * 99)[:-40], "", "damaged or cut off"),
    "twice packed": ("t.jsonl.gz", gzip.compress(gzip.compress(lines())), "", "compressed twice"),
    "two members": ("t.zip", zipped({"a.csv": b"x", "b.csv": b"y"}), "", "2 files: expected one (a.csv, b.csv)"),
    "no workbook": ("t.xlsx", zipped({"xl/workbook.xml": b"<x/>"}), "", "not a workbook that can be read"),
    "parquet": ("t.parquet", b"PAR1" + b"x" * 50, "", "damaged or cannot be read"),
    "arrow": ("t.arrow", b"ARROW1\0\0" + b"x" * 50, "", "damaged or cannot be read"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_where_they_are_bad(tmp_path: Path, name: str) -> None:
    file, content, where, what = BAD[name]
    path = tmp_path / file
    path.write_bytes(content)
    error = refusal(path)
    assert error.where == f"{path}{where}"
    assert what in error.what
    assert error.exit_code == 2


def test_rows_are_left_out_on_demand_only(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b'prompt,completion\na,b\nc\n"x"y,z\nd,e\n')
    assert "2 rows of 4 cannot be imported" in refusal(path).what
    assert [one["prompt"] for one in records(path, drop=True)] == ["a", "d"]


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, lambda b: zipped({"a.jsonl": b})])
def test_what_unpacks_to_too_much_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: Any) -> None:
    monkeypatch.setattr(unpack, "FREE_BYTES", 1 << 20)
    path = tmp_path / "bomb.jsonl.gz"
    path.write_bytes(pack(b" " * (8 << 20)))
    assert "300 times its size" in refusal(path).what


def test_a_workbook_that_unpacks_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = workbook(tmp_path / "b.xlsx", {"s": cells()})
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/worksheets/sheet9.xml", b" " * (8 << 20))
    monkeypatch.setattr("rescoldo.intake.workbook.FREE_BYTES", 1 << 20)
    assert "too much for a workbook" in refusal(path).what


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in ("openpyxl", "pyarrow"):
        monkeypatch.setitem(sys.modules, name, None)
    workbook_path = tmp_path / "b.xlsx"
    workbook_path.write_bytes(zipped({"xl/workbook.xml": b"<x/>"}))
    for path, head in (
        (workbook_path, b""),
        (tmp_path / "t.parquet", b"PAR1"),
        (tmp_path / "t.zst", b"\x28\xb5\x2f\xfd"),
    ):
        if head:
            path.write_bytes(head)
        error = refusal(path)
        assert "package" in error.what
        assert "openpyxl>=3.1" in error.fix


def test_the_hub_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    class Api:
        def dataset_info(self, name: str, timeout: float) -> Any:
            raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    for name in ("org/name", "hf:org/name"):
        with pytest.raises(RescoldoError) as caught:
            open_source(name)
        assert "no route to host" in caught.value.what
        assert "hf download org/name --repo-type dataset" in caught.value.fix


def hub_cache(folder: Path, *files: str) -> None:
    """What the Hub's client leaves of the dataset acme/faq in its cache."""
    pyarrow = pytest.importorskip("pyarrow")
    commit, repository = "0" * 40, folder / "hub" / "datasets--acme--faq"
    for name in files:
        path = repository / "snapshots" / commit / name
        path.parent.mkdir(parents=True, exist_ok=True)
        made = pyarrow.table({"prompt": [f"p {path.stem}"], "completion": ["c"]})
        pytest.importorskip("pyarrow.parquet").write_table(made, path)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)


def test_without_a_network_what_was_fetched_before_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Api:
        def dataset_info(self, name: str, timeout: float) -> Any:
            raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr("rescoldo.intake.hub.hub_cache", lambda: str(tmp_path / "hub"))
    hub_cache(tmp_path, "data/train-00000-of-00001.parquet", "data/test-00000-of-00002.parquet")
    with open_source("acme/faq", split="train").read() as (rows, _):
        assert [row.values["prompt"] for row in rows if row.values] == ["p train-00000-of-00001"]
    with pytest.raises(RescoldoError, match="no route to host"):
        open_source("acme/faq", split="dev")
    with pytest.raises(RescoldoError, match="1 of the 2 files of test: number 00001 is missing"):
        open_source("acme/faq", split="test")


def test_arguments_that_look_like_columns_of_messages(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    trip = {"from": ["Ávila"], "to": ["León"]}
    call = {"function": {"name": "route", "arguments": {"trip": trip}}}
    turns = [{"role": "user", "content": "Which way?"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    parquet.write_table(pyarrow.Table.from_pylist([{"messages": turns}]), tmp_path / "t.parquet")
    [record] = records(tmp_path / "t.parquet")
    assert record["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"trip": trip}


@pytest.mark.parametrize("key", ["Weight", "LABEL", "loss_mask", "Images", "ignore", "Chosen"])
def test_what_train_refuses_is_not_hidden_in_metadata(tmp_path: Path, key: str) -> None:
    line = {"prompt": "p", "completion": "c", key: [0, 1]}
    (tmp_path / "d.jsonl").write_text(json.dumps(line) + "\n")
    [record] = records(tmp_path / "d.jsonl")
    assert record[key.lower()] == [0, 1]
    faults = get_role("generic").check(record, "d.jsonl", 1)
    assert any(fault.level == "error" for fault in faults)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*words: Any) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["rescoldo", "data", *map(str, words)])
        code = run_app(app)
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_the_command(tmp_path: Path, command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    KINDS["excel.csv"](tmp_path / "t.csv")
    output = tmp_path / "o.jsonl"
    code, out, _ = command("import", tmp_path / "t.csv", "--dry-run")
    assert code == 0
    assert "metadata.Región" in out
    assert '{"prompt": "Where\'s the Prado' in out
    assert "nothing is written: 3 records of 3 rows" in out
    code, _, err = command("import", tmp_path / "t.csv", "-o", output)
    assert (code, "--yes" in err, output.exists()) == (2, True, False)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.confirm", lambda *a, **k: False)
    assert command("import", tmp_path / "t.csv", "-o", output)[0] == 1
    assert not output.exists()
    code, out, _ = command("import", tmp_path / "t.csv", "-o", output, "--json")
    assert (code, json.loads(out)["records"]) == (0, 3)
    assert [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()] == RECORDS
    code, _, err = command("import", tmp_path / "t.csv", "-o", output, "--yes")
    assert (code, "exists already" in err) == (2, True)
    (tmp_path / "bad.csv").write_text("prompt,completion\na,b\nc\n")
    code, out, _ = command("import", tmp_path / "bad.csv", "-o", tmp_path / "p.jsonl", "--yes", "--drop")
    assert (code, "bad.csv:3: row left out" in out) == (0, True)
    for words, said in (
        (["--sheet", "x"], "--sheet does not apply"),
        (["--separator", "ab"], "invalid separator"),
        (["--encoding", "utf-99"], "no encoding 'utf-99'"),
        (["--map", "prompt"], "is not FIELD=COLUMN"),
    ):
        code, _, err = command("import", tmp_path / "t.csv", "--dry-run", *words)
        assert (code, said in err) == (2, True), err


def test_what_train_refuses_names_the_import(tmp_path: Path) -> None:
    KINDS["comma.csv"](tmp_path / "t.csv")
    with pytest.raises(RescoldoError, match="is a CSV table") as caught:
        read_records(tmp_path / "t.csv", get_role("generic"))
    assert f"data import {tmp_path / 't.csv'} --output {tmp_path / 't.jsonl'}" in caught.value.fix


def test_charset_sample_is_bounded() -> None:
    assert encoding._SAMPLE <= 1 << 16


def test_what_the_datasets_library_saves(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_list([*ROWS, {**ROWS[0], "prompt": "4"}]).select([3, 0])
    made.save_to_disk(str(tmp_path / "one"), num_shards=2)
    assert [row["prompt"] for row in records(tmp_path / "one")] == ["4", ROWS[0]["prompt"]]
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    labelled = datasets.Dataset.from_dict({"text": ["t"], "label": [1]}, features=features)
    datasets.DatasetDict({"train": labelled, "test": labelled}).save_to_disk(str(tmp_path / "both"))
    assert records(tmp_path / "both", split="train") == [{"prompt": "t", "completion": "good"}]
    labelled.to_parquet(str(tmp_path / "p.parquet"))
    assert records(tmp_path / "p.parquet") == [{"prompt": "t", "completion": "good"}]

"""Python of a role: whatever it does is one message that says where, and standard output stays clean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rescoldo.errors import RescoldoError
from rescoldo.role import get_role
from tests.role.test_roles import role_file, run

RECORD = {"question": "1 + 1?", "reply": "2"}


def role_with(folder: Path, code: str, **fields: Any) -> Any:
    """A role whose Python, m.py, is `code`."""
    role_file(folder, **fields)
    (folder / "m.py").write_text(code)
    return get_role(str(folder))


IMPORTS = {
    "1 / 0": ("m.py:1", "ZeroDivisionError: division by zero", "fix m.py"),
    "import sys\nsys.exit(0)": ("m.py:2", "calls sys.exit", "fix m.py"),
    "x = 1\nf = (": ("m.py:2", "SyntaxError: '(' was never closed", "fix m.py"),
    "import no_such_thing": ("m.py:1", "No module named 'no_such_thing'", "install the package"),
    "import helper": ("m.py:1", "No module named 'helper'", "one file: move what it needs from helper.py into m.py"),
    "def g(): pass": ("role.yaml", "m.py has no 'f'", "functions in m.py: g"),
}


@pytest.mark.parametrize("code", IMPORTS)
def test_imports_that_fail_say_where_and_what_to_do(tmp_path: Path, code: str) -> None:
    where, what, fix = IMPORTS[code]
    (tmp_path / "helper.py").write_text("")
    with pytest.raises(RescoldoError) as caught:
        role_with(tmp_path, code, metric="m.py:f").ready()
    assert caught.value.where == str(tmp_path / where)
    assert what in caught.value.what
    assert fix in caught.value.fix
    assert "rescoldo_role_" not in str(caught.value)


def test_an_installed_module_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RescoldoError, match="install nosuch where rescoldo is installed"):
        role_with(tmp_path, "", metric="nosuch.module:f").ready()


CALLS = {
    "return 1 / 0": "ZeroDivisionError: division by zero, m.py:3",
    "sys.exit(0)": "it calls sys.exit(0), m.py:3",
    "return float('nan')": "returned nan as f: expected a number between 0 and 1, m.py:2",
    "return len()": "TypeError: len() takes exactly one argument (0 given), m.py:3",
}


@pytest.mark.parametrize("line", CALLS)
def test_a_metric_that_fails_scores_0_and_says_where(tmp_path: Path, line: str) -> None:
    role = role_with(tmp_path, f"import sys\ndef f(prediction, record):\n    {line}\n", metric="m.py:f")
    score = role.score("2", RECORD)
    assert score.components == {"f": 0.0}
    assert score.failures == {"f": CALLS[line]}


def test_ctrl_c_is_not_the_roles(tmp_path: Path) -> None:
    role = role_with(tmp_path, "def f(prediction, record):\n    raise KeyboardInterrupt\n", metric="m.py:f")
    with pytest.raises(KeyboardInterrupt):
        role.score("2", RECORD)


WRONG = ["raise KeyError('x')", "exit()", "return None", "return ['bad']", "return record", "yield 1"]


@pytest.mark.parametrize("line", [*WRONG, "return [('', 'odd', 'is odd', True, 'fatal')]"])
def test_a_check_that_fails_is_one_message(tmp_path: Path, line: str) -> None:
    role = role_with(tmp_path, f"def f(record):\n    {line}\n", check="m.py:f")
    with pytest.raises(RescoldoError, match=r"check: m.py:f failed on d.jsonl:7: ") as caught:
        role.check(RECORD, "d.jsonl", 7)
    assert caught.value.where.startswith(str(tmp_path / "m.py:"))


@pytest.mark.parametrize("line", [*WRONG, "return record, None", "return record, [1]", "return None, []"])
def test_a_mend_that_fails_is_one_message(tmp_path: Path, line: str) -> None:
    role = role_with(tmp_path, f"def f(record):\n    {line}\n", mend="m.py:f")
    with pytest.raises(RescoldoError, match=r"mend: m.py:f failed on d.jsonl:7: ") as caught:
        role.mend(RECORD, "d.jsonl:7")
    assert caught.value.where.startswith(str(tmp_path / "m.py:"))


def test_check_and_mend_as_documented(tmp_path: Path) -> None:
    code = (
        "def c(record): return [('reply', 'odd', 'is odd')]\n"
        "def m(record): return {**record, 'reply': '3'}, [('reply', 'is 3 now')]\n"
    )
    role = role_with(tmp_path, code, check="m.py:c", mend="m.py:m")
    assert [(fault.field, fault.what) for fault in role.check(RECORD, "d", 1)] == [("reply", "is odd")]
    assert role.mend(RECORD) == ({**RECORD, "reply": "3"}, [("reply", "is 3 now")])


def test_what_a_role_prints_goes_to_standard_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = (
        "print('hello')\ndef f(prediction, record):\n    print('scoring')\n    return prediction == record['reply']\n"
    )
    role_with(tmp_path, code, metric="m.py:f")
    exit_code, out, err = run(monkeypatch, capsys, "role", "check", tmp_path, "--json")
    assert exit_code == 0
    assert json.loads(out)["ok"]
    assert "hello" in err
    assert "scoring" in err

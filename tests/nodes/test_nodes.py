"""What `--nodes`, `--rendezvous` and `--share` take, refuse and say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rescoldo.cli.main import app, run_app
from rescoldo.errors import RescoldoError
from rescoldo.nodes.address import interface_of, is_here, local_address
from rescoldo.nodes.nodes import count, nodes_of


def test_how_many() -> None:
    assert count("4") == (1, 4)
    assert count("2:4") == (2, 4)
    for wrong in ("0", "4:2", "four", "1:2:3", "-1", ""):
        with pytest.raises(RescoldoError, match="number of machines"):
            count(wrong)


def test_where() -> None:
    nodes = nodes_of("2", "127.0.0.1:5000")
    assert (nodes.host, nodes.port, nodes.here) == ("127.0.0.1", 5000, True)
    assert nodes_of("2", "192.0.2.77").port == 29400
    assert not nodes_of("2", "192.0.2.77").here  # an address of documentation: nobody has it
    assert nodes_of("2", "[::1]:5000").host == "::1"
    for wrong in (":5000", "0.0.0.0:5000", "127.0.0.1:99999"):
        with pytest.raises(RescoldoError, match="not a machine's address"):
            nodes_of("2", wrong)
    with pytest.raises(RescoldoError, match="does not know a host"):
        nodes_of("2", "no-such-host.invalid:5000")


def test_the_torchrun_command() -> None:
    line = nodes_of("2:4", "127.0.0.1:5000", max_restarts=7).torchrun("127.0.0.1", True)
    for part in ("torch.distributed.run", "--nnodes=2:4", "--rdzv-backend=c10d", "--max-restarts=7"):
        assert part in line
    assert any("is_host=true" in part for part in line)


def test_addresses() -> None:
    assert is_here("localhost")
    assert local_address("127.0.0.1") == "127.0.0.1"
    assert interface_of("127.0.0.1") == "lo"


def arguments(tmp_path: Path, *more: str) -> list[str]:
    for name in ("train", "val"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"concept": name}) + "\n")
    data = ["--train", str(tmp_path / "train.jsonl"), "--val", str(tmp_path / "val.jsonl")]
    return ["train", *data, "--output", str(tmp_path / "out"), *more]


def call(line: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.argv", ["rescoldo", *line])
    return run_app(app)


def test_without_a_rendezvous_it_says_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(arguments(tmp_path, "--nodes", "3", "--epochs", "2"), monkeypatch) == 0
    said = capsys.readouterr().out
    line = next(line for line in said.splitlines() if line.startswith("  rescoldo train"))
    assert "--nodes=3" in line
    assert "--epochs=2" in line
    assert "--rendezvous=" in line
    assert "--join-seconds" not in line
    assert not (tmp_path / "out").exists()


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(arguments(tmp_path, "--share", "2"), monkeypatch) == 2
    assert "--share: is for several machines" in capsys.readouterr().err
    more = ["--nodes", "2", "--rendezvous", "192.0.2.77:29400", "--detach"]
    assert call(arguments(tmp_path, *more), monkeypatch) == 2
    assert "this machine writes no files: 192.0.2.77 leads" in capsys.readouterr().err

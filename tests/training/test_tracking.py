"""Runs that report to trackers: through wandb's and mlflow's own clients, without a network, and when they fail."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rescoldo.errors import RescoldoError
from rescoldo.training import start, tracking
from rescoldo.training.config import make_config, refusal
from rescoldo.training.metrics import TensorBoard
from rescoldo.training.progress import Topic
from tests.training.fake import PARTS, config
from tests.training.test_resume import Killed, Silent, counting_parts


class Told(Silent):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, text: str, topic: Topic = Topic.PROGRESS) -> None:
        self.lines.append(text)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(TensorBoard, "__init__", lambda self, *_: setattr(self, "_writer", None))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setattr(tracking, "_has_key", lambda host: False)


def run(tmp_path: Path, names: str, parts: Any = PARTS, **fields: Any) -> tuple[Any, Told]:
    told = Told()
    made = config(tmp_path, tmp_path / "run", report_to=names, **fields)
    return start.train(made, parts, reporter=told), told


def losses(output: Path) -> dict[int, float]:
    lines = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


@pytest.mark.slow
def test_mlflow_has_the_run_s_figures(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    result, told = run(tmp_path, "mlflow")
    output = tmp_path / "run"
    assert result.status == "finished"
    (line,) = [line for line in told.lines if line.startswith("  mlflow:")]
    assert str(output / "mlflow.db") in line
    assert "no examples" in line
    client = MlflowClient(tracking_uri=f"sqlite:///{output / 'mlflow.db'}")
    (experiment,) = [one for one in client.search_experiments() if one.name == "rescoldo"]
    (made,) = client.search_runs([experiment.experiment_id])
    points = {one.step: one.value for one in client.get_metric_history(made.info.run_id, "loss/train")}
    assert points == pytest.approx(losses(output))
    assert made.info.status == "FINISHED"
    assert made.data.tags["verdict"] == "completed" or "got worse" in made.data.tags["verdict"]
    assert float(made.data.tags["best_val_loss"]) == pytest.approx(min(x["val_loss"] for x in result.info["losses"]))
    assert made.data.params["lr"] == str(result.info["config"]["lr"])
    assert str(tmp_path) not in json.dumps(made.data.params), "no paths of this machine"


@pytest.mark.slow
def test_wandb_offline_has_the_run_s_figures(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    result, told = run(tmp_path, "wandb")
    output = tmp_path / "run"
    assert result.status == "finished"
    (line,) = [line for line in told.lines if line.startswith("  wandb:")]
    assert f"{output / 'wandb'} (offline" in line
    (file,) = output.glob("wandb/offline-run-*/*.wandb")
    history, summary, settings = read_wandb(file)
    points = {int(row["step"]): row["loss/train"] for row in history if "loss/train" in row}
    assert points == pytest.approx(losses(output))
    assert summary["finished"] is True
    assert summary["best_val_loss"] == pytest.approx(min(x["val_loss"] for x in result.info["losses"]))
    assert "lr" in settings
    assert str(tmp_path) not in json.dumps([settings, summary])


def records_of(data: bytes) -> Iterator[bytes]:
    """The records of wandb's file: LevelDB's log format, behind a header of seven bytes."""
    at, held = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # a block's end that is too short for a header
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        held += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield held
            held = b""


def read_wandb(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]:
    """History, summary and config in wandb's own file."""
    from wandb.proto import wandb_internal_pb2

    def values(items: Any) -> dict[str, Any]:
        return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}

    history: list[dict[str, Any]] = []
    summary: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    for data in records_of(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.HasField("history"):
            history.append(values(record.history.item))
        summary |= values([*record.summary.update, *record.run.summary.update])
        settings |= values([*record.config.update, *record.run.config.update])
    return history, summary, settings


@pytest.mark.slow
def test_a_resumed_run_goes_on_in_the_same_place(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    left = 6

    def act(kind: str) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path, "mlflow", counting_parts(act), checkpoint_minutes=0.0)
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'run' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("rescoldo").experiment_id
    assert [one.info.status for one in client.search_runs([experiment])] == ["KILLED"]
    assert run(tmp_path, "mlflow")[0].status == "finished"
    assert [one.info.status for one in client.search_runs([experiment])] == ["FINISHED"]


class Broken:
    destination = "nowhere"
    fails = "start"

    def __init__(self, output: Path, settings: Any) -> None:
        if self.fails == "init":
            raise OSError("no disk")

    def start(self) -> None:
        self.act("start")

    def add(self, step: int, values: Any) -> None:
        self.act("add")

    def end(self, verdict: Any, finished: bool) -> None:
        self.act("end")

    def act(self, where: str) -> None:
        if self.fails == where:
            raise ConnectionError("refused")
        if self.fails == f"hang {where}":
            time.sleep(30)


@pytest.mark.parametrize("fails", ["init", "start", "add", "end", "hang start", "hang add", "hang end"])
def test_a_tracker_that_fails_or_hangs_does_not_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    monkeypatch.setattr(Broken, "fails", fails)
    monkeypatch.setitem(tracking.CLIENTS, "wandb", Broken)
    monkeypatch.setattr(tracking, "END_SECONDS", 0.3)
    began = time.monotonic()
    result, told = run(tmp_path, "wandb")
    assert result.status == "finished"
    assert time.monotonic() - began < 20
    assert len([line for line in told.lines if "⚠️" in line]) == 1, told.lines


def test_what_report_to_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = {"train": "t", "val": "v", "output": "o"}
    assert make_config(paths).report_to == ("tensorboard",)
    assert make_config({**paths, "report_to": "none"}).report_to == ()
    assert make_config({**paths, "report_to": "wandb, MLflow"}).report_to == ("wandb", "mlflow")
    assert "did you mean wandb" in refusal("report_to", "wandbb")
    assert "none cannot be combined" in refusal("report_to", "none,wandb")
    assert tracking.without_password("https://me:secret@host:8/x") == "https://host:8/x"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RescoldoError, match="wandb is not installed") as caught:
        run(tmp_path, "wandb")
    assert "wandb>=0.19" in caught.value.fix
    assert not (tmp_path / "run").exists()


def test_where_wandb_s_figures_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tracking.Wandb(tmp_path, {}).mode == "offline"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert tracking.Wandb(tmp_path, {}).mode == "disabled"
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setattr(tracking, "_has_key", lambda host: True)
    assert tracking.Wandb(tmp_path, {}).destination == "https://api.wandb.ai, project rescoldo"

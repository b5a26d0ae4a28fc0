"""Experiment trackers: TensorBoard, Weights & Biases, MLflow, through their own clients.

They get losses, learning rate, gradient norm and speed, the settings, and how the run ended; no examples, no text, no
program code, no environment. A tracker that fails, or is slow, is dropped with one warning; training never waits for
it: wandb and mlflow run in threads of their own.
"""

from __future__ import annotations

import contextlib
import importlib.util
import netrc
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

from rescoldo.errors import RescoldoError
from rescoldo.extras import missing
from rescoldo.files import read_json, write_json
from rescoldo.training.config import BUILT_IN, RunConfig
from rescoldo.training.metrics import TensorBoard

IDS = "tracking.json"  # in the output directory: the ids under which a resumed run continues in each tracker
END_SECONDS = 60.0  # timeout for a tracker to send the rest at the end of the run
QUEUED = 10_000  # maximum length of a tracker's queue


class Tracker(Protocol):
    """A client's functions for a run. Each may raise any exception and may take long."""

    def start(self) -> None:
        """Start or resume the run."""

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Add one point to each curve."""

    def end(self, verdict: Mapping[str, Any], finished: bool) -> None:
        """End the run: `verdict` is empty if it was interrupted or failed."""


def check_trackers(config: RunConfig) -> None:
    """Raise RescoldoError if a requested tracker's package is not installed (for TensorBoard, the default, there is
    only a warning)."""
    for name in config.report_to:
        if name in CLIENTS and importlib.util.find_spec(name) is None:
            raise missing(name, f"{name} is not installed", where="--report-to", otherwise=f"--report-to {BUILT_IN}")


class Trackers:
    """All trackers of a run.

    Args:
        first_step: the first step of this process.
        settings: reported in addition to the run's config.
        say, warn: print one line each.
    """

    def __init__(
        self,
        config: RunConfig,
        settings: Mapping[str, Any],
        first_step: int,
        say: Callable[[str], None],
        warn: Callable[[str], None],
    ) -> None:
        self._board = TensorBoard(config.output, first_step, warn) if BUILT_IN in config.report_to else None
        facts = {**settings, **shared_settings(config)}
        self._others: list[_InBackground] = []
        for name in config.report_to:
            if name in CLIENTS:
                try:
                    tracker = CLIENTS[name](config.output, facts)
                except Exception as error:
                    warn(f"{name} is disabled: {_short(error)}")
                    continue
                say(f"  {name}: losses and settings, no examples, go to {tracker.destination}")
                self._others.append(_InBackground(name, tracker, warn))

    def add(self, step: int, **values: float) -> None:
        """Add a point for each value; `loss__train=…` is the curve loss/train."""
        if self._board:
            self._board.add(step, **values)
        named = {name.replace("__", "/"): value for name, value in values.items()}
        for other in self._others:
            other.call(lambda tracker: tracker.add(step, named))

    def flush(self) -> None:
        """Write TensorBoard's points to disk; the others send data by themselves."""
        if self._board:
            self._board.flush()

    def finish(self, verdict: Mapping[str, Any]) -> None:
        """The run has finished: report its results, and end."""
        self._end(verdict, True)

    def close(self) -> None:
        """End without results: the run was interrupted or has failed. Does nothing after `finish`."""
        self._end({}, False)

    def _end(self, verdict: Mapping[str, Any], finished: bool) -> None:
        if self._board:
            self._board.close()
        for other in self._others:
            other.call(lambda tracker: tracker.end(verdict, finished))
        for other in self._others:
            other.join()
        self._others = []


class _InBackground:
    """A tracker behind a queue: callers never wait, and never see it fail."""

    def __init__(self, name: str, tracker: Tracker, warn: Callable[[str], object]) -> None:
        self._name, self._tracker, self._warn = name, tracker, warn
        self._calls: queue.Queue[Callable[[Tracker], object] | None] = queue.Queue(QUEUED)
        self._failed = False
        self._thread = threading.Thread(target=self._work, daemon=True, name=f"tracker {name}")
        self._thread.start()

    def call(self, what: Callable[[Tracker], object] | None) -> None:
        """Queue a call."""
        if self._failed:
            return
        try:
            self._calls.put_nowait(what)
        except queue.Full:
            self._fail("it is too slow")

    def join(self) -> None:
        """Wait until the queue is empty, with a timeout."""
        self.call(None)
        self._thread.join(END_SECONDS if not self._failed else 1.0)
        if self._thread.is_alive():
            self._fail(f"it did not accept the last values within {END_SECONDS:.0f} s")

    def _work(self) -> None:
        try:
            self._tracker.start()
            while (what := self._calls.get()) is not None:
                what(self._tracker)
        except BaseException as error:
            self._fail(_short(error))

    def _fail(self, why: str) -> None:
        if not self._failed:
            self._failed = True
            self._warn(f"nothing more is sent to {self._name} ({why}); the training is not affected")


def shared_settings(config: RunConfig) -> dict[str, Any]:
    """The settings for a tracker, with local paths reduced to their last part."""
    fields = config.model_dump(mode="json", exclude_none=True, exclude={"report_to"})
    paths = {name for name, value in config if isinstance(value, Path)}
    return {name: Path(value).name if name in paths else _without_folders(value) for name, value in fields.items()}


def _without_folders(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_folders(one) for one in value]
    if not isinstance(value, str) or os.sep not in value:
        return value
    return Path(value).name if value.startswith((os.sep, ".", "~")) or Path(value).exists() else value


class Wandb:
    """Weights & Biases. Online if there is a key or WANDB_MODE says so, otherwise offline in OUTPUT/wandb.

    Attributes:
        destination: where the data goes, for people.
    """

    def __init__(self, output: Path, settings: Mapping[str, Any]) -> None:
        self._output, self._settings = output, settings
        host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").rstrip("/")
        self.mode = os.environ.get("WANDB_MODE") or ("online" if _has_key(host) else "offline")
        self._project = os.environ.get("WANDB_PROJECT") or "rescoldo"
        offline = f"{output / 'wandb'} (offline; `wandb sync` sends them)"
        self.destination = f"{without_password(host)}, project {self._project}" if self.mode == "online" else offline
        self._run: Any = None

    def start(self) -> None:
        """See Tracker."""
        import wandb

        quiet = wandb.Settings(
            silent=True, console="off", disable_code=True, disable_git=True, save_code=False, disable_job_creation=True,
            x_disable_stats=True, x_disable_meta=True, x_disable_machine_info=True, init_timeout=30.0,
        )  # fmt: skip
        self._run = wandb.init(
            project=self._project,
            name=self._output.name,
            id=run_id(self._output, "wandb", lambda: uuid.uuid4().hex[:12]),
            resume="allow" if self.mode == "online" else None,
            dir=str(self._output),
            mode=self.mode,  # type: ignore[arg-type]
            config=dict(self._settings),
            settings=quiet,
        )
        self._run.define_metric("*", step_metric="step")  # a resumed run goes back to its checkpoint's step

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """See Tracker."""
        self._run.log({"step": step, **values})

    def end(self, verdict: Mapping[str, Any], finished: bool) -> None:
        """See Tracker."""
        self._run.summary.update({**verdict, "finished": finished})
        self._run.finish(exit_code=0)


class Mlflow:
    """MLflow: at $MLFLOW_TRACKING_URI, otherwise in OUTPUT/mlflow.db.

    Attributes:
        destination: where the data goes, for people.
    """

    def __init__(self, output: Path, settings: Mapping[str, Any]) -> None:
        self._output, self._settings = output, settings
        self.uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(output / 'mlflow.db').resolve()}"
        self._experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "rescoldo"
        self.destination = f"{without_password(self.uri)}, experiment {self._experiment}"
        self._client: Any = None
        self._run = ""

    def start(self) -> None:
        """See Tracker."""
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        import logging

        logging.getLogger("mlflow").setLevel(logging.ERROR)
        logging.getLogger("alembic").setLevel(logging.ERROR)
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=self.uri)
        self._run = run_id(self._output, "mlflow", self._new_run)
        self._client.update_run(self._run, status="RUNNING")

    def _new_run(self) -> str:
        from mlflow.entities import Param

        found = self._client.get_experiment_by_name(self._experiment)
        experiment = found.experiment_id if found else self._client.create_experiment(self._experiment)
        made = str(self._client.create_run(experiment, run_name=self._output.name).info.run_id)
        self._client.log_batch(made, params=[Param(name, str(value)[:500]) for name, value in self._settings.items()])
        return made

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """See Tracker."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._run, metrics=[Metric(name, value, now, step) for name, value in values.items()])

    def end(self, verdict: Mapping[str, Any], finished: bool) -> None:
        """See Tracker."""
        from mlflow.entities import RunTag

        self._client.log_batch(self._run, tags=[RunTag(name, str(value)) for name, value in verdict.items()])
        self._client.set_terminated(self._run, status="FINISHED" if finished else "KILLED")


def run_id(output: Path, name: str, new: Callable[[], str]) -> str:
    """The id of this run in a tracker: the one stored in the output directory, or else a new one, which is stored."""
    ids = read_json(output / IDS) or {}
    if not isinstance(ids.get(name), str):
        ids[name] = new()
        write_json(output / IDS, ids)
    return str(ids[name])


def without_password(address: str) -> str:
    """An address without user name and password."""
    with contextlib.suppress(ValueError):
        parts = urlsplit(address)
        if "@" in parts.netloc:
            return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    return address


def _has_key(host: str) -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators(urlsplit(host).hostname or "") is not None
    except (OSError, netrc.NetrcParseError, RuntimeError):
        return False


# the trackers other than TensorBoard, whose files are written here; the keys are their packages' names
CLIENTS: Mapping[str, Callable[[Path, Mapping[str, Any]], Any]] = {"wandb": Wandb, "mlflow": Mlflow}


def _short(error: BaseException) -> str:
    said = error.what if isinstance(error, RescoldoError) else f"{type(error).__name__}: {error}"
    return " ".join(said.split())[:200]
